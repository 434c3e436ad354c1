"""A state folder as one file: taken while a server runs, checked, and put back."""
