"""Who is logged in at the console: kept in memory only, by the cookie that each browser has."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.server.accounts.credential import Credential, read_credential, write_credential

if TYPE_CHECKING:
    from trionat.store.base import User

LIFETIME: Final = 12 * 3600.0
IDLE_TIME: Final = 3600.0
"""Seconds after which a login ends, in any case and when nothing is asked for."""

_MOST: Final = 1000
_MOST_OF_ACCOUNT: Final = 20
"""Logins at once; the oldest has to make room."""

_SECRET_BYTES: Final = 32


@attrs.define(eq=False)
class Login:
    """An account that has logged in. `csrf` is what its pages send with what changes something; `is_admin` is as it was when it was looked at last."""

    username: str
    account_id: int
    is_admin: bool
    credential: Credential = attrs.field(repr=False)
    csrf: str = attrs.field(repr=False)
    since: float = attrs.field(factory=trio.current_time)
    used: float = attrs.field(factory=trio.current_time)
    looked: float = attrs.field(factory=trio.current_time)

    @property
    def is_over(self) -> bool:
        """Whether it may not be used any more."""
        now = trio.current_time()
        return now - self.since >= LIFETIME or now - self.used >= IDLE_TIME

    def proves(self, csrf: str) -> bool:
        """Tell whether a request comes from its own pages."""
        return hmac.compare_digest(csrf.encode(errors="replace"), self.csrf.encode())


@attrs.define(eq=False)
class Logins:
    """All of them, by a digest of their cookie: who could read this memory would have no cookie."""

    _by_digest: dict[bytes, Login] = attrs.field(init=False, factory=lambda: {})

    def add(self, user: User) -> tuple[str, Login]:
        """Return a new cookie, and its login. What is asked for by an older one is not changed by that."""
        self._forget_old()
        of_account = [
            digest for digest, each in self._by_digest.items() if each.username == user.name
        ]
        if len(of_account) >= _MOST_OF_ACCOUNT:
            self._end(of_account[0])
        elif len(self._by_digest) >= _MOST:
            self._end(next(iter(self._by_digest)))
        cookie = secrets.token_urlsafe(_SECRET_BYTES)
        login = Login(
            username=user.name,
            account_id=user.account_id,
            is_admin=user.admin,
            credential=Credential.of(user, by_ticket=False),
            csrf=secrets.token_urlsafe(_SECRET_BYTES),
        )
        self._by_digest[_digest(cookie)] = login
        return cookie, login

    def find(self, cookie: str, *, counts: bool = True) -> Login | None:
        """Return whose cookie it is, and count it as used if that `counts`; None: it never was one, or is over."""
        login = self._by_digest.get(_digest(cookie))
        if login is None:
            return None
        if login.is_over:
            self._end(_digest(cookie))
            return None
        if counts:
            login.used = trio.current_time()
        return login

    def end_by(self, cookie: str) -> None:
        """End the one of that cookie, if there is one."""
        if _digest(cookie) in self._by_digest:
            self._end(_digest(cookie))

    def end(self, login: Login) -> None:
        """End one."""
        for digest, each in list(self._by_digest.items()):
            if each is login:
                self._end(digest)

    def write(self) -> dict[str, dict[str, Any]]:
        """Return all of them, for another process of this server to go on with."""
        now = trio.current_time()
        return {
            digest.hex(): {
                "username": login.username,
                "account_id": login.account_id,
                "is_admin": login.is_admin,
                "credential": write_credential(login.credential),
                "csrf": login.csrf,
                "since": now - login.since,
                "used": now - login.used,
            }
            for digest, login in self._by_digest.items()
            if not login.is_over
        }

    def read(self, values: dict[str, dict[str, Any]]) -> None:
        """Go on with what another process has written."""
        now = trio.current_time()
        for digest, each in values.items():
            credential = read_credential(each["credential"])
            if credential is not None:
                self._by_digest[bytes.fromhex(digest)] = Login(
                    username=each["username"],
                    account_id=each["account_id"],
                    is_admin=each["is_admin"],
                    credential=credential,
                    csrf=each["csrf"],
                    since=now - each["since"],
                    used=now - each["used"],
                    looked=float("-inf"),
                )

    def _forget_old(self) -> None:
        for digest, login in list(self._by_digest.items()):
            if login.is_over:
                self._end(digest)

    def _end(self, digest: bytes) -> None:
        del self._by_digest[digest]


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode(errors="replace")).digest()
