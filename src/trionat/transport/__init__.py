"""Sockets: listeners, dialling, TLS and pinning, non-blocking endpoints, and a channel of messages over them."""
