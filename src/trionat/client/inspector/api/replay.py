"""What is sent to the service once more, as it was or edited."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from trionat.client.inspector.http_view import raw_body
from trionat.client.inspector.operation import Operation, read_json
from trionat.client.inspector.problem import Problem
from trionat.client.inspector.replay import EditError, write_request
from trionat.client.inspector.snapshot import Snapshot
from trionat.relay.client_tunnel import LocalServiceError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from trionat.client.inspector.context import Context
    from trionat.client.inspector.http_view import Message
    from trionat.client.inspector.recording import Recording


async def _replay(context: Context, request: Request) -> Response:
    """Send to the service what a visitor has sent: all of it, or one request, as it was or edited."""
    recording = context.recording(request)
    wanted = await read_json(request)
    if unknown := set(wanted) - {"request", "edit"}:
        raise Problem(422, "invalid", "there is no such field", min(unknown))
    snapshot = Snapshot.of(recording)
    data = await context.in_thread(partial(_find_replayed, snapshot, recording, wanted))
    if context.replays.is_full:
        raise Problem(429, "rate_limited", "too many replays are running: wait for one to end")
    run = partial(
        context.replays.run,
        recording,
        data,
        is_http=wanted.get("request") is not None,
        ends=wanted.get("request") is None and snapshot.received_ended,
    )
    try:
        number: int = await context.nursery.start(run, name="replay")
    except LocalServiceError as error:
        raise Problem(502, "service_down", str(error)) from error
    return await context.json(lambda: {"number": number}, status=201)


def _find_replayed(snapshot: Snapshot, recording: Recording, wanted: dict[str, Any]) -> bytes:
    """Return the bytes that are to be sent.

    Raises:
        Problem: they are not there, or are no request.
    """
    index = wanted.get("request")
    if index is None:
        if "edit" in wanted:
            raise Problem(422, "invalid", "only a request can be edited: say which", "request")
        if not recording.received.is_whole:
            raise Problem(409, "conflict", "not all that the visitor sent was kept (InspectBytes)")
        return snapshot.received
    exchanges = snapshot.conversation.exchanges
    if type(index) is not int or not 0 <= index < len(exchanges):
        raise Problem(422, "invalid", "there is no such request", "request")
    asked = exchanges[index].request
    edit = wanted.get("edit")
    if edit is None:
        if not asked.is_whole:
            raise Problem(409, "conflict", "not all of this request was kept (InspectBytes)")
        return snapshot.received[asked.start : asked.end]
    return _write_edited(snapshot, asked, edit)


def _is_pair(value: object) -> bool:
    """Tell whether it is two texts."""
    match value:
        case [str(), str()]:
            return True
        case _:
            return False


def _write_edited(snapshot: Snapshot, asked: Message, edit: object) -> bytes:
    if not isinstance(edit, dict):
        raise Problem(422, "invalid", "an object is wanted", "edit")
    given = cast("dict[str, Any]", edit)
    if unknown := given.keys() - {"method", "target", "fields", "body"}:
        raise Problem(422, "invalid", "there is no such field", min(unknown))
    method, target, body = given.get("method"), given.get("target"), given.get("body")
    fields: Any = given.get("fields")
    if not isinstance(method, str) or not isinstance(target, str):
        raise Problem(422, "invalid", "method and target are texts", "method")
    if not isinstance(fields, list) or not all(map(_is_pair, cast("list[object]", fields))):
        raise Problem(422, "invalid", "fields are pairs of texts", "fields")
    if body is not None and not isinstance(body, str):
        raise Problem(422, "invalid", "a text, or null for the body as it was", "body")
    if body is None and not asked.is_whole:
        raise Problem(409, "conflict", "not all of this request was kept (InspectBytes)")
    try:
        data = raw_body(snapshot.received, asked) if body is None else body.encode()
        return write_request(
            method,
            target,
            [(name, value) for name, value in cast("list[list[str]]", fields)],
            data,
            minor=int(asked.first[2][-1]),
            is_new_body=body is not None,
        )
    except EditError as error:
        raise Problem(422, "invalid", str(error), error.field) from error
    except UnicodeEncodeError as error:
        raise Problem(422, "invalid", "not a text that UTF-8 can hold", "body") from error


OPERATIONS: Final = (Operation("POST", "/api/visitors/{number:int}/replay", _replay),)
