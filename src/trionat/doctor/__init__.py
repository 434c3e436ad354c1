"""What may be wrong with a server or a client, and what to do: `trionat doctor`. A module for each thing that is looked at; nothing is changed."""
