"""Traffic that the store does not have for certain yet: a value, and the small file that survives a crash.

The law that makes every byte count exactly once: amounts wait under their month and user; a flush takes the amounts of one
month out and gets the next number; from then on it stays as it is, number and all, until the store has answered. An attempt
whose outcome is unknown is sent again under its own number, which the store adds at most once. The file is written before the
store is asked, so that no other flush can ever get the number of one that may have arrived.

A store may refuse a flush for what is in it. Then it does not have that flush, and no earlier attempt of it either: a store
looks at the number first. So the amounts may be divided anew under new numbers. Half of them are attempted next, and the other
half waits again, until a flush of a single user is refused: its amount is set aside, and so is what is counted for that user from
then on, until `retried` gives it another chance.

Knows nothing of sessions, nor of when to do what (`server/accounts/traffic.py`). The functions on the file block.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.errors import StartupError
from trionat.store.base import Flush
from trionat.store.month import parse_month
from trionat.store.private_file import is_there, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_NAME: Final = "traffic.json"
"""In the state folder."""

_PLAIN_VERSION: Final = 1
_VERSION: Final = 2
"""A journal in which nothing is set aside is written in the older form, which older programs read as well."""

_SERVER: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def _new_name() -> str:
    return secrets.token_hex(16)


@attrs.frozen(kw_only=True)
class Journal:
    """What one server has counted and does not know to be in the store.

    `server` is its random name, a new one with each start, and `number` that of its last flush, which is `attempted` as long as
    its outcome is unknown.
    `waiting` has bytes by month (`2026-11`, UTC) and user, and so has `set_aside`, of users whose traffic the store refuses.
    So its size follows the number of users, not of sessions.
    """

    server: str = attrs.field(factory=_new_name)
    number: int = 0
    attempted: Flush | None = None
    waiting: Mapping[str, Mapping[str, int]] = attrs.field(factory=lambda: {})
    set_aside: Mapping[str, Mapping[str, int]] = attrs.field(factory=lambda: {})

    @property
    def refused_users(self) -> set[str]:
        """The users of whom something is set aside."""
        return {user for amounts in self.set_aside.values() for user in amounts}

    def counted(self, month: str, amounts: Mapping[str, int]) -> Journal:
        """Return the journal with these bytes, by user, added to what waits, or to what is set aside of the same user."""
        if not amounts:
            return self
        refused = self.refused_users
        aside = {user: amount for user, amount in amounts.items() if user in refused}
        waits = {user: amount for user, amount in amounts.items() if user not in refused}
        return attrs.evolve(
            self,
            waiting=_added(self.waiting, month, waits),
            set_aside=_added(self.set_aside, month, aside),
        )

    def attempt(self) -> Journal:
        """Return the journal with something to send as `attempted`: what is so already, else the oldest month that waits."""
        if self.attempted is not None or not self.waiting:
            return self
        month = min(self.waiting)
        number = self.number + 1
        return attrs.evolve(
            self,
            number=number,
            attempted=Flush(
                server=self.server, number=number, month=month, amounts=self.waiting[month]
            ),
            waiting={other: amounts for other, amounts in self.waiting.items() if other != month},
        )

    def settled(self) -> Journal:
        """Return the journal when the attempted flush is known to be in the store."""
        return attrs.evolve(self, attempted=None)

    def refused(self) -> Journal:
        """Return the journal when the store refused the attempted flush for its data: the first half of it is attempted now.

        The flush of a single user is set aside; nothing is attempted then.
        """
        flush = self.attempted
        if flush is None:
            return self
        if len(flush.amounts) <= 1:
            set_aside = _added(self.set_aside, flush.month, flush.amounts)
            return attrs.evolve(self, attempted=None, set_aside=set_aside)
        users = list(flush.amounts)
        first, rest = users[: len(users) // 2], users[len(users) // 2 :]
        number = self.number + 1
        return attrs.evolve(
            self,
            number=number,
            attempted=attrs.evolve(
                flush, number=number, amounts={user: flush.amounts[user] for user in first}
            ),
            waiting=_added(self.waiting, flush.month, {user: flush.amounts[user] for user in rest}),
        )

    def retried(self) -> Journal:
        """Return the journal when what was set aside waits again, to be tried once more."""
        if not self.set_aside:
            return self
        waiting = self.waiting
        for month, amounts in self.set_aside.items():
            waiting = _added(waiting, month, amounts)
        return attrs.evolve(self, waiting=waiting, set_aside={})

    def renamed(self) -> Journal:
        """Return the journal of a server with a new name, whose attempted flush is its first; nothing is left out."""
        new = _new_name()
        attempted = self.attempted and attrs.evolve(self.attempted, server=new, number=1)
        return attrs.evolve(self, server=new, number=1 if attempted else 0, attempted=attempted)

    def kept(self, month: str | None = None) -> Counter[str]:
        """Return the bytes by user, in that month or in all, that the store does not have: all but the attempted ones."""
        found: Counter[str] = Counter()
        for one, amounts in (*self.waiting.items(), *self.set_aside.items()):
            if month in (None, one):
                found.update(amounts)
        return found

    def unsettled(self, month: str | None = None) -> dict[str, int]:
        """Return the bytes by user, in that month or in all, that the store may not have."""
        found = self.kept(month)
        if self.attempted is not None and month in (None, self.attempted.month):
            found.update(self.attempted.amounts)
        return dict(found)


def load_journal(folder: Path) -> Journal:
    """Return the journal of a state folder; a new one, which is not on the disk yet, where there is none. Blocks.

    Whole at any moment, also while a server runs on that folder.

    Raises:
        StartupError: It cannot be read, or is damaged: it is not thrown away, since traffic may be in it.
    """
    path = folder / FILE_NAME
    if not is_there(path):
        return Journal()
    try:
        return _decode(json.loads(read_private(path)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise StartupError(
            f"{path}: the traffic that waits for the store cannot be read ({type(exc).__name__}: {exc}): restore the file,"
            " or move it away, which loses what waits in it"
        ) from exc


def save_journal(folder: Path, journal: Journal) -> None:
    """Put the journal on the disk, in place of the old one (mode 0600). Blocks.

    Raises:
        StartupError: It cannot be written; the old one is untouched.
    """
    flush = journal.attempted
    content = {
        "version": _VERSION if journal.set_aside else _PLAIN_VERSION,
        "server": journal.server,
        "number": journal.number,
        "attempted": flush and {"month": flush.month, "amounts": dict(flush.amounts)},
        "waiting": {month: dict(amounts) for month, amounts in journal.waiting.items()},
    }
    if journal.set_aside:
        content["set_aside"] = {
            month: dict(amounts) for month, amounts in journal.set_aside.items()
        }
    write_private(folder / FILE_NAME, json.dumps(content, indent=1).encode())


def _decode(content: Any) -> Journal:
    if (version := content["version"]) not in (_PLAIN_VERSION, _VERSION):
        raise ValueError(f"it is of version {version}, and this trionat knows {_VERSION}")
    server, number, attempted = content["server"], content["number"], content["attempted"]
    _check(isinstance(server, str) and _SERVER.fullmatch(server), "name of a server")
    _check(_is_amount(number) and (number > 0 or attempted is None), "number of a flush")
    flush = attempted and Flush(
        server=server,
        number=number,
        month=_month(attempted["month"]),
        amounts=_amounts(attempted["amounts"]),
    )
    return Journal(
        server=server,
        number=number,
        attempted=flush,
        waiting=_months(content["waiting"]),
        set_aside=_months(content["set_aside"] if version == _VERSION else {}),
    )


def _added(
    months: Mapping[str, Mapping[str, int]], month: str, amounts: Mapping[str, int]
) -> Mapping[str, Mapping[str, int]]:
    """Return amounts by month and user with these added to those of one month."""
    if not amounts:
        return months
    return {**months, month: dict(Counter(months.get(month, {})) + Counter(amounts))}


def _months(value: Any) -> dict[str, dict[str, int]]:
    return {_month(month): _amounts(by_user) for month, by_user in value.items()}


def _month(value: Any) -> str:
    _check(isinstance(value, str), "month")
    return parse_month(value)


def _amounts(value: Any) -> dict[str, int]:
    amounts = dict(value.items())
    _check(all(map(_is_amount, amounts.values())), "number of bytes")
    return amounts


def _is_amount(value: object) -> bool:
    return type(value) is int and value >= 0


def _check(good: object, what: str) -> None:
    if not good:
        raise ValueError(f"no {what} where there has to be one")
