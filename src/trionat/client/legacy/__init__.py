"""A session in a dialect of the Go program, at a server of its own kind."""
