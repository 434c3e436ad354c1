"""By what a session was let in: kept to notice that it is void by now."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from trionat.errors import StoreError
from trionat.store.passwords import is_hashed, verify_password

if TYPE_CHECKING:
    from trionat.store.base import User


@attrs.frozen
class Credential:
    """What a login has shown, as the store had it at that moment.

    A ticket follows from the account's salt, a password is what the store holds of it; `digest` is SHA-256 of either.

    A password that the store holds in plain text may be replaced by its hash at any time: by a login here, by another server, by
    an administrator who hashes the whole table. Nothing but the password itself tells such a hash from that of a new one. So `plain`
    has it for as long as the store does, which hands it out at every look anyway, and is None otherwise.

    `expires_at` (aware) is when a ticket that was narrowed is void, None: not before its account.
    """

    by_ticket: bool
    digest: bytes = attrs.field(repr=False)
    plain: str | None = attrs.field(repr=False, default=None)
    expires_at: datetime | None = None

    @classmethod
    def of(cls, user: User, *, by_ticket: bool, expires_at: datetime | None = None) -> Credential:
        """Return what a login has shown that was checked against this account."""
        secret = user.ticket_salt if by_ticket else user.password.encode(errors="surrogatepass")
        plain = None if by_ticket or is_hashed(user.password) else user.password
        return cls(by_ticket, hashlib.sha256(secret).digest(), plain, expires_at)

    def opens(self, user: User) -> bool:
        """Tell whether the account still has what was shown; where it has not, `renewed` knows whether it is void."""
        return hmac.compare_digest(self.digest, self.of(user, by_ticket=self.by_ticket).digest)

    def may_be_renewed(self, user: User) -> bool:
        """Tell whether only the password itself can say if what the account has by now still lets the session in."""
        return self.plain is not None and is_hashed(user.password)

    async def renewed(self, user: User) -> Credential | None:
        """Return the credential after a change of the account, or None where it would not let its session in any more.

        Takes some 25 ms where the password is hashed by now, and no time otherwise.
        """
        if self.opens(user):
            return self
        if self.plain is None or not self.may_be_renewed(user):
            return None
        try:
            same = await verify_password(user.password, self.plain)
        except StoreError:  # the hash is damaged: nobody can log in by it
            return None
        return self.of(user, by_ticket=False, expires_at=self.expires_at) if same else None

    @property
    def name(self) -> str:
        """Its kind, for messages."""
        return "ticket" if self.by_ticket else "password"


def write_credential(credential: Credential | None) -> dict[str, Any] | None:
    """Write what a login has shown."""
    if credential is None:
        return None
    return {
        "by_ticket": credential.by_ticket,
        "digest": credential.digest.hex(),
        "plain": credential.plain,
        "expires_at": None if credential.expires_at is None else credential.expires_at.isoformat(),
    }


def read_credential(values: dict[str, Any] | None) -> Credential | None:
    """Read what a login has shown."""
    if values is None:
        return None
    expires_at = values["expires_at"]
    return Credential(
        values["by_ticket"],
        bytes.fromhex(values["digest"]),
        values["plain"],
        None if expires_at is None else datetime.fromisoformat(expires_at),
    )
