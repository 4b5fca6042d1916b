"""What this project claims about speed, runnable."""
