"""Certificates for names: ordered at an authority that speaks ACME, kept, renewed, and the operator's own beside them.

`challenges` has the answers that the authority looks for, `order` gets a certificate by a helper process (`acme_client` is what runs
there), `store` keeps what was got and watches files, `schedule` says when a name is due, and `renewal` is the task that does it.
"""
