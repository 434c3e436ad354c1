"""A wish for ports, and the claim that it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.errors import TrionatError

if TYPE_CHECKING:
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.ports import LeaseKey
    from trionat.store.base import Limits


@attrs.frozen(kw_only=True)
class Wish:
    """What a client asks for: a visit port for each service, under the key of its user and identity.

    `limits` are those of the user's account: the ports that it may have, and how many sessions at once.
    """

    key: LeaseKey
    services: tuple[ServiceRequest, ...]
    limits: Limits


@attrs.frozen(kw_only=True)
class Claim:
    """A wish that was granted: `holder` has these ports, one for each service in their order, and one session slot.

    `fence` only grows: of two claims of one key, or of one port, the higher one is right. `holder` is the word by which a process is
    known (its route); empty where there is only one.
    """

    wish: Wish
    ports: tuple[int, ...]
    fence: int
    holder: str

    @property
    def key(self) -> LeaseKey:
        """Whose it is."""
        return self.wish.key


class TakenError(TrionatError):
    """Another process holds the key; `holder` is its word."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"another process holds it: {holder}")
        self.holder = holder
