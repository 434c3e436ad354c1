"""The messages of a WebSocket."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from trionat.client.inspector.operation import Operation
from trionat.client.inspector.snapshot import Snapshot
from trionat.client.inspector.websocket_view import deflates, read_messages

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from trionat.client.inspector.context import Context


async def _websocket(context: Context, request: Request) -> Response:
    snapshot = Snapshot.of(context.recording(request))

    def read() -> dict[str, object]:
        last = snapshot.conversation.exchanges[-1:]
        if not last or not last[0].is_websocket or last[0].answer is None:
            return {"messages": []}
        answer, messages = last[0].answer, list[dict[str, object]]()
        for direction, data, head in (
            ("received", snapshot.received, last[0].request),
            ("sent", snapshot.sent, answer),
        ):
            for message in read_messages(data, head.end, deflated=deflates(answer)):
                is_text = message.kind == "text"
                shown = message.data
                messages.append(
                    {
                        "direction": direction,
                        "time": snapshot.time_of(direction, message.start),
                        "kind": message.kind,
                        "size": message.size,
                        "whole": message.is_whole,
                        "note": message.note,
                        "text": shown.decode("utf-8", "replace") if is_text else None,
                        "bytes": None if is_text else base64.b64encode(shown).decode(),
                    }
                )
        return {"messages": sorted(messages, key=lambda each: float(str(each["time"])))}

    return await context.json(read)


OPERATIONS: Final = (Operation("GET", "/api/visitors/{number:int}/websocket", _websocket),)
