"""What this project claims about speed and other networks, runnable."""
