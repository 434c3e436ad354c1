"""What the server knows of its users: who may log in, their limits, and their traffic."""
