"""What an operator sees of a running server, and does to it: through a Unix socket in the state folder."""
