"""Whether a client tries again when it has no session, and when."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import IdentityError, PeerError, RefusedError, SessionOverError
from trionat.protocol.messages import CloseCode, RefusalCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_AGAIN: Final = True
_FINAL: Final = False

_AFTER_REFUSAL: Final[Mapping[str, bool]] = {
    RefusalCode.AUTH_FAILED: _FINAL,
    RefusalCode.ACCOUNT_EXPIRED: _FINAL,
    RefusalCode.PORT_NOT_OFFERED: _FINAL,
    RefusalCode.NAME_NOT_OFFERED: _FINAL,
    RefusalCode.TOO_MANY_SERVICES: _FINAL,
    RefusalCode.UNSUPPORTED_VERSION: _FINAL,
    RefusalCode.EVICTED: _FINAL,
    RefusalCode.KICKED: _FINAL,
    RefusalCode.FULL: _AGAIN,
    RefusalCode.TOO_MANY_SESSIONS: _AGAIN,
    RefusalCode.QUOTA_EXCEEDED: _AGAIN,  # at the latest in the next month
    RefusalCode.PORT_TAKEN: _AGAIN,
    RefusalCode.NAME_TAKEN: _AGAIN,
    RefusalCode.STORE_UNAVAILABLE: _AGAIN,
    RefusalCode.DRAINING: _AGAIN,
    RefusalCode.BANNED: _AGAIN,
    RefusalCode.UNKNOWN_SESSION: _AGAIN,
}
"""What follows when the server does not let the client in. A code that is not here is a newer server's: again."""

_AFTER_END: Final[Mapping[str, bool]] = {
    CloseCode.EVICTED: _FINAL,
    CloseCode.KICKED: _FINAL,
    CloseCode.ACCOUNT_EXPIRED: _FINAL,
    CloseCode.ACCOUNT_REMOVED: _FINAL,
    CloseCode.QUOTA_EXCEEDED: _AGAIN,
    CloseCode.STOPPED: _AGAIN,
    CloseCode.PROTOCOL: _AGAIN,
    CloseCode.TIMEOUT: _AGAIN,
}
"""What follows when the server ends a session that was up; as above for a code that is not here."""

# The first try after a loss comes at once, the next after half a second, then twice as long each time, never more than 5 s
# apart; a random half of it is taken off, so that 500 clients do not come back in one moment. The time that a try hung counts: it
# was asking all the while, and who waits on top of it would be late when the network is back. A session that was up for a
# second counts as one that had worked: however often it is lost, that makes no more than a try a second.
_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 5.0
_WORKED_AFTER: Final = 1.0


def is_final(problem: PeerError, *, connected_before: bool) -> bool:
    """Tell whether to give up. `connected_before`: this client has had a session since it was started."""
    match problem:
        case RefusedError(code=code):
            return _AFTER_REFUSAL.get(code, _AGAIN) == _FINAL
        case SessionOverError(code=code):
            return _AFTER_END.get(code, _AGAIN) == _FINAL
        case IdentityError():
            # Later, it may be a hotel's network that answers for everybody: keep asking, and say nothing to it.
            return not connected_before
        case _:
            return False


def foremost(problems: Iterable[PeerError]) -> PeerError:
    """Return what to decide by: the server's own words; a lost connection beside them is only their consequence."""
    return min(
        problems,
        key=lambda problem: (
            not isinstance(problem, RefusedError | SessionOverError | IdentityError)
        ),
    )


@attrs.define
class Backoff:
    """How long to wait before the next try, which depends on how many have failed in a row."""

    _failures: int = attrs.field(init=False, default=0)

    def after(self, *, tried_for: float, up_for: float | None) -> float:
        """Return how long to wait after a session that lasted `tried_for` and was up for `up_for`, None: never. In seconds."""
        if up_for is not None and up_for >= _WORKED_AFTER:
            self._failures = 0
        longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._failures, 10))
        delay = longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        if up_for is None:
            delay = max(0.0, delay - tried_for)
        elif not self._failures:
            delay = 0.0
        self._failures += 1
        return delay
