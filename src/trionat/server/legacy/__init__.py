"""Clients of the Go program: in plain text, and with a tunnel for each visitor. Let in where `LegacyClients` says so."""
