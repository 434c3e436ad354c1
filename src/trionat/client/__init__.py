"""The private side: the session at a server, tunnels, and the local services."""
