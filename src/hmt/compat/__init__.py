"""The published HMT program: its command line, and checkpoints in its formats."""
