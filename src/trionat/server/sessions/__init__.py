"""Control sessions: which are up, and what each of them owns."""
