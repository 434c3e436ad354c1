"""Several processes of one server, on one machine (`Server.Workers`): a parent, and workers that run sessions."""
