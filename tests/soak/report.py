"""The report, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.soak.gauges import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.soak.book import Book
    from tests.soak.soak import Outcome

KINDS = ("wrong bytes", "wrong end", "cut off unexplained", "stuck")
"""Faults of conversations, which are reported even if there were none."""


def report(outcome: Outcome) -> str:
    """Return all of it."""
    return "\n".join(_lines(outcome)) + "\n"


def _lines(outcome: Outcome) -> Iterator[str]:
    plan, book, gauges = outcome.plan, outcome.book, outcome.gauges
    yield f"{outcome.seconds / 60:.1f} min, {plan.visitors:,} visitors at a time, seed {plan.seed}; {outcome.machine}:"
    yield ""
    yield from conversations(book, outcome.seconds)
    yield ""
    yield "| memory (RSS, MiB) | at rest | second quarter | last quarter | at the end |"
    yield "| --- | --- | --- | --- | --- |"
    for name, before in gauges.memory_at_rest.items():
        sizes = (before, *gauges.plateau(name), gauges.memory_at_end[name])
        yield f"| {name} | " + " | ".join(f"{size / 2**20:.1f}" for size in sizes) + " |"
    yield ""
    yield "| held | at rest | at most | at the end |"
    yield "| --- | --- | --- | --- |"
    for name, before in gauges.rest.items():
        what = name if name == TASKS else f"descriptors of {name}"
        yield f"| {what} | {before} | {gauges.peak[name]} | {gauges.back[name]} |"
    yield ""
    if gauges.unanswered:
        yield f"The server did not tell its tasks in time {gauges.unanswered} times: the machine is too busy."
        yield ""
    yield from faults(book)


def conversations(book: Book, seconds: float) -> Iterator[str]:
    """What became of all visitors, and what was done meanwhile."""
    yield "| conversations | number | of these |"
    yield "| --- | --- | --- |"
    yield f"| served, every byte right | {book.served.total():,} | {_shares(book.served)} |"
    yield f"| left by themselves | {book.left.total():,} | {_shares(book.left)} |"
    yield f"| cut off by a disturbance of ours | {book.cuts.total():,} | {_shares(book.cuts)} |"
    yield f"| refused by the account's limit, or not served in 8 s by a client that was away | {book.refused:,} | the server counts {book.refusals:,} |"
    if book.let_go:
        yield f"| came during a disturbance that lets nobody in, or not to the end | {book.let_go.total():,} | {_shares(book.let_go)} |"
    for kind in KINDS:
        yield f"| {kind} | {book.faults[kind]:,} | |"
    yield ""
    rate = book.bytes / seconds / 1e6
    yield (
        f"{book.bytes / 1e9:.2f} GB in both directions, {rate:.1f} MB/s. {book.calm:,} conversations were served where no cut would"
        f" have been explained. {book.disturbances.total():,} disturbances: {_shares(book.disturbances)}."
    )


def faults(book: Book) -> Iterator[str]:
    """What must not be, with the text of the first of each kind."""
    if not book.faults:
        yield "No faults."
    for kind, count in book.faults.items():
        yield f"- **{kind}: {count:,}**"
        yield from (f"    - {text}" for text in book.told[kind])


def _shares(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
