"""When a name's certificate is due: a value that is kept in a file, and plain rules. Waits for nothing, orders nothing.

All moments are seconds since 1970, since they have to mean the same after a restart. So a clock that is set must do no harm: what has failed is
remembered as a moment and a pause, and a moment in the future counts as one long ago.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection

    from trionat.server.certificates.certificate import Certificate

DAY: Final = 86_400.0

FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 3600.0
"""Seconds after the first failure, and at most; it doubles from one to the next."""

LONGEST_WISH: Final = 7 * DAY
"""How far off the authority may put us: the longest of Let's Encrypt's limits is for a week."""

LOUD_BEFORE: Final = 21 * DAY
"""A certificate that is not renewed so long before its end is an error; a third of its life, where that is less."""

REST: Final = 6 * 3600.0
"""Seconds in which a new certificate is not renewed, whatever the authority says: it may say "now" for ever."""

SHORTEST_LOOK: Final = 3600.0
LONGEST_LOOK: Final = DAY
USUAL_LOOK: Final = 6 * 3600.0
"""Seconds until the authority is asked again when to renew: at least, at most, and if it does not say (RFC 9773 section 4.3)."""

NEW_SHARE: Final = 0.8
RETRY_SHARE: Final = 0.5
"""Of the orders of a day, how many names may use that have no certificate yet, and those of them that have failed before. So new names cannot let old ones
run out, and names that always fail (30 times a day) cannot take the place of new ones."""

ACCOUNT_SHARE: Final = 0.1
FEWEST_OF_ACCOUNT: Final = 5
"""Of the orders of a day, how many the names of one account may use that have no certificate yet, and how many at least. So who takes a name, has its certificate and
takes the next leaves some to the others."""

_MOST_NAMES: Final = 20_000
_MOST_ORDERS: Final = 20_000


def pause_after(failures: int) -> float:
    """Return how many seconds to wait after so many failures in a row, from 1 on: 1, 2, 4, up to 60 minutes."""
    return min(FIRST_PAUSE * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE)


def most_of_account(most: int) -> int:
    """Return how many orders of the `most` within a day one account may have for names that have no certificate yet."""
    return max(int(most * ACCOUNT_SHARE), FEWEST_OF_ACCOUNT)


def renew_at(certificate: Certificate, wish: float | None) -> float:
    """Return when to renew: when the authority wishes it, within reason, else at two thirds of the certificate's life.

    Within reason is from a rest after its beginning, `REST` or a third of its life, until five sixths of it.
    """
    if wish is None:
        return certificate.begins + certificate.life * 2 / 3
    earliest = certificate.begins + min(REST, certificate.life / 3)
    return min(max(wish, earliest), certificate.begins + certificate.life * 5 / 6)


def loud_at(certificate: Certificate) -> float:
    """Return from when on it is an error that a certificate has not been renewed."""
    return certificate.ends - min(LOUD_BEFORE, certificate.life / 3)


@attrs.define
class Record:
    """What is remembered of a name: how often in a row it has failed, when last, for how long to wait since, and why; the way to answer that has worked.

    `wish` is when the authority wants it to be renewed, `again` when to ask it next, both for the certificate that ends at `ends`.
    """

    failures: int = 0
    failed_at: float = 0.0
    pause: float = 0.0
    code: str = ""
    reason: str = ""
    method: str = ""
    ends: float = 0.0
    wish: float | None = None
    again: float = 0.0

    def wait(self, now: float) -> float:
        """Return for how many seconds it has to wait yet."""
        if not self.failures or now < self.failed_at:
            return 0.0
        return max(self.failed_at + self.pause - now, 0.0)


@attrs.define(eq=False)
class Schedule:
    """Which names have failed, and how many orders there were: of all, and of each account for names that had no certificate."""

    orders: list[float] = attrs.field(factory=lambda: [])
    records: dict[str, Record] = attrs.field(factory=lambda: {})
    accounts: dict[str, list[float]] = attrs.field(factory=lambda: {})
    _forgotten_at: float | None = attrs.field(init=False, default=None)

    def record(self, name: str) -> Record:
        """Return what is remembered of a name; it may be changed."""
        return self.records.setdefault(name, Record())

    def orders_left(self, now: float, most: int, share: float = 1.0) -> int:
        """Return how many orders there may be yet, of a share of the `most` within a day; a share is at least one."""
        self._forget_orders(now)
        return max(max(int(most * share), 1) - len(self.orders), 0)

    def orders_of_account(self, account: str, now: float) -> int:
        """Return how many orders an account has had within a day for names that had no certificate."""
        self._forget_orders(now)
        return len(self.accounts.get(account, ()))

    def _forget_orders(self, now: float) -> None:
        if now == self._forgotten_at:  # it is asked for thousands of names at once
            return
        self._forgotten_at = now
        self.orders = _within_day(self.orders, now)
        of_accounts = {name: _within_day(moments, now) for name, moments in self.accounts.items()}
        self.accounts = {name: moments for name, moments in of_accounts.items() if moments}

    def count_order(self, now: float, account: str = "") -> None:
        """One is about to be made; where it is for a name that has no certificate yet, `account` is whose name that is."""
        self.orders.append(now)
        if account:
            self.accounts.setdefault(account, []).append(now)

    def fail(
        self, name: str, now: float, code: str, reason: str, until: float | None = None
    ) -> Record:
        """A name has failed; `until` is when the authority wants to be asked again."""
        record = self.record(name)
        record.failures += 1
        record.failed_at, record.code, record.reason = now, code, reason
        record.pause = pause_after(record.failures)
        if until is not None:
            record.pause = max(record.pause, min(until - now, LONGEST_WISH))
        return record

    def succeed(self, name: str, method: str) -> None:
        """A name has a certificate now."""
        record = self.record(name)
        record.failures, record.failed_at, record.pause = 0, 0.0, 0.0
        record.code, record.reason, record.method = "", "", method

    def note_window(
        self, name: str, ends: float, now: float, wish: float | None, again: float | None
    ) -> None:
        """The authority has said when a certificate is to be renewed, or nothing; `again` is when it wants to be asked next."""
        record = self.record(name)
        record.ends, record.wish = ends, wish
        pause = USUAL_LOOK if again is None else again - now
        record.again = now + min(max(pause, SHORTEST_LOOK), LONGEST_LOOK)

    def wish(self, name: str, certificate: Certificate) -> float | None:
        """Return when the authority wants this certificate to be renewed, if it has said so."""
        record = self.records.get(name)
        return None if record is None or record.ends != certificate.ends else record.wish

    def has_to_ask(self, name: str, certificate: Certificate, now: float) -> bool:
        """Tell whether the authority has to be asked about this certificate."""
        if certificate.ends <= now:
            return False  # RFC 9773 section 4.3
        record = self.records.get(name)
        if record is None or record.ends != certificate.ends:
            return True
        return not now < record.again <= now + LONGEST_LOOK

    def forget(self, wanted: Collection[str], now: float) -> None:
        """Let go of what nobody wants any more, but for failures of the last day: who asks again must not begin anew."""
        kept = {
            name: record
            for name, record in self.records.items()
            if name in wanted or (record.failures and abs(now - record.failed_at) < DAY)
        }
        self.records = dict(list(kept.items())[-_MOST_NAMES:])

    def write(self) -> bytes:
        """Return it as the content of a file."""
        records = {name: attrs.asdict(record) for name, record in self.records.items()}
        values = {"orders": self.orders, "accounts": self.accounts, "names": records}
        return json.dumps(values, indent=1).encode()

    @classmethod
    def read(cls, content: bytes) -> Schedule:
        """Return what `write` has written.

        Raises:
            ValueError: This is something else.
        """
        try:
            found: dict[str, Any] = json.loads(content)
            orders = [float(moment) for moment in found["orders"]]
            accounts = {
                str(name): [float(moment) for moment in moments]
                for name, moments in found.get("accounts", {}).items()  # 0.1 began without it
            }
            records = {str(name): _read_record(values) for name, values in found["names"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError("it is damaged") from error
        return cls(orders, records, accounts)


def _within_day(moments: list[float], now: float) -> list[float]:
    return [moment for moment in moments if abs(now - moment) < DAY][-_MOST_ORDERS:]


def _read_record(values: dict[str, Any]) -> Record:
    wish = values["wish"]
    return Record(
        failures=int(values["failures"]),
        failed_at=float(values["failed_at"]),
        pause=min(float(values["pause"]), LONGEST_WISH),
        code=str(values["code"]),
        reason=str(values["reason"]),
        method=str(values["method"]),
        ends=float(values["ends"]),
        wish=None if wish is None else float(wish),
        again=float(values["again"]),
    )
