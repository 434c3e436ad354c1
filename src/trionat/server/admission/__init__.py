"""From an authenticated client to a lease: bans, the queue, slots and ports."""
