"""Segments to memory: the bank and its retention policies, recall, and the one explicit state."""

from hmt.memory.retention import RetentionPolicy, register_policy

__all__ = ["RetentionPolicy", "register_policy"]
