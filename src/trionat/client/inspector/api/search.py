"""Visitors who have said a text, or to whom it was said."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trionat.client.inspector.operation import Operation, do_while_wanted
from trionat.client.inspector.problem import Problem
from trionat.client.inspector.search import Search

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from trionat.client.inspector.context import Context

LONGEST: Final = 1000
"""Characters of a text."""

_PATIENCE: Final = 6.0
"""Seconds: a little more than a search takes. One step of it may take longer where `InspectBytes` is large."""


async def _search(context: Context, request: Request) -> Response:
    """Return the numbers of the visitors, and whether there may be more."""
    wanted = request.query_params.get("q", "")
    if not 0 < len(wanted) <= LONGEST:
        raise Problem(422, "invalid", f"1 to {LONGEST} characters", "q")
    search = Search(wanted)
    recordings = [each for each in context.recorder.recordings.values() if each.count]
    try:
        with trio.move_on_after(_PATIENCE):
            await do_while_wanted(
                request, partial(search.run, recordings), limiter=context.searching
            )
    finally:
        search.stop()
    numbers = sorted(search.found, reverse=True)
    return await context.json(lambda: {"numbers": numbers, "more": not search.is_whole})


OPERATIONS: Final = (Operation("GET", "/api/search", _search),)
