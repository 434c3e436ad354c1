"""By what a session was let in: kept to notice that it is void by now, without the secret itself."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from trionat.store.base import User


@attrs.frozen
class Credential:
    """A ticket follows from the account's salt, a password is what the store holds of it; `digest` is SHA-256 of either."""

    by_ticket: bool
    digest: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, user: User, *, by_ticket: bool) -> Credential:
        """Return what a login just now has shown."""
        secret = user.ticket_salt if by_ticket else user.password.encode(errors="surrogatepass")
        return cls(by_ticket, hashlib.sha256(secret).digest())

    def opens(self, user: User) -> bool:
        """Tell whether it would still let its session in."""
        return hmac.compare_digest(self.digest, self.of(user, by_ticket=self.by_ticket).digest)

    @property
    def name(self) -> str:
        """Its kind, for messages."""
        return "ticket" if self.by_ticket else "password"
