"""Checks, and how they are run: beside each other, each with a deadline, and shown in their order as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from trionat.doctor.finding import Finding, Verdict, unknown, wrong
from trionat.errors import TrionatError
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PATIENCE: Final = 15.0
"""Seconds for one check, in which each of its waits has a shorter deadline of its own."""

_OPENS_THE_WAY: Final = {Verdict.OK, Verdict.WARNING}


@attrs.frozen(eq=False, kw_only=True)
class Check:
    """Something to look at: `name` is a word for it, `about` says which one it is where there are several.

    `look` returns what it has found. It is called when those that it `needs` have found something that works; where one has not, it is not called. It also waits for those that it comes `after`, whatever they have found.
    What it raises of trionat's own errors, or what the system refuses it, is a finding.
    """

    name: str
    look: Callable[[], Awaitable[Sequence[Finding]]]
    about: str = ""
    needs: tuple[Check, ...] = ()
    after: tuple[Check, ...] = ()
    patience: float = PATIENCE


Results: TypeAlias = "dict[Check, Sequence[Finding]]"


async def run_checks(
    checks: Sequence[Check], show: Callable[[Check, Finding], None] = lambda _, __: None
) -> Results:
    """Run all checks; `show` is called with each finding, in the order of the checks, as soon as those before have theirs.

    What a check needs has to be among them. Cancelling it ends all.
    """
    results: Results = {}
    done = {check: trio.Event() for check in checks}

    async def run(check: Check) -> None:
        for needed in (*check.needs, *check.after):
            await done[needed].wait()
        results[check] = await _findings(check, results)
        done[check].set()

    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(run, check, name=f"check: {check.name}")
        for check in checks:
            await done[check].wait()
            for finding in results[check]:
                show(check, finding)
    return results


async def _findings(check: Check, results: Results) -> Sequence[Finding]:
    for needed in check.needs:
        if not _OPENS_THE_WAY & {finding.verdict for finding in results[needed]}:
            return [unknown(f"not looked at: first {needed.name} has to be right")]
    found: Sequence[Finding] = ()
    with trio.move_on_after(check.patience) as scope:  # noqa: ASYNC912 - a check may be done at once
        try:
            found = await check.look()
        except* TrionatError as group:
            # Their messages say what to do.
            found = [wrong(str(error), "") for error in leaves(group)]
        except* OSError as group:
            found = [
                wrong(_words_of(error), "run trionat doctor as the user that trionat runs as")
                for error in leaves(group)
            ]
    if scope.cancelled_caught:
        return [
            wrong(
                f"no answer within {check.patience:g} s",
                "something hangs: a name server, a disk or a firewall that drops everything",
            )
        ]
    return found


def _words_of(error: BaseException) -> str:
    """Return in a line what the system has said, and of which file."""
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    return f"{name}: {reason}" if name and reason else str(error)
