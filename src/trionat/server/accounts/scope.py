"""What a login may claim: by the limits of its account, and by the caveats of the ticket that it came with.

Owns what caveats mean. There are two:

| caveat | meaning |
| --- | --- |
| `only names=PATTERN,… ports=PORTS` | no other names and visit ports than these; `names=` or `ports=` may be missing, and then it may have none of them |
| `until 2026-11-29T12:00:00Z` | void from that second on, UTC |

All of them hold together. Whatever else somebody has written behind the key of a ticket is refused, since nobody here can keep to it.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import attrs

from trionat.config.values import PORTS
from trionat.hostnames import (
    RESERVED_LABELS,
    label_below,
    matches,
    parse_pattern,
    whole_name,
)
from trionat.store.base import Limits
from trionat.store.expiry import format_time
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_PORTS: Final = 1024
"""Ports of one caveat. Chosen, as that of an account: each login looks for every port of the server among them."""

_UNTIL: Final = re.compile(
    r"until ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})Z", re.ASCII
)
_ONLY: Final = re.compile(
    r"only(?: names=(?P<names>[^ ]+))?(?: ports=(?P<ports>[0-9,-]+))?", re.ASCII
)
_IDENTITY_CHARACTERS: Final = 16
_TOLD: Final = 5
"""Patterns of names that a refusal shows."""


@attrs.frozen(kw_only=True)
class Only:
    """The caveat of what may be claimed: these patterns of names and these visit ports. `str()` is its text."""

    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = f" names={','.join(self.names)}" if self.names else ""
        ports = f" ports={PORTS.write(self.ports).replace(' ', '')}" if self.ports else ""
        return f"only{names}{ports}"


def until(moment: datetime) -> str:
    """Return the caveat of a ticket that is void from this moment on (aware); parts of a second are cut off."""
    return f"until {moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z"


def read_caveat(text: str) -> Only | datetime:
    """Read a caveat: what may be claimed, or when that ends (aware).

    Raises:
        ValueError: Nobody here knows what it means.
    """
    try:
        if found := _UNTIL.fullmatch(text):
            return datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        if found := _ONLY.fullmatch(text):
            only = _read_only(found["names"] or "", found["ports"] or "")
            if str(only) == text:
                return only
    except ValueError:
        pass
    raise ValueError(f"the ticket has a restriction that is not known here: {quoted(text)}")


def _read_only(names: str, ports: str) -> Only:
    numbers: list[int] = []
    for part in ports.split(",") if ports else ():
        numbers += PORTS.read(part)
        if 0 in numbers or len(numbers) > MOST_PORTS:  # at once: one part may have 65535
            raise ValueError("no such ports")
    return Only(
        names=tuple(parse_pattern(name) for name in names.split(",")) if names else (),
        ports=tuple(numbers),
    )


@attrs.frozen(kw_only=True)
class Scope:
    """What a login may claim; made by `of`. `account` are the limits of its account, `caveats` those of its ticket, which `only` and `expires_at` say as values."""

    account: Limits = attrs.field(factory=Limits)
    caveats: tuple[str, ...] = ()
    only: tuple[Only, ...] = ()
    expires_at: datetime | None = None

    @classmethod
    def of(cls, account: Limits, caveats: Sequence[str]) -> Self:
        """Return the scope of an account and a ticket with these caveats.

        Raises:
            ValueError: A caveat is not known.
        """
        read = [read_caveat(caveat) for caveat in caveats]
        return cls(
            account=account,
            caveats=tuple(caveats),
            only=tuple(each for each in read if isinstance(each, Only)),
            expires_at=min((each for each in read if isinstance(each, datetime)), default=None),
        )

    @property
    def limits(self) -> Limits:
        """The account's limits, with no other visit ports than the ticket is for."""
        ports = self.account.visit_ports
        for only in self.only:
            ports = only.ports if ports is None else tuple(sorted({*ports} & {*only.ports}))
        return self.account if ports is None else attrs.evolve(self.account, visit_ports=ports)

    @property
    def who(self) -> str:
        """What it is that may not have more: the account or the ticket."""
        return "ticket" if self.only else "account"

    @property
    def permits_nothing(self) -> bool:
        """Whether there is neither a name nor a port left, as far as caveats can tell without the names that are asked for."""
        return self.limits.visit_ports == () and any(not only.names for only in self.only)

    def is_expired(self, now: datetime) -> bool:
        """Tell whether the ticket is void at `now` (aware); whether the account is, is another question."""
        return self.expires_at is not None and now >= self.expires_at

    def refusal_of_port(self, port: int) -> str | None:
        """Return why this visit port may not be claimed, None where it may."""
        allowed = self.limits.visit_ports
        if allowed is None or port in allowed:
            return None
        return f"visit port {port} is not one that this {self.who} may have ({PORTS.write(sorted(allowed)) or 'none'})"

    def refusal_of_name(self, name: str, domain: str) -> str | None:
        """Return why this name may not be claimed, None where it may.

        Args:
            name: A label, or a whole name, as `parse_name` returns it.
            domain: The whole name below which labels stand at this server.
        """
        whole, label, patterns = (
            whole_name(name, domain),
            label_below(name, domain),
            self.account.names,
        )
        if patterns is None:
            if label is None:
                first = whole.partition(".")[0]
                return (
                    f"{whole} is not right below {domain}, and this account may have no other names: write {first} alone for"
                    f" {first}.{domain}, or have the server's operator allow it (trionat user limit NAME --names {whole})"
                )
        elif not _any_matches(patterns, whole, domain):
            return (
                f"{whole} is not one of the names that this account may have ({_listed(patterns)})"
            )
        if label in RESERVED_LABELS and whole not in {
            whole_name(each, domain) for each in patterns or ()
        }:
            return f"{whole} is reserved: only an account that is limited to it by name may have it"
        for only in self.only:
            if not _any_matches(only.names, whole, domain):
                return f"{whole} is not one of the names that this ticket is for ({_listed(only.names)})"
        return None

    def key_of(self, name: str) -> str:
        """Return which of its user's clients one is that calls itself so, or which of its user's groups it means by that name.

        With another ticket, or a password, it is another one: so nobody whose ticket is for less evicts a client, or gets its
        visitors, by taking its identity, or by joining its group. Of two narrowed tickets, it does not matter until when they are good.
        """
        if not self.caveats:
            return name
        digest = hashlib.sha256("\n".join(map(str, self.only)).encode()).hexdigest()
        return f"{name}#{digest[:_IDENTITY_CHARACTERS]}"


def told_expiry(user: str, expires_at: datetime) -> str:
    """Return what to tell a client whose ticket is void by now."""
    return f"this ticket of {user} was good until {format_time(expires_at)}: ask for another one"


def _listed(patterns: Sequence[str]) -> str:
    more = f" and {len(patterns) - _TOLD} more" if len(patterns) > _TOLD else ""
    return ", ".join(patterns[:_TOLD]) + more or "none"


def _any_matches(patterns: Sequence[str], whole: str, domain: str) -> bool:
    return any(matches(whole_name(pattern, domain), whole) for pattern in patterns)
