"""Sockets: listeners, dialling, TLS and pinning, non-blocking endpoints, a channel of messages over them, and a web server."""
