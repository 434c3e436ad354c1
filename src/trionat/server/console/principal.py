"""Who asks, and what he may."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from datetime import datetime

    from trionat.server.console.logins import Login


class Permission(Enum):
    """What an operation needs. The words are those of tokens (`trionat token add --scope`)."""

    OPEN = "open"
    """Nobody needs to be logged in."""

    METRICS = "metrics"
    READ = "read"
    MANAGE = "manage"


READS: Final = frozenset({Permission.READ, Permission.METRICS})
EVERYTHING: Final = frozenset({Permission.MANAGE, *READS})
OF_SCOPE: Final = {
    Permission.METRICS.value: frozenset({Permission.METRICS}),
    Permission.READ.value: READS,
    Permission.MANAGE.value: EVERYTHING,
}
"""What a token of each scope permits."""


@attrs.frozen(kw_only=True)
class Principal:
    """An account, and by what it has shown that it is one: a `login` (a cookie), or a token, which is called `token` and may end at `expires_at` (aware)."""

    username: str
    account_id: int
    is_admin: bool
    permissions: frozenset[Permission] = EVERYTHING
    login: Login | None = None
    token: str | None = None
    expires_at: datetime | None = None
    is_remembered: bool = attrs.field(default=False, eq=False)
    """Whether the store cannot be asked now, so that this is as it was found last: enough to look, and not to change anything."""

    def may_see(self, username: str) -> bool:
        """Tell whether what belongs to an account is for these eyes."""
        return self.is_admin or username == self.username

    def require_sight(self, username: str, what: str) -> None:
        """Check that what belongs to an account is for these eyes; for all others it is not there.

        Raises:
            Problem: it is not.
        """
        if not self.may_see(username):
            raise Problem(Code.NOT_FOUND, f"there is no {what}")


class TokenAuthenticator(Protocol):
    """Knows whose a Bearer token is."""

    async def find(self, token: str) -> Principal | None:
        """Return who has it; None: nobody, and whoever shows it guesses.

        Raises:
            Problem: it is void, and no guess.
            StoreUnavailableError: it cannot be asked for now.
        """
        ...
