"""Accounts, and the small private files of both sides. Knows nothing of sessions or sockets."""
