"""Addresses from which logins keep failing: their answers come later and later, then they are shut out for a while.

Nobody is asked who is behind an address, and many may be: a whole office, or all that a provider puts behind one. So whoever
has a session there, or had one of late, suffers least from a neighbour: connections from such an address are still heard, tunnels
and tickets work, and only passwords wait for the end of the ban. A login that succeeds forgives nothing, since whoever has an
account could try all others between his own logins.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.networks import network_of
from trionat.protocol.messages import RefusalCode
from trionat.server.events.event import ban, ban_lifted
from trionat.server.events.hub import Hub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

log = get_logger(__name__)

T = TypeVar("T")

# Seconds before the answer to the first failure, and at most; each failure that still counts doubles it. A client waits 8 s for
# an answer.
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 2.0

# Seconds after which a failure counts half. Chosen: somebody who mistypes is soon forgiven, and whoever tries for ever gets in a
# try a minute and a half with the default BanAfter.
HALF_LIFE: Final = 600.0

# Passwords that are tried at once, in all: each takes some 25 ms of one of two threads, and asks the store before. Whoever has
# got his turn waits for so many.
_MOST_TRIES: Final = 8

# Of these, from one network, so that even one from which nothing fails leaves some to the others.
_MOST_TRIES_OF_ONE: Final = 4

# Seconds that a login waits for its turn at most: its client waits 8 s for an answer.
_LONGEST_WAIT: Final = 6.0

# Networks that are remembered, those that failed last and those that had a session last; some 2 MiB each.
_MOST_NETWORKS: Final = 16_384

_OURS: Final = 2.0
"""Seconds from a failed login here to the news that all nodes ban its address, if it was the last straw. It takes milliseconds."""

_LOOK_INTERVAL: Final = 1.0
"""Seconds within which it is told that a ban is over."""

# How long a network counts as in use after its last session, in seconds. Chosen: longer than a night's restart takes.
_IN_USE_FOR: Final = 3600.0


@attrs.define(eq=False)
class _Record:
    """`score` failures, as of the moment `at`."""

    score: float = 0.0
    at: float = 0.0
    banned_until: float = float("-inf")

    def now(self) -> float:
        """What the failures count by now."""
        return self.score * math.exp2((self.at - trio.current_time()) / HALF_LIFE)


@attrs.define(eq=False)
class _Tries:
    """Passwords from one network: an event for each that waits for its turn, and how many are being tried."""

    waiting: deque[trio.Event] = attrs.field(factory=lambda: deque())
    under_way: int = 0


@attrs.define(eq=False)
class Bans:
    """Counts failed logins for each IPv4 address and each IPv6 /64 (`network_of`).

    A failure counts half after ten minutes, a quarter after twenty. When they add up to `after`, rounded, the address is banned
    for `time` seconds; what its failures still count when that is over brings the next ban nearer. `after` 0 bans nobody. There
    is no checkpoint in any of it but `trying`. `on_fail` is called with each network that fails.

    `events` is told of bans; of those that several nodes have counted for, at the one where the last login failed.
    """

    after: int
    time: float
    on_fail: Callable[[str], None] = lambda _: None
    events: Hub = attrs.field(factory=Hub, kw_only=True)
    _tries: dict[str, _Tries] = attrs.field(init=False, factory=lambda: {})
    _under_way: int = attrs.field(init=False, default=0)
    _turn_of: int = attrs.field(init=False, default=0)  # see `_standing`
    _records: dict[str, _Record] = attrs.field(init=False, factory=lambda: {})
    _sessions: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _in_use_until: dict[str, float] = attrs.field(init=False, factory=lambda: {})
    _told: set[str] = attrs.field(init=False, factory=lambda: set())  # bans, in events

    def take_limits(self, after: int, time: float) -> None:
        """These count from now on; a ban that there is ends as it was told."""
        self.after, self.time = after, time

    def shuts_out(self, host: str) -> bool:
        """Tell whether a connection from there is closed unheard: it is banned, and nobody there has a session, or had one lately."""
        if not self._records:
            return False
        network = network_of(host)
        return self._banned_for(network) > 0 and not self._is_in_use(network)

    def is_in_use(self, host: str) -> bool:
        """Tell whether somebody there has a session, or had one within the last hour."""
        return self._is_in_use(network_of(host))

    def banned(self) -> dict[str, float]:
        """Return the networks that are banned, and for how many more seconds."""
        return {
            network: seconds
            for network in self._records
            if (seconds := self._banned_for(network)) > 0
        }

    def banned_for(self, host: str) -> float:
        """Return for how many more seconds no password from there is tried; at most 0 where they are."""
        return self._banned_for(network_of(host))

    def check(self, host: str) -> None:
        """Let a password be tried, or not.

        Raises:
            RefusedError: the address is banned.
        """
        if (seconds := self._banned_for(network_of(host))) > 0:
            raise RefusedError(
                RefusalCode.BANNED,
                f"too many failed logins from this address: no password is tried for another {math.ceil(seconds)} s",
            )

    @asynccontextmanager
    async def trying(self, host: str) -> AsyncGenerator[None]:
        """Wait until it is this login's turn to have its password tried, and count it as being tried while the block runs.

        Of one network no more are tried at once than could fail before the ban, so many guesses in one moment get no further
        than one after another. Networks in use, those that have failed of late, and all others take turns, and so do the
        networks of each kind. So a flood of guesses from many networks, or of logins from a few, leaves room for everybody else. The
        block calls `fail` where it fails.

        Raises:
            RefusedError: the address is banned, perhaps since the wait began; or its turn did not come for 6 s.
        """
        self.check(host)
        network = network_of(host)
        tries = self._tries.setdefault(network, _Tries())
        turn = trio.Event()
        tries.waiting.append(turn)
        self._give_turns()
        try:
            with trio.move_on_after(_LONGEST_WAIT):
                await turn.wait()
            if not turn.is_set():
                raise RefusedError(
                    RefusalCode.STORE_UNAVAILABLE, "too many logins at once; try again"
                )
            self.check(host)
            log.debug("a password is tried", network=network, others=self._under_way - 1)
            yield
        finally:
            if turn.is_set():
                tries.under_way -= 1
                self._under_way -= 1
            else:
                tries.waiting.remove(turn)
            if not tries.waiting and not tries.under_way:
                del self._tries[network]
            self._give_turns()

    def _give_turns(self) -> None:
        while self._under_way < _MOST_TRIES and (network := self._next()) is not None:
            tries = self._tries.pop(network)
            self._tries[network] = tries  # the others come first now
            self._give_turn(tries)

    def _give_turn(self, tries: _Tries) -> None:
        tries.under_way += 1
        self._under_way += 1
        tries.waiting.popleft().set()

    def _next(self) -> str | None:
        """Return the network whose turn it is, if one waits that may have it. There are no more than `MaxHandshakes` that wait."""
        first: list[str | None] = [None, None, None]
        for network, tries in self._tries.items():
            if tries.waiting and tries.under_way < self._most_tries(network):
                standing = self._standing(network)
                first[standing] = first[standing] or network
        for standing in range(self._turn_of, self._turn_of + len(first)):
            if (chosen := first[standing % len(first)]) is not None:
                self._turn_of = (standing + 1) % len(first)
                return chosen
        return None

    def _standing(self, network: str) -> int:
        """Return 0 for a network in use, 2 for one that has failed of late, and 1 for all others."""
        if self._is_in_use(network):
            return 0
        return 2 if network in self._records and self._records[network].now() >= 0.5 else 1

    def _most_tries(self, network: str) -> int:
        """Return how many passwords from there may be tried at once."""
        if not self.after:
            return _MOST_TRIES_OF_ONE
        record = self._records.get(network)
        left = self.after if record is None else self.after - round(record.now())
        return max(1, min(left, _MOST_TRIES_OF_ONE))

    def fail(self, host: str) -> float:
        """Note a failed login; return how many seconds its answer has to wait."""
        network, now = network_of(host), trio.current_time()
        self.on_fail(network)
        record = self._record(network)
        record.score = 1 + record.now()
        record.at = now
        if 0 < self.after <= round(record.score) and record.banned_until <= now:
            record.banned_until = now + self.time
            log.warning(
                "too many failed logins: the address is banned (BanAfter, BanTime)",
                network=network,
                failures=round(record.score),
                seconds=self.time,
            )
            self._tell(network, record, self.time)
            self._refuse_waiting(network)
        return min(_LONGEST_DELAY, _FIRST_DELAY * math.exp2(min(record.score, 64) - 1))

    def ban(self, network: str, seconds: float) -> None:
        """Somebody else, who counts the same failures, has banned a network."""
        record, until = self._record(network), trio.current_time() + seconds
        if record.banned_until < until:
            if record.banned_until <= trio.current_time():
                log.warning("another node has banned an address", network=network, seconds=seconds)
                if record.score and trio.current_time() - record.at < _OURS:
                    self._tell(network, record, seconds)
            record.banned_until = until
            self._refuse_waiting(network)

    def _tell(self, network: str, record: _Record, seconds: float) -> None:
        if self.events.is_on:
            self._told.add(network)
            self.events.publish(
                ban(
                    network=network, failures=max(1, round(record.score)), seconds=round(seconds, 1)
                )
            )

    async def tell_lifted(self) -> None:
        """Tell `events` of bans that are over, for ever."""
        while True:
            await trio.sleep(_LOOK_INTERVAL)
            for network in [each for each in self._told if self._banned_for(each) <= 0]:
                self._told.remove(network)
                self.events.publish(ban_lifted(network=network, reason="its time is over"))

    def lift(self, network: str) -> bool:
        """End a ban, and forget the failures behind it; tell whether there was one."""
        banned = self._banned_for(network) > 0
        if banned:
            log.info("a ban was lifted", network=network)
            del self._records[network]
            if network in self._told:
                self._told.remove(network)
                self.events.publish(ban_lifted(network=network, reason="somebody has lifted it"))
        return banned

    def write(self) -> dict[str, dict[str, list[float] | float]]:
        """Return what another process needs to go on with: failures as of now and for how long each network is banned, and for how long each is in use."""
        now = trio.current_time()
        in_use = {network: until - now for network, until in self._in_use_until.items()}
        return {
            "failed": {
                network: [record.now(), max(0.0, record.banned_until - now)]
                for network, record in self._records.items()
            },
            "in_use": {**in_use, **dict.fromkeys(self._sessions, _IN_USE_FOR)},
        }

    def read(self, values: dict[str, Any]) -> None:
        """Go on with what another process has written."""
        now = trio.current_time()
        for network, (score, seconds) in values.get("failed", {}).items():
            _put_last(self._records, network, _Record(score, now, now + seconds))
            if seconds > 0 and self.events.is_on:
                self._told.add(network)
        for network, seconds in values.get("in_use", {}).items():
            _put_last(self._in_use_until, network, now + seconds)

    def _record(self, network: str) -> _Record:
        record = self._records.pop(network, None) or _Record()
        _put_last(self._records, network, record)
        return record

    def _refuse_waiting(self, network: str) -> None:
        if (tries := self._tries.get(network)) is not None:
            while tries.waiting:  # for a refusal, which takes no time
                self._give_turn(tries)

    @contextmanager
    def in_use(self, host: str) -> Generator[None]:
        """Somebody has a session from there while the block runs: the network is in use then, and for an hour after it."""
        network = network_of(host)
        self._sessions[network] = self._sessions.get(network, 0) + 1
        try:
            yield
        finally:
            self._sessions[network] -= 1
            if not self._sessions[network]:
                del self._sessions[network]
                self._in_use_until.pop(network, None)
                _put_last(self._in_use_until, network, trio.current_time() + _IN_USE_FOR)

    def _banned_for(self, network: str) -> float:
        record = self._records.get(network)
        return 0.0 if record is None else record.banned_until - trio.current_time()

    def _is_in_use(self, network: str) -> bool:
        until = self._in_use_until.get(network, float("-inf"))
        return network in self._sessions or trio.current_time() < until


def _put_last(table: dict[str, T], network: str, value: T) -> None:
    """Put in what is not there yet; the one that has been there longest makes room."""
    if len(table) >= _MOST_NETWORKS:
        del table[next(iter(table))]
    table[network] = value
