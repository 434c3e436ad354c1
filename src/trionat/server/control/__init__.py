"""The control and tunnel ports: a new connection from its first byte until a session has it."""
