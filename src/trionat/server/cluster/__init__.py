"""One server of several that work as one: what they share in Redis, and how visitors get from one to another."""
