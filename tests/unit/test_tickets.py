from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trionat.protocol.ticket import Ticket
from trionat.server.accounts.tickets import make_ticket, verify_ticket
from trionat.server.state_folder import prepare_state
from trionat.store.base import User

if TYPE_CHECKING:
    from pathlib import Path


def user(name: str = "alice", salt: bytes = b"s" * 16) -> User:
    return User(name=name, password="h", ticket_salt=salt, created_at=datetime.now(UTC))


def test_a_ticket_is_of_one_account_one_salt_and_one_server(tmp_path: Path) -> None:
    state, other = prepare_state(tmp_path / "one"), prepare_state(tmp_path / "two")
    ticket = make_ticket(state, user(), "example.com", 8007, pinned=True)
    assert ticket == Ticket(
        host="example.com",
        port=8007,
        fingerprint=state.fingerprint,
        username="alice",
        token=ticket.token,
    )
    assert make_ticket(state, user(), "example.com", 8007, pinned=True) == ticket
    assert make_ticket(state, user(), "x", 1, pinned=False).fingerprint is None
    assert verify_ticket(state, user(), ticket.token)
    assert not verify_ticket(state, user(salt=b"t" * 16), ticket.token)
    assert not verify_ticket(state, user("bob"), ticket.token)
    assert not verify_ticket(other, user(), ticket.token)
    for token in (b"", ticket.token[:-1], ticket.token + b"\0", bytes(16)):
        assert not verify_ticket(state, user(), token)
