"""The HTTP in what a visitor has sent and was answered: heads, bodies, and a request as a command of curl's."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse, Response

from trionat.client.inspector.curl import as_curl
from trionat.client.inspector.http_view import raw_body, read_body, read_text
from trionat.client.inspector.operation import Operation
from trionat.client.inspector.problem import Problem
from trionat.client.inspector.snapshot import Snapshot

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.client.inspector.context import Context
    from trionat.client.inspector.http_view import Exchange, Message

MOST_TEXT: Final = 1024 * 1024
"""Characters of a body that a page gets at once."""


async def _http(context: Context, request: Request) -> Response:
    snapshot = Snapshot.of(context.recording(request))

    def read() -> dict[str, object]:
        conversation = snapshot.conversation
        return {
            "exchanges": [_exchange(snapshot, each) for each in conversation.exchanges],
            "rest": conversation.rest,
        }

    return await context.json(read)


def _find_exchange(request: Request, snapshot: Snapshot) -> Exchange:
    """Return the exchange that a request is about; to be called in a thread."""
    exchanges = snapshot.conversation.exchanges
    index: int = request.path_params["index"]
    if index >= len(exchanges):
        raise Problem(404, "not_found", "there is no such request")
    return exchanges[index]


async def _body(context: Context, request: Request) -> Response:
    snapshot, part = Snapshot.of(context.recording(request)), request.path_params["part"]
    if part not in ("request", "answer"):
        raise Problem(404, "not_found", "the parts are request and answer")

    def read() -> tuple[bytes, dict[str, object]]:
        exchange = _find_exchange(request, snapshot)
        message = exchange.request if part == "request" else exchange.answer
        if message is None:
            raise Problem(404, "not_found", "there is no answer yet")
        data = snapshot.received if part == "request" else snapshot.sent
        body = read_body(data, message)
        text, notes = read_text(body.data, message), list(body.notes)
        if text is not None and len(text) > MOST_TEXT:
            notes.append(f"only the first {MOST_TEXT // 2**20} MiB are shown")
            text = text[:MOST_TEXT]
        return body.data, {
            "size": len(body.data),
            "type": "".join(message.values("content-type")[:1]),
            "notes": notes,
            "text": text,
            "bytes": None if text is not None else base64.b64encode(body.data[:MOST_TEXT]).decode(),
        }

    if "download" not in request.query_params:
        return await context.json(lambda: read()[1])
    content, _ = await context.in_thread(read)
    name = f"visitor-{snapshot.number}-{part}-{request.path_params['index'] + 1}.bin"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def _curl(context: Context, request: Request) -> Response:
    snapshot = Snapshot.of(context.recording(request))

    def write() -> bytes:
        exchange = _find_exchange(request, snapshot)
        asked = exchange.request
        body = raw_body(snapshot.received, asked)
        return as_curl(asked, body, url=snapshot.url_of(asked)).encode()

    return PlainTextResponse(await context.in_thread(write))


def _exchange(snapshot: Snapshot, exchange: Exchange) -> dict[str, object]:
    times = snapshot.times_of(exchange)
    return {
        "request": _message(exchange.request),
        "interim": [_message(each) for each in exchange.interim],
        "answer": None if exchange.answer is None else _message(exchange.answer),
        "switched": exchange.is_switched,
        "websocket": exchange.is_websocket,
        "url": snapshot.url_of(exchange.request),
        "asked": times.asked,
        "sent": times.sent,
        "answered": times.answered,
        "ended": times.ended,
    }


def _message(message: Message) -> dict[str, object]:
    return {
        "first": message.first,
        "fields": message.fields,
        "framing": message.framing,
        "whole": message.is_whole,
        "start": message.start,
        "body": message.body,
        "end": message.end,
    }


OPERATIONS: Final = (
    Operation("GET", "/api/visitors/{number:int}/http", _http),
    Operation("GET", "/api/visitors/{number:int}/http/{index:int}/curl", _curl),
    Operation("GET", "/api/visitors/{number:int}/http/{index:int}/{part}", _body),
)
