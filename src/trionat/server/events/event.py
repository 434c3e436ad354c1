"""What may happen at a server: one function for each type of event, whose arguments are its fields.

Types and fields are stable: receivers know them. A new field may come, and none goes. None of them ever holds a secret.

They are functions and no classes since every process imports them, also where nobody listens: twenty classes take as many milliseconds.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Data: TypeAlias = "Mapping[str, Any]"

Happening: TypeAlias = "tuple[str, Data]"
"""The type of an event, and its fields."""

TEST: Final = "test"
"""The type of what `trionat events test` sends."""

DROPPED: Final = "events.dropped"
"""The type of what stands for events that went before a receiver took them."""

LEFT_OUT: Final = "events.left_out"
"""The type of what stands for events of one account, or for bans, of which there were too many in a short time (`left_out`)."""


def left_out(
    *, user: str | None, count: int, types: Mapping[str, int], seconds: float
) -> Happening:
    """There were so many events more within so many seconds, by type: of clients of an account, or bans (`user` is None)."""
    return LEFT_OUT, locals()


def session_up(
    *, uid: int, user: str, client: str, address: str, points: tuple[int | str, ...]
) -> Happening:
    """A client is there that was not: the number of its session at this server, its account, what it calls itself, from where it comes, its visit ports and names."""
    return "session.up", locals()


def session_back(
    *, uid: int, user: str, client: str, address: str, points: tuple[int | str, ...]
) -> Happening:
    """A client that was lost, or that has begun a new connection, has its ports again."""
    return "session.back", locals()


def session_lost(
    *,
    uid: int,
    user: str,
    client: str,
    address: str,
    points: tuple[int | str, ...],
    code: str,
    reason: str,
    seconds: float,
    relayed: int,
) -> Happening:
    """A client is lost, and its ports are kept for a while. Its session has lasted so many seconds, and relayed so many bytes."""
    return "session.lost", locals()


def session_ended(
    *,
    uid: int,
    user: str,
    client: str,
    address: str,
    points: tuple[int | str, ...],
    code: str,
    reason: str,
    seconds: float,
    relayed: int,
) -> Happening:
    """A client has left, was sent away, or did not come back in time (`code` is gone then): its ports are free."""
    return "session.ended", locals()


def quota_warning(*, user: str, month: str, used: int, quota: int) -> Happening:
    """An account has used 80 % of its monthly quota; both in bytes, the month as 2026-11 (UTC). Told once a month."""
    return "quota.warning", locals()


def quota_reached(*, user: str, month: str, used: int, quota: int) -> Happening:
    """An account has used up its monthly quota, and its sessions end. Told once a month."""
    return "quota.reached", locals()


def ban(*, network: str, failures: int, seconds: float) -> Happening:
    """Too many logins have failed from an address (of IPv6: a /64), and no password is tried from there for so many seconds."""
    return "ban", locals()


def ban_lifted(*, network: str, reason: str) -> Happening:
    """A ban is over: its time, or somebody has lifted it."""
    return "ban.lifted", locals()


def certificate_renewed(*, name: str, ends: str) -> Happening:
    """There is a new certificate for a name, until that day."""
    return "certificate.renewed", locals()


def certificate_failing(
    *, name: str, code: str, reason: str, failures: int, next_try: str, ends: str | None
) -> Happening:
    """A certificate was not got: why, how often in a row, when it is tried again, and until when the old one is good, if there is one."""
    return "certificate.failing", locals()


def certificate_expiring(*, name: str, ends: str, own: bool, reason: str) -> Happening:
    """A certificate runs out soon, and somebody has to do something; `own` says that it is the operator's. Told once a day."""
    return "certificate.expiring", locals()


def node_up(*, node: str, address: str) -> Happening:
    """A node has come into the cluster."""
    return "node.up", locals()


def node_gone(*, node: str, address: str) -> Happening:
    """A node of the cluster has left, or died."""
    return "node.gone", locals()


def account_added(*, user: str, by: str, what: str) -> Happening:
    """There is a new account, and who has made it."""
    return "account.added", locals()


def account_changed(*, user: str, by: str, what: str) -> Happening:
    """An account was changed: who has done it, and what (password, expiry, limits, tickets)."""
    return "account.changed", locals()


def account_removed(*, user: str, by: str, what: str) -> Happening:
    """An account is gone."""
    return "account.removed", locals()


def account_expired(*, user: str, expires_at: str) -> Happening:
    """Somebody is here, or wants to be, with an account that has expired. Told once."""
    return "account.expired", locals()


def server_up(*, version: str, control: str) -> Happening:
    """The server takes clients."""
    return "server.up", locals()


def server_stopping(*, grace: float) -> Happening:
    """The server was told to stop: nobody new is let in, and visitors may finish for so many seconds."""
    return "server.stopping", locals()


KINDS: Final[Mapping[str, Callable[..., Happening]]] = {
    "session.up": session_up,
    "session.lost": session_lost,
    "session.back": session_back,
    "session.ended": session_ended,
    "quota.warning": quota_warning,
    "quota.reached": quota_reached,
    "ban": ban,
    "ban.lifted": ban_lifted,
    "certificate.renewed": certificate_renewed,
    "certificate.failing": certificate_failing,
    "certificate.expiring": certificate_expiring,
    "node.up": node_up,
    "node.gone": node_gone,
    "account.added": account_added,
    "account.changed": account_changed,
    "account.removed": account_removed,
    "account.expired": account_expired,
    "server.up": server_up,
    "server.stopping": server_stopping,
}
"""All that there are, by type."""

_ONCE: Final = {
    "quota.warning": ("user", "month", "quota"),
    "quota.reached": ("user", "month", "quota"),
    "account.expired": ("user", "expires_at"),
}
"""What is told once, and the fields in which another one would differ."""


@attrs.frozen
class Event:
    """Something that has happened; `time` is in seconds since 1970, `number` counts those of one server without a gap."""

    number: int
    time: float
    type: str
    server: str
    data: Data

    @property
    def identity(self) -> tuple[str, ...] | None:
        """What is the same of another event that would tell the same; None: it is told each time."""
        if (fields := _ONCE.get(self.type)) is None:
            return None
        return (self.type, *(str(self.data.get(field)) for field in fields))

    def values(self) -> dict[str, Any]:
        """Return what is made JSON of."""
        return {
            "number": self.number,
            "time": written_time(self.time),
            "type": self.type,
            "server": self.server,
            "data": self.data,
        }

    def to_json(self) -> bytes:
        """Return what is sent and kept: one line without its end, in ASCII."""
        return json.dumps(self.values(), separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, line: bytes) -> Event:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            values: dict[str, Any] = json.loads(line)
            number, type_, data = values["number"], values["type"], values["data"]
            moment = datetime.fromisoformat(values["time"]).timestamp()
            server = str(values["server"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(f"no event: {error}") from error
        if type(number) is not int or not isinstance(type_, str) or not isinstance(data, dict):
            raise ValueError("no event: a field is of another kind")
        return cls(number, moment, type_, server, cast("dict[str, Any]", data))


def written_time(moment: float) -> str:
    """Write a moment in ISO 8601, UTC, with milliseconds."""
    return (
        datetime.fromtimestamp(moment, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
