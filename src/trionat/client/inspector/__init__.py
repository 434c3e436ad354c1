"""Looks into what visitors and local services say to each other, and shows it in a browser on this machine."""
