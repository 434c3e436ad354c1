"""Clients of the native dialect: encrypted, with tunnels that serve one visitor after another."""
