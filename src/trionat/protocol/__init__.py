"""Bytes to messages and back, sans-IO: imports no trio, socket, ssl or time."""
