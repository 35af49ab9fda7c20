"""Segments to memory: the bank and its retention policies, recall, and the one explicit state."""
