"""The console: pages and an API by which a server is seen and steered. Nothing of it is imported where `Server.ConsoleAddr` is not set."""
