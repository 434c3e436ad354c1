"""What became of every conversation, and what explains those that were cut off."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE: Final = 5.0
"""Seconds for which a disturbance still explains a cut after it is over: what was on the way, on a machine that is busy."""

TOLD_WITHIN: Final = 3.0
"""Seconds within which the server's log has told of a refusal: it does so at most once a second, and we may read it late."""

AT_ONCE: Final = 0.5
"""Seconds for which a visitor who comes is not served yet, at most."""

END: Final = "an end"
"""What a visitor sees where the connection is closed in order."""

MOST_TOLD: Final = 20
"""Faults of a kind whose text is kept; the others are only counted."""

Place: TypeAlias = "int | str | tuple[str, int]"
"""A visit port, one visitor's address, or a visit port as it is reached by one of several doors."""


@attrs.define(eq=False)
class Spell:
    """Something that we do to places: from `begin` to `end` it explains that sessions there are lost, and `most` cuts.

    What is done to the network explains no cut: streams outlive their tunnels and their session. `unserved` says that it explains all the same that
    those who come now are not served, `newcomers` that it explains whatever becomes of those who come now.
    """

    cause: str
    places: frozenset[Place]
    most: float
    unserved: bool = False
    newcomers: bool = False
    begin: float = attrs.field(factory=trio.current_time)
    end: float = math.inf

    def covers(self, moment: float) -> bool:
        return self.begin <= moment <= self.end

    def lets_go(self, cut: Cut) -> bool:
        """Tell whether it explains a cut though it may cut off nobody who is served."""
        if self.newcomers:
            return cut.began >= self.begin - (0 if cut.heard else AT_ONCE)
        return self.unserved and not cut.heard


@attrs.frozen(kw_only=True)
class Cut:
    """A conversation that ended before its time: `how` is what its visitor saw, after `heard` bytes. `door` is the one of several that took it, and `way` how it came there."""

    kind: str
    port: int
    address: str
    began: float
    heard: int
    how: str
    door: str = ""
    way: str = ""
    ended: float = attrs.field(factory=trio.current_time)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where something that was done would explain it."""
        return self.address, (self.door, self.port) if self.door else self.port

    def __str__(self) -> str:
        seconds = self.ended - self.began
        at = f" at {self.door} by {self.way}" if self.door else ""
        return f"{self.kind} on port {self.port}{at} from {self.address}: {self.how} after {self.heard} bytes and {seconds:.1f} s"


@attrs.define(eq=False)
class Book:
    """Counts conversations by how they ended; `faults` are the kinds of which there must be none, `told` says more of the first.

    `left` are visitors that went away by themselves, `cuts` those that a disturbance explains, by its cause, `disturbances` how
    many of these there were. `refused` never had an answer: they were over a limit that is configured, or had no tunnel in time while
    their client was away. The server has told `refusals` of them.
    """

    served: Counter[str] = attrs.field(factory=lambda: Counter())
    left: Counter[str] = attrs.field(factory=lambda: Counter())
    cuts: Counter[str] = attrs.field(factory=lambda: Counter())
    disturbances: Counter[str] = attrs.field(factory=lambda: Counter())
    faults: Counter[str] = attrs.field(factory=lambda: Counter())
    told: dict[str, list[str]] = attrs.field(factory=lambda: {})
    bytes: int = 0
    refused: int = 0
    refusals: int = 0
    let_go: Counter[str] = attrs.field(factory=lambda: Counter())
    """Visitors that came while a disturbance explained that nobody is served there, or not to the end."""
    calm: int = 0
    """Conversations that were served where no cut would have been explained when they ended."""
    _spells: list[Spell] = attrs.field(factory=lambda: [])
    _refused_at: dict[int, list[float]] = attrs.field(factory=lambda: {})
    _unanswered: list[tuple[Cut, str]] = attrs.field(factory=lambda: [])

    def fault(self, kind: str, text: str) -> None:
        """Note what must not be."""
        self.faults[kind] += 1
        told = self.told.setdefault(kind, [])
        if len(told) < MOST_TOLD:
            told.append(text)

    @contextmanager
    def spell(
        self,
        cause: str,
        *places: Place,
        most: float = math.inf,
        unserved: bool = False,
        newcomers: bool = False,
    ) -> Iterator[Spell]:
        """Say what is done to places while the block runs."""
        self.disturbances[cause] += 1
        spell = Spell(cause, frozenset(places), most, unserved, newcomers)
        self._spells.append(spell)
        try:
            yield spell
        finally:
            spell.end = trio.current_time() + GRACE

    def find_spell(self, *places: Place) -> Spell | None:
        """Return what is being done to one of these places now."""
        return next(self._find_spells(places), None)

    def find_cause(self, *places: Place) -> Spell | None:
        """Return what would explain a cut at one of these places now."""
        return next((spell for spell in self._find_spells(places) if spell.most > 0), None)

    def _find_spells(self, places: tuple[Place, ...]) -> Iterator[Spell]:
        now = trio.current_time()
        self._spells = [spell for spell in self._spells if spell.end >= now]
        return (
            spell
            for spell in self._spells
            if not spell.places.isdisjoint(places) and spell.covers(now)
        )

    def add_served(self, kind: str, place: Place, moved: int) -> None:
        """A conversation went through, and all `moved` bytes of both directions were right."""
        self.served[kind] += 1
        self.bytes += moved
        self.calm += self.find_cause(place) is None

    def add_cut(self, cut: Cut) -> None:
        """A conversation ended before its time; whether it was refused is only known when the server's log is read.

        Whoever has had an answer has to see a reset: an end would say that this was all.
        """
        spell = self.find_cause(*cut.places)
        if cut.heard and cut.how == END and not self.may_end(cut):
            why = "nothing was done" if spell is None else spell.cause
            self.fault("wrong end", f"to the visitor: {cut}; {why}")
        if spell is not None:
            spell.most -= 1
            self.cuts[spell.cause] += 1
            return
        for done in self._find_spells(cut.places):
            if done.lets_go(cut):
                self.let_go[done.cause] += 1
                return
        nearby = self.find_spell(*cut.places)
        text = str(cut) if nearby is None else f"{cut}, meanwhile: {nearby.cause}"
        if cut.heard:
            self.fault("cut off unexplained", text)
        else:
            self._unanswered.append((cut, text))

    def may_end(self, cut: Cut) -> bool:
        """Tell whether whoever cut it off could not help that it looks like an end."""
        return False

    def add_refusals(self, port: int, count: int) -> None:
        """The server has just told that it refused so many at this port."""
        self.refusals += count
        self._refused_at.setdefault(port, []).append(trio.current_time())

    def add_not_served(self, port: int) -> None:
        """The server has just told that a visitor had no tunnel in time (VisitorWait), which has to have a cause."""
        if self.find_spell(port) is None:
            self.fault("not served in time", f"a visitor on port {port}, where nothing was done")
        self.add_refusals(port, 1)

    def settle(self) -> None:
        """Judge those that never had an answer: they were refused if the server was refusing at that time."""
        for cut, text in self._unanswered:
            told = self._refused_at.get(cut.port, [])
            next_told = bisect_left(told, cut.began)
            if next_told < len(told) and told[next_told] <= cut.ended + TOLD_WITHIN:
                self.refused += 1
            else:
                self.fault("cut off unexplained", text)
        self._unanswered.clear()
        if self.refused > self.refusals:
            told_of = f"{self.refused} visitors, of which the server's log tells {self.refusals}"
            self.fault("refused", told_of)
