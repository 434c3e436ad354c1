"""Moving bytes between visitors, tunnels and local services, and counting them. Knows nothing of sessions or accounts."""
