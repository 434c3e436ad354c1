"""What several processes have to agree on: who holds which ports and which identity, and how many sessions a user has."""
