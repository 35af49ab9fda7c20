"""Text to tokens: documents from files, hubs and Python itself, and the samples that models read."""
