"""Whether a login is valid, and who may not try: accounts and bans together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.server.accounts.accounts import ANONYMOUS
from trionat.server.accounts.credential import Credential
from trionat.server.accounts.scope import Scope
from trionat.store.base import Limits

if TYPE_CHECKING:
    from datetime import datetime

    from trionat.server.accounts.accounts import Accounts
    from trionat.server.admission.bans import Bans


@attrs.frozen(kw_only=True)
class Identity:
    """As whom a client has logged in, with what, and what its user may have. Where nobody has to log in, all are `ANONYMOUS`.

    `caveats` are those of its ticket, which are all known here. `expires_at` (aware) is when its account, or its ticket before that, is void, as known at the login.
    """

    username: str = ANONYMOUS
    account_id: int = 0
    limits: Limits = attrs.field(factory=Limits)
    credential: Credential | None = None
    caveats: tuple[str, ...] = ()
    expires_at: datetime | None = None

    @property
    def scope(self) -> Scope:
        """What the client may claim."""
        return Scope.of(self.limits, self.caveats)


class Authenticator(ABC):
    """Checks logins."""

    @abstractmethod
    async def authenticate(
        self,
        host: str,
        username: str,
        *,
        password: str | None,
        token: bytes | None,
        caveats: tuple[str, ...] = (),
    ) -> Identity:
        """Return who that is, at an address; `token` is a ticket's with these `caveats`, and with one the password does not count.

        A failure may take seconds, and so may waiting for a turn: see `Bans`.

        Raises:
            RefusedError: the credentials open no account, or are not tried.
        """


@attrs.define(eq=False)
class LocalAuthenticator(Authenticator):
    """Checks them in this process."""

    accounts: Accounts
    bans: Bans

    async def authenticate(
        self,
        host: str,
        username: str,
        *,
        password: str | None,
        token: bytes | None,
        caveats: tuple[str, ...] = (),
    ) -> Identity:
        """See `Authenticator`."""
        tries_password = token is None and self.accounts.store is not None
        async with self.bans.trying(host) if tries_password else nullcontext():
            try:
                user = await self.accounts.authenticate(
                    username, password=password, token=token, caveats=caveats
                )
            except RefusedError as refusal:
                if refusal.code != RefusalCode.AUTH_FAILED:
                    raise
                failure, delay = refusal, self.bans.fail(host)
            else:
                if user is None:
                    return Identity()
                scope = Scope.of(user.limits, caveats)
                return Identity(
                    username=user.name,
                    account_id=user.account_id,
                    limits=user.limits,
                    credential=Credential.of(
                        user, by_ticket=token is not None, expires_at=scope.expires_at
                    ),
                    caveats=caveats,
                    expires_at=min(filter(None, (user.expires_at, scope.expires_at)), default=None),
                )
        await trio.sleep(delay)
        raise failure
