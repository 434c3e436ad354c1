"""What Prometheus reads at `/metrics`: the text that is made of a server's readings."""
