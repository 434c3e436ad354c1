"""The results as pictures: one for each scenario, with a part for each of its measures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
import matplotlib.pyplot as plt

from bench.report import PICTURES

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.chain import Chain
    from bench.report import Report
    from bench.results import Measure
    from bench.scenarios import Scenario

_COLUMNS: Final = 2
_OURS: Final = {False: "#8fb8de", True: "#2b6cb0"}
_THEIRS: Final = {False: "#d5d5d5", True: "#8a8a8a"}
"""Light for what is not encrypted, dark for what is."""


def draw(report: Report, folder: Path) -> None:
    """Write a PNG file for each scenario."""
    mpl.use("Agg")
    for scenario in report.scenarios:
        _draw(report, scenario, folder / PICTURES / f"{scenario.name}.png")


def _draw(report: Report, scenario: Scenario, file: Path) -> None:
    measures = scenario.measures
    columns = min(_COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    height = 0.9 + 0.24 * len(report.chains)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.2 * columns, height * rows), squeeze=False, layout="constrained"
    )
    for place, measure in zip(axes.flat, measures, strict=False):
        _draw_bars(place, report, measure)
    for place in axes.flat[len(measures) :]:
        place.set_axis_off()
    figure.suptitle(scenario.title)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _draw_bars(axes: Axes, report: Report, measure: Measure) -> None:
    """A bar for each chain, from the top down, with a line from the least to the most."""
    shown = [
        (chain, summary)
        for chain in report.chains
        if (summary := report.results.summary(measure, chain.name))
    ]
    # What did not happen has no bar and no line, but a word; where only the most is infinite, the line ends at the median.
    medians = [_finite(summary.median, 0) for _, summary in shown]
    ranges = [
        [_finite(summary.median - summary.least, math.nan) for _, summary in shown],
        [_finite(summary.most - _finite(summary.median, math.nan), 0) for _, summary in shown],
    ]
    for place, (_, summary) in enumerate(shown):
        if not math.isfinite(summary.median):
            axes.annotate(
                measure.never, (0, place), (3, 0), textcoords="offset points", va="center", size=8
            )
    axes.barh(
        [chain.name for chain, _ in shown],
        medians,
        xerr=ranges,
        color=[_colour(chain) for chain, _ in shown],
        error_kw={"linewidth": 1, "capsize": 2},
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0, right=None if any(medians) else 1)
    better = "more" if measure.more_is_better else "less"
    unit = f"{measure.unit}, " if measure.unit else ""
    axes.set_title(f"{measure.title} ({unit}{better} is better)", fontsize=9)
    axes.tick_params(labelsize=8)


def _finite(figure: float, otherwise: float) -> float:
    return figure if math.isfinite(figure) else otherwise


def _colour(chain: Chain) -> str:
    return (_OURS if chain.name.startswith("trionat") else _THEIRS)[chain.encrypted]
