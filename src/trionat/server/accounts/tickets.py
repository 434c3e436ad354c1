"""A user's ticket: made from the key of the server's tickets and the account's salt, and verified."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from trionat.address import TCPAddress
from trionat.protocol.ticket import Ticket, ticket_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.server.state_folder import StateFolder
    from trionat.store.base import User


def make_ticket(
    state: StateFolder,
    user: User,
    host: str,
    port: int,
    *,
    pinned: bool,
    others: Sequence[TCPAddress] = (),
) -> Ticket:
    """Make a user's ticket; it is the same one every time, until the account's salt or the server's key changes.

    Args:
        state: Whose server.
        user: Whose account.
        host: Where clients reach the control port.
        port: The port of it.
        pinned: Whether the ticket holds the fingerprint of the state folder's certificate; otherwise a client checks the
            server's certificate by authorities.
        others: Control addresses of further servers that take the same ticket; the server itself may be among them.

    Raises:
        ValueError: A ticket cannot hold an address or the name.
    """
    own = TCPAddress(host, port)
    return Ticket(
        host=host,
        port=port,
        fingerprint=state.fingerprint if pinned else None,
        username=user.name,
        token=ticket_token(state.ticket_key, user.name, user.ticket_salt),
        others=tuple(address for address in others if address != own),
    )


def verify_ticket(state: StateFolder, user: User, token: bytes) -> bool:
    """Tell, in constant time, whether the token is the account's; whether the account has expired is another question."""
    own = ticket_token(state.ticket_key, user.name, user.ticket_salt)
    return hmac.compare_digest(own, token) and user.ticket_salt != b""
