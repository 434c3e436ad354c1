"""What the pages ask for: a module for each noun, with a tuple `OPERATIONS`."""
