"""Visit ports and the visitors that come there, until a session's tunnel has them."""
