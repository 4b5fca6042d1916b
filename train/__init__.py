"""Training commands, one a file."""
