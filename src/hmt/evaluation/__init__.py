"""Evaluation: rows, the targets they are scored on, the questions they answer."""
