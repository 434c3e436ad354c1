"""One visitor: its line of the list, in which order which bytes came, and the bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from starlette.responses import Response

from trionat.client.inspector.http_view import find_secrets
from trionat.client.inspector.operation import Operation, read_number
from trionat.client.inspector.problem import Problem
from trionat.client.inspector.row import as_row
from trionat.client.inspector.snapshot import Snapshot

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.client.inspector.context import Context


async def _clear(context: Context, _: Request) -> Response:
    await trio.lowlevel.checkpoint()
    context.recorder.clear()
    return Response(status_code=204)


async def _visitor(context: Context, request: Request) -> Response:
    recording = context.recording(request)
    row, snapshot = as_row(recording), Snapshot.of(recording)
    row |= {
        "received_ended": _since(recording.received.ended, recording.began),
        "sent_ended": _since(recording.sent.ended, recording.began),
    }
    pieces = recording.pieces()
    return await context.json(
        lambda: {
            **row,
            "pieces": pieces,
            "secrets": {
                "received": find_secrets(snapshot.received),
                "sent": find_secrets(snapshot.sent),
            },
        }
    )


async def _bytes(context: Context, request: Request) -> Response:
    await trio.lowlevel.checkpoint()
    recording, direction = context.recording(request), request.path_params["direction"]
    if direction not in ("received", "sent"):
        raise Problem(404, "not_found", "the directions are received and sent")
    track = recording.received if direction == "received" else recording.sent
    start = read_number(request, "start", 0)
    end = read_number(request, "end", len(track.data))
    headers: dict[str, str] = {}
    if "download" in request.query_params:
        name = f"visitor-{recording.number}-{direction}.bin"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(
        bytes(track.data[start:end]), media_type="application/octet-stream", headers=headers
    )


def _since(moment: float | None, began: float) -> float | None:
    return None if moment is None else round(moment - began, 6)


OPERATIONS: Final = (
    Operation("DELETE", "/api/visitors", _clear),
    Operation("GET", "/api/visitors/{number:int}", _visitor),
    Operation("GET", "/api/visitors/{number:int}/bytes/{direction}", _bytes),
)
