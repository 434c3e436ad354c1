"""The public side: sessions, visit ports, visitors and accounts."""
