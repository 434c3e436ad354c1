"""When something ends that is made or changed by the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.server.console.problem import Code, Problem
from trionat.server.console.refusals import valid
from trionat.store.expiry import NEVER, parse_expiry

if TYPE_CHECKING:
    from datetime import datetime

    from trionat.server.console.principal import Principal

WHEN: Final = "a moment (ISO 8601), a day (valid through it, UTC), 30d, 12h or never"
"""What it may be, for the document."""


def read_expiry(
    text: str | None, now: datetime, *, field: str = "expires_at", must_be_later: bool = False
) -> datetime | None:
    """Read when something ends; null is never.

    Raises:
        Problem: it is no such time, or over already where it must not be.
    """
    with valid(field):
        moment = parse_expiry(NEVER if text is None else text, now)
        if must_be_later and moment is not None and moment <= now:
            raise ValueError("this is over already")
    return moment


def check_end(
    principal: Principal, what: str, end: datetime | None, *, field: str = "expires_at"
) -> None:
    """Check that what somebody gets by a token does not outlive that: else one that was meant for a day would be good for ever.

    Raises:
        Problem: it would.
    """
    last = principal.expires_at
    if last is not None and (end is None or end > last):
        raise Problem(
            Code.INVALID,
            f"{what} that is made by a token may not outlive it, which ends at {last:%Y-%m-%dT%H:%M:%SZ}",
            field=field,
        )
