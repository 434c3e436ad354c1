"""The results for people (`benchmarks.md`) and for programs (`benchmarks/results.json`)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs

from bench import machine
from bench.rivals import DIRECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bench.chain import Chain
    from bench.results import Measure, Results, Summary
    from bench.scenarios import Effort, Scenario
    from bench.targets import Target

PICTURES = "benchmarks"
"""The folder beside the page that has the pictures and the JSON file."""


@attrs.frozen(kw_only=True)
class Report:
    """A run, and all that is to be told about it."""

    date: str
    effort: Effort
    facts: dict[str, str]
    versions: dict[str, str]
    chains: Sequence[Chain]
    scenarios: Sequence[Scenario]
    targets: Sequence[Target]
    results: Results

    def write(self, folder: Path) -> None:
        """Write the page and the JSON file; the pictures are `plots`'s."""
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        (folder / PICTURES / "results.json").write_text(
            json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        (folder / "benchmarks.md").write_text(self.as_markdown(), encoding="utf-8")

    # -- for programs --------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the figure of every round; null is one of something that did not happen."""
        measures = [measure for scenario in self.scenarios for measure in scenario.measures]
        return {
            "date": self.date,
            "effort": attrs.asdict(self.effort),
            "machine": self.facts,
            "versions": self.versions,
            "left_out": self.results.left_out,
            "failures": self.results.failures,
            "figures": {
                measure.key: {
                    "unit": measure.unit,
                    "chains": {
                        chain.name: {
                            **_finite(attrs.asdict(summary)),
                            "rounds": self._rounds(measure, chain),
                        }
                        for chain in self.chains
                        if (summary := self.results.summary(measure, chain.name))
                    },
                }
                for measure in measures
            },
            "targets": [
                {
                    "chain": target.chain.name,
                    "measure": target.measure.key,
                    "compared_with": target.other and target.other.name,
                    "bound": target.bound,
                    "figure": (figure := target.figure(self.results))
                    and _finite(attrs.asdict(figure)),
                    "reached": target.reached(self.results),
                }
                for target in self.targets
            ],
        }

    def _rounds(self, measure: Measure, chain: Chain) -> list[float | None]:
        figures = self.results.rounds(measure, chain.name).values()
        return [figure if math.isfinite(figure) else None for figure in figures]

    # -- for people ----------------------------------------------------------------------------------------------------

    def as_markdown(self) -> str:
        """Return the page."""
        return "\n".join(
            [
                *self._introduction(),
                *self._target_table(),
                *(line for scenario in self.scenarios for line in self._section(scenario)),
                *self._absences(),
            ]
        )

    def _introduction(self) -> Iterator[str]:
        yield "# Benchmarks"
        yield ""
        yield "Written by `nox -s bench`, which starts and stops all that it needs and measures what is installed."
        yield ""
        yield "Everything has the same shape: visitor → public end → private end → service, where each end is a program of its own"
        yield "and all of it is on one machine, load generators included. nginx has a stream proxy for each end, with one worker."
        yield "In each round every scenario was run on one chain right after the other, each built anew. Figures are medians of"
        yield f"the rounds ({self.effort.rounds}), with the least and the most in brackets. Ratios compare figures of the same round, so they are not"
        yield "always those of the medians. The link was cut in the first round only."
        yield ""
        yield "**Bold** is the best figure of a column among those that encrypt what passes between the two ends, and the best among those"
        yield f"that do not. These encrypt: {self._names(encrypted=True)}. These do not: {self._names(encrypted=False)}."
        yield ""
        if not machine.is_quiet(self.facts):
            yield "**The machine was busy with other things: do not rely on these figures.**"
            yield ""
        yield from _table(["", ""], [["date", self.date], *map(list, self.facts.items())])
        yield ""
        yield "Versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + "."
        yield ""

    def _target_table(self) -> Iterator[str]:
        yield "## Targets"
        yield ""
        words = {True: "yes", False: "**no**", None: "not measured"}
        titles = {m: scenario.title for scenario in self.scenarios for m in scenario.measures}
        rows = [
            [
                target.chain.name,
                f"{titles[target.measure]}: {target.measure.title}",
                "" if target.other is None else f"x {target.other.name}",
                _cell(target.figure(self.results), target.measure, 2),
                _bound(target),
                words[target.reached(self.results)],
            ]
            for target in self.targets
            if target.measure in titles
        ]
        yield from _table(
            ["chain", "measure", "compared with", "figure", "target", "reached"], rows
        )
        yield ""

    def _section(self, scenario: Scenario) -> Iterator[str]:
        yield f"## {scenario.title}"
        yield ""
        yield scenario.text.format_map(attrs.asdict(self.effort))
        yield ""
        head = [
            f"{measure.title} ({measure.unit})" if measure.unit else measure.title
            for measure in scenario.measures
        ]
        rows = [
            [chain.name, *(self._figure(measure, chain) for measure in scenario.measures)]
            for chain in self.chains
        ]
        yield from _table(["", *head], [row for row in rows if any(row[1:])])
        yield ""
        yield f"![{scenario.title}]({PICTURES}/{scenario.name}.png)"
        yield ""

    def _figure(self, measure: Measure, chain: Chain) -> str:
        cell = _cell(self.results.summary(measure, chain.name), measure)
        if chain.name not in self._best(measure, encrypted=chain.encrypted):
            return cell
        median, *least_and_most = cell.split(" ", 1)
        return " ".join([f"**{median}**", *least_and_most])

    def _best(self, measure: Measure, *, encrypted: bool) -> set[str]:
        """Return the names of the chains of one kind that nobody betters, as far as the page shows; none without a rival."""
        medians = {
            chain.name: summary.median
            for chain in self._relays(encrypted=encrypted)
            if (summary := self.results.summary(measure, chain.name))
        }
        if len(medians) < 2 or not any(map(math.isfinite, medians.values())):
            return set()
        best = (max if measure.more_is_better else min)(medians.values())
        return {
            name for name, median in medians.items() if measure.write(median) == measure.write(best)
        }

    def _relays(self, *, encrypted: bool) -> list[Chain]:
        """Return the chains of one kind that have two ends."""
        return [
            chain for chain in self.chains if chain is not DIRECT and chain.encrypted == encrypted
        ]

    def _names(self, *, encrypted: bool) -> str:
        """Return the names of those of them that are here."""
        relays = self._relays(encrypted=encrypted)
        here = [chain.name for chain in relays if chain.name not in self.results.left_out]
        return "; ".join(here) or "none"

    def _absences(self) -> Iterator[str]:
        yield "## Left out"
        yield ""
        lines = [f"- {name}: {reason}" for name, reason in self.results.left_out.items()]
        lines += [f"- {failure}" for failure in self.results.failures]
        yield from lines or ["Nothing."]
        yield ""


def _cell(summary: Summary | None, measure: Measure, digits: int | None = None) -> str:
    """Write a summary; nothing for nothing, and no range where there was one round."""
    if summary is None:
        return ""
    median, least, most = (measure.write(value, digits) for value in attrs.astuple(summary))
    return median if least == most else f"{median} ({least}-{most})"


def _finite(told: dict[str, Any]) -> dict[str, Any]:
    """Return the same figures with None for those that are infinite, which JSON does not know."""
    return {key: value if math.isfinite(value) else None for key, value in told.items()}


def _bound(target: Target) -> str:
    words = "at least" if target.measure.more_is_better else "at most"
    unit = target.measure.unit if target.other is None else ""
    return f"{words} {target.bound:g} {unit}".strip()


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(row) + " |"
