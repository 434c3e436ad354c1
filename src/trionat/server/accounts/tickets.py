"""A user's ticket: made from the key of the server's tickets and the account's salt, and verified."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from trionat.address import TCPAddress
from trionat.protocol.ticket import Ticket, narrow_token, ticket_token
from trionat.server.accounts.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.server.state_folder import State
    from trionat.store.base import Limits, User


def make_ticket(
    state: State,
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


def narrow_ticket(ticket: Ticket, account: Limits, caveats: tuple[str, ...]) -> Ticket:
    """Return the ticket with these caveats, if anything is left that it is good for.

    Raises:
        ValueError: Nothing is, or it cannot be narrowed any more.
    """
    narrowed = ticket.narrow(*caveats)
    if Scope.of(account, narrowed.caveats).permits_nothing:
        before = "; ".join(ticket.caveats) or "the limits of its account"
        raise ValueError(f"such a ticket would be good for nothing, since it has {before} already")
    return narrowed


def verify_ticket(state: State, user: User, token: bytes, caveats: Sequence[str] = ()) -> bool:
    """Tell, in constant time, whether the token is that of the account's ticket, narrowed by these caveats.

    Whether the account or the ticket has expired, and what the caveats mean, are other questions.
    """
    own = ticket_token(state.ticket_key, user.name, user.ticket_salt)
    own = narrow_token(own, caveats)
    return hmac.compare_digest(own, token) and user.ticket_salt != b""
