"""Services that have names instead of ports. Without a domain none of it is imported."""
