"""A session in the native dialect: the server that is checked, its session, and the pool of tunnels."""
