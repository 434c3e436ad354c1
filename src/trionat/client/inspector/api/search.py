"""Visitors in whose bytes a text stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.client.inspector.operation import Operation
from trionat.client.inspector.problem import Problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from trionat.client.inspector.context import Context

MOST_FOUND: Final = 1000
LONGEST_SEARCH: Final = 1000


async def _search(context: Context, request: Request) -> Response:
    """Find the visitors in whose bytes a text stands, small and capital letters alike."""
    wanted = request.query_params.get("q", "")
    if not 0 < len(wanted) <= LONGEST_SEARCH:
        raise Problem(422, "invalid", f"1 to {LONGEST_SEARCH} characters", "q")
    tracks = [
        (each.number, each.received, each.sent)
        for each in context.recorder.recordings.values()
        if each.count
    ]

    def search() -> dict[str, object]:
        needle, found = wanted.lower().encode(), list[int]()
        for number, *both in reversed(tracks):
            if any(needle in bytes(track.data).lower() for track in both):
                found.append(number)
                if len(found) == MOST_FOUND:
                    break
        return {"numbers": found, "more": len(found) == MOST_FOUND}

    return await context.json(search)


OPERATIONS: Final = (Operation("GET", "/api/search", _search),)
