"""Figures: what was measured on which chain in which round, and what to make of several rounds."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@attrs.frozen(kw_only=True)
class Measure:
    """Something that is measured. `key` is its name in the JSON file, `title` the one for people.

    An infinite time is one of something that does not happen: `never` is the word for it.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 0
    more_is_better: bool = False
    never: str = ""

    def write(self, figure: float, digits: int | None = None, *, unit: bool = False) -> str:
        """Write a figure for people, with its unit if that is asked for."""
        if not math.isfinite(figure):
            return self.never
        text = f"{figure:,.{self.digits if digits is None else digits}f}"
        return f"{text} {self.unit}".rstrip() if unit else text


@attrs.frozen
class Summary:
    """Several rounds in three numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """Return the summary, or None of nothing."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values))


@attrs.define(eq=False)
class Results:
    """All figures of a run, by measure, chain and round; `left_out` and `failures` say why some are not there."""

    figures: dict[str, dict[str, dict[int, float]]] = attrs.field(factory=lambda: {})
    left_out: dict[str, str] = attrs.field(factory=lambda: {})
    failures: list[str] = attrs.field(factory=lambda: [])

    def add(self, chain: str, number: int, figures: Mapping[Measure, float]) -> None:
        """Take in what one measurement of one round has shown."""
        for measure, figure in figures.items():
            self.figures.setdefault(measure.key, {}).setdefault(chain, {})[number] = figure

    def rounds(self, measure: Measure, chain: str) -> dict[int, float]:
        """Return the figures of a chain by the number of the round; none where it was not measured."""
        return self.figures.get(measure.key, {}).get(chain, {})

    def summary(self, measure: Measure, chain: str) -> Summary | None:
        """Return what the rounds come to, if there were any."""
        return Summary.of(list(self.rounds(measure, chain).values()))

    def ratio(self, measure: Measure, chain: str, other: str) -> Summary | None:
        """Return how one chain compares with another: each round is compared with itself, as the noise in it hit both."""
        ours, theirs = self.rounds(measure, chain), self.rounds(measure, other)
        return Summary.of([ours[number] / theirs[number] for number in ours if number in theirs])
