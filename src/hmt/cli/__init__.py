"""The `hmt` command: one file for each verb, and the parser (`command.py`)."""
