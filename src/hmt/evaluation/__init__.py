"""Text to figures: rows that read, the targets they are scored on, the questions they answer."""
