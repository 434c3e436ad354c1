"""A new process takes the place of the one that serves, and nobody is cut: what both say to each other, and what is handed over."""
