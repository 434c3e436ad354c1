"""Whether the configuration can be read, and what it names is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionat.doctor.finding import Finding, fine, warning, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionat.errors import Problem


def check_configuration(
    problems: Iterable[Problem], warnings: Iterable[Problem], source: str
) -> list[Finding]:
    """Turn what was found when it was read into findings; `source` says what it was read from."""
    found = [
        wrong(str(problem), "correct it; trionat config show has the values that hold")
        for problem in problems
    ]
    found += [warning(str(each), "it works; see there") for each in warnings]
    return found or [fine(source)]
