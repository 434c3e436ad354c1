"""trionat: a reverse tunnel."""
