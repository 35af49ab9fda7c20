"""Logits to numbers: what a text costs, and what reading it takes."""
