"""The inspector's pages, and what they ask for: an application of Starlette's. All paths under `/api` are for these pages only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import attrs
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trionat.client.inspector.access import HEADERS
from trionat.client.inspector.curl import as_curl
from trionat.client.inspector.har import as_har
from trionat.client.inspector.http_view import find_secrets, raw_body, read_body, read_text
from trionat.client.inspector.replay import EditError, write_request
from trionat.client.inspector.row import as_row
from trionat.client.inspector.snapshot import Snapshot
from trionat.client.inspector.websocket_view import deflates, read_messages
from trionat.log import get_logger
from trionat.relay.client_tunnel import LocalServiceError
from trionat.transport.web_body import BoundedBody

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from trionat.client.inspector.access import Access
    from trionat.client.inspector.http_view import Exchange, Message
    from trionat.client.inspector.live import LiveList
    from trionat.client.inspector.recorder import Recorder
    from trionat.client.inspector.recording import Recording
    from trionat.client.inspector.replay import Replays

log = get_logger(__name__)

_T = TypeVar("_T")

PAGES: Final = Path(__file__).parent / "pages"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

MOST_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""Of a request to the inspector: a request that was edited."""

_BODY_WITHIN: Final = 20.0
"""Seconds for the whole body of a request."""

MOST_TEXT: Final = 1024 * 1024
"""Characters of a body that a page gets at once."""

MOST_FOUND: Final = 1000
LONGEST_SEARCH: Final = 1000
_THREADS: Final = 4

_WELCOME: Final = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/"><link rel="icon" href="data:,"><title>trionat</title><p><a href="/">Go on</a>"""
_LOCKED: Final = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><title>trionat</title><h1>Not for everybody</h1><p>Open the whole URL that <code>trionat connect --inspect</code> has printed: it ends in <code>?token=</code> and a long word. Each start of the client makes a new one."""


class ApiError(Exception):
    """An answer that says why there is none; `code` is a stable word, `field` names a part of the request."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.field = status, code, detail, field


def _too_large() -> ApiError:
    return ApiError(413, "too_large", f"a body has at most {MOST_REQUEST_BYTES} bytes")


def _too_slow() -> ApiError:
    return ApiError(408, "timeout", f"the body was not there within {_BODY_WITHIN:g} s")


def _problem(error: ApiError) -> Response:
    content = {
        "type": "about:blank",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        **({} if error.field is None else {"field": error.field}),
    }
    return _answer(json.dumps(content).encode(), "application/problem+json", status=error.status)


async def _no_route(_: Request, error: Exception) -> Response:  # noqa: ASYNC124 - Starlette's form
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = (error.headers if isinstance(error, HTTPException) else None) or {}
    word = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid")
    answer = _problem(ApiError(status, word, "there is nothing here"))
    answer.headers.update(headers)
    return answer


def _answer(
    content: bytes, kind: str, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        content, status, media_type=None, headers={"Content-Type": kind, **(headers or {})}
    )


@attrs.define(eq=False)
class Application:
    """Answers for one inspector. `nursery` is where replays run."""

    access: Access
    recorder: Recorder
    live: LiveList
    replays: Replays
    nursery: trio.Nursery
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(_THREADS)
    )

    def build(self) -> ASGIApp:
        """Return it for a web server."""
        api = "/api/visitors/{number:int}"
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/", self._page),
            ("GET", "/pages/{name}", self._file),
            ("DELETE", "/api/visitors", self._clear),
            ("GET", "/api/search", self._search),
            ("GET", "/api/har", self._har),
            ("GET", api, self._visitor),
            ("GET", api + "/bytes/{direction}", self._bytes),
            ("GET", api + "/http", self._http),
            ("GET", api + "/http/{index:int}/curl", self._curl),
            ("GET", api + "/http/{index:int}/{part}", self._body),
            ("GET", api + "/websocket", self._websocket),
            ("POST", api + "/replay", self._replay),
        ]
        starlette = Starlette(
            routes=[
                *(
                    Route(path, self._guarded(answer), methods=[method])
                    for method, path, answer in routes
                ),
                Route("/api/live", _Live(self), methods=["GET"]),
            ],
        )
        starlette.router.redirect_slashes = False
        starlette.add_exception_handler(HTTPException, _no_route)
        return _Outermost(starlette, self.access)

    def _guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                return await answer(request)
            except ApiError as error:
                return _problem(error)

        return guarded

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Do what may take longer than a step of the loop; those who left do not wait for it."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)

    async def _json(self, work: Callable[[], object], *, status: int = 200) -> Response:
        content = await self._in_thread(lambda: json.dumps(work()).encode())
        return _answer(content, "application/json", status=status)

    # -- pages -------------------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        return await self._send_file("index.html", request)

    async def _file(self, request: Request) -> Response:
        return await self._send_file(request.path_params["name"], request)

    async def _send_file(self, name: str, request: Request) -> Response:
        known = await self._in_thread(lambda: {each.name for each in PAGES.iterdir()})
        suffix = Path(name).suffix
        if name not in known or suffix not in _KINDS:
            raise ApiError(404, "not_found", "there is no such page")
        content = await self._in_thread((PAGES / name).read_bytes)
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return _answer(content, _KINDS[suffix], headers=headers)

    # -- visitors ----------------------------------------------------------------------------------------------------

    def _recording(self, request: Request) -> Recording:
        recording = self.recorder.recordings.get(request.path_params["number"])
        if recording is None:
            raise ApiError(404, "not_found", "this visitor is not listed any more")
        return recording

    async def _clear(self, _: Request) -> Response:
        self.recorder.clear()
        return Response(status_code=204)

    async def _visitor(self, request: Request) -> Response:
        recording = self._recording(request)
        row, snapshot = as_row(recording), Snapshot.of(recording)
        row |= {
            "received_ended": _since(recording.received.ended, recording.began),
            "sent_ended": _since(recording.sent.ended, recording.began),
        }
        pieces = recording.pieces()
        return await self._json(
            lambda: {
                **row,
                "pieces": pieces,
                "secrets": {
                    "received": find_secrets(snapshot.received),
                    "sent": find_secrets(snapshot.sent),
                },
            }
        )

    async def _bytes(self, request: Request) -> Response:
        recording, direction = self._recording(request), request.path_params["direction"]
        if direction not in ("received", "sent"):
            raise ApiError(404, "not_found", "the directions are received and sent")
        track = recording.received if direction == "received" else recording.sent
        start = _number_in(request, "start", 0)
        end = _number_in(request, "end", len(track.data))
        headers: dict[str, str] = {}
        if "download" in request.query_params:
            name = f"visitor-{recording.number}-{direction}.bin"
            headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return _answer(bytes(track.data[start:end]), "application/octet-stream", headers=headers)

    async def _search(self, request: Request) -> Response:
        """Find the visitors in whose bytes a text stands, small and capital letters alike."""
        wanted = request.query_params.get("q", "")
        if not 0 < len(wanted) <= LONGEST_SEARCH:
            raise ApiError(422, "invalid", f"1 to {LONGEST_SEARCH} characters", "q")
        tracks = [
            (each.number, each.received, each.sent)
            for each in self.recorder.recordings.values()
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

        return await self._json(search)

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _http(self, request: Request) -> Response:
        snapshot = Snapshot.of(self._recording(request))

        def read() -> dict[str, object]:
            conversation = snapshot.conversation
            return {
                "exchanges": [_exchange(snapshot, each) for each in conversation.exchanges],
                "rest": conversation.rest,
            }

        return await self._json(read)

    def _exchange(self, request: Request, snapshot: Snapshot) -> Exchange:
        """Return the exchange that a request is about; to be called in a thread."""
        exchanges = snapshot.conversation.exchanges
        index: int = request.path_params["index"]
        if index >= len(exchanges):
            raise ApiError(404, "not_found", "there is no such request")
        return exchanges[index]

    async def _body(self, request: Request) -> Response:
        snapshot, part = Snapshot.of(self._recording(request)), request.path_params["part"]
        if part not in ("request", "answer"):
            raise ApiError(404, "not_found", "the parts are request and answer")

        def read() -> tuple[bytes, dict[str, object]]:
            exchange = self._exchange(request, snapshot)
            message = exchange.request if part == "request" else exchange.answer
            if message is None:
                raise ApiError(404, "not_found", "there is no answer yet")
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
                "bytes": None
                if text is not None
                else base64.b64encode(body.data[:MOST_TEXT]).decode(),
            }

        if "download" not in request.query_params:
            return await self._json(lambda: read()[1])
        content, _ = await self._in_thread(read)
        name = f"visitor-{snapshot.number}-{part}-{request.path_params['index'] + 1}.bin"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return _answer(content, "application/octet-stream", headers=headers)

    async def _websocket(self, request: Request) -> Response:
        snapshot = Snapshot.of(self._recording(request))

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

        return await self._json(read)

    async def _curl(self, request: Request) -> Response:
        snapshot = Snapshot.of(self._recording(request))

        def write() -> bytes:
            exchange = self._exchange(request, snapshot)
            asked = exchange.request
            body = raw_body(snapshot.received, asked)
            return as_curl(asked, body, url=snapshot.url_of(asked)).encode()

        return _answer(await self._in_thread(write), "text/plain; charset=utf-8")

    async def _har(self, request: Request) -> Response:
        """Write a HAR file of one visitor, or of all."""
        recordings = list(self.recorder.recordings.values())
        name = "trionat.har"
        if wanted := request.query_params.get("visitor"):
            recordings = [each for each in recordings if str(each.number) == wanted]
            name = f"trionat-{recordings[0].number}.har" if recordings else name
            if not recordings:
                raise ApiError(404, "not_found", "this visitor is not listed any more")
        with_secrets = request.query_params.get("secrets") == "1"
        content = await self._in_thread(
            lambda: json.dumps(
                as_har(map(Snapshot.of, recordings), with_secrets=with_secrets), indent=1
            ).encode()
        )
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return _answer(content, "application/json", headers=headers)

    # -- replay ------------------------------------------------------------------------------------------------------

    async def _replay(self, request: Request) -> Response:
        """Send to the service what a visitor has sent: all of it, or one request, as it was or edited."""
        recording = self._recording(request)
        wanted = await _read_json(request)
        if unknown := set(wanted) - {"request", "edit"}:
            raise ApiError(422, "invalid", "there is no such field", min(unknown))
        snapshot = Snapshot.of(recording)
        data = await self._in_thread(partial(_find_replayed, snapshot, recording, wanted))
        if self.replays.is_full:
            raise ApiError(429, "rate_limited", "too many replays are running: wait for one to end")
        run = partial(
            self.replays.run,
            recording,
            data,
            is_http=wanted.get("request") is not None,
            ends=wanted.get("request") is None and snapshot.received_ended,
        )
        try:
            number: int = await self.nursery.start(run, name="replay")
        except LocalServiceError as error:
            raise ApiError(502, "service_down", str(error)) from error
        return await self._json(lambda: {"number": number}, status=201)


def _find_replayed(snapshot: Snapshot, recording: Recording, wanted: dict[str, Any]) -> bytes:
    """Return the bytes that are to be sent.

    Raises:
        ApiError: they are not there, or are no request.
    """
    index = wanted.get("request")
    if index is None:
        if "edit" in wanted:
            raise ApiError(422, "invalid", "only a request can be edited: say which", "request")
        if not recording.received.is_whole:
            raise ApiError(409, "conflict", "not all that the visitor sent was kept (InspectBytes)")
        return snapshot.received
    exchanges = snapshot.conversation.exchanges
    if type(index) is not int or not 0 <= index < len(exchanges):
        raise ApiError(422, "invalid", "there is no such request", "request")
    asked = exchanges[index].request
    edit = wanted.get("edit")
    if edit is None:
        if not asked.is_whole:
            raise ApiError(409, "conflict", "not all of this request was kept (InspectBytes)")
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
        raise ApiError(422, "invalid", "an object is wanted", "edit")
    given = cast("dict[str, Any]", edit)
    if unknown := given.keys() - {"method", "target", "fields", "body"}:
        raise ApiError(422, "invalid", "there is no such field", min(unknown))
    method, target, body = given.get("method"), given.get("target"), given.get("body")
    fields: Any = given.get("fields")
    if not isinstance(method, str) or not isinstance(target, str):
        raise ApiError(422, "invalid", "method and target are texts", "method")
    if not isinstance(fields, list) or not all(map(_is_pair, cast("list[object]", fields))):
        raise ApiError(422, "invalid", "fields are pairs of texts", "fields")
    if body is not None and not isinstance(body, str):
        raise ApiError(422, "invalid", "a text, or null for the body as it was", "body")
    if body is None and not asked.is_whole:
        raise ApiError(409, "conflict", "not all of this request was kept (InspectBytes)")
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
        raise ApiError(422, "invalid", str(error), error.field) from error
    except UnicodeEncodeError as error:
        raise ApiError(422, "invalid", "not a text that UTF-8 can hold", "body") from error


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


def _since(moment: float | None, began: float) -> float | None:
    return None if moment is None else round(moment - began, 6)


def _number_in(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ApiError(422, "invalid", "a whole number", name)
    return int(text)


async def _read_json(request: Request) -> dict[str, Any]:
    """Return the object that a request brings.

    Raises:
        ApiError: it is none, too long, or does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "Content-Type has to be application/json")
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError, binascii.Error) as error:
        raise ApiError(400, "invalid", "this is no JSON") from error
    if not isinstance(found, dict):
        raise ApiError(422, "invalid", "an object is wanted")
    return cast("dict[str, Any]", found)


@attrs.frozen
class _Live:
    """Server-sent events, until the browser goes."""

    application: Application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        live = self.application.live
        if live.is_full:
            problem = ApiError(503, "too_many", "too many pages of the inspector are open")
            await _problem(problem)(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.tell, tell, name="tell a browser")
            with suppress(ApiError):  # of a body that nobody wants: the answer has begun
                while (await receive())["type"] != "http.disconnect":
                    pass
            nursery.cancel_scope.cancel("the browser has gone")


@attrs.frozen
class _Outermost:
    """Whom to let in, what every answer has, and what becomes of a bug."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        has_begun = False

        async def send_with_headers(message: Any) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                names = {bytes(name).lower() for name, _ in message.get("headers", [])}
                message["headers"] = [
                    *message.get("headers", []),
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in names
                    ),
                ]
            await send(message)

        body = BoundedBody(
            source=receive,
            most=MOST_REQUEST_BYTES,
            seconds=_BODY_WITHIN,
            too_large=_too_large,
            too_slow=_too_slow,
        )
        receive = body.receive
        request = Request(scope, receive)
        try:
            answer = self._answer(request) or self.app
            await answer(scope, receive, send_with_headers)
        except Exception:
            log.exception("internal error", path=scope["path"])
            if not has_begun:
                problem = ApiError(500, "internal", "a bug of trionat's: the client's log has it")
                await _problem(problem)(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        """Return the answer to who is not to see anything, and to who comes with the token; None: let it pass."""
        if (refusal := self.access.refuse(request)) is not None:
            return _problem(
                ApiError(
                    refusal.status,
                    "misdirected" if refusal.status == 421 else "forbidden",
                    refusal.text,
                )
            )
        path, token = request.url.path, request.query_params.get("token")
        if path == "/" and token is not None and self.access.admits_token(token):
            answer = _answer(_WELCOME, _KINDS[".html"])
            answer.set_cookie(
                self.access.cookie, self.access.cookie_value, httponly=True, samesite="strict"
            )
            return answer
        if self.access.knows(request):
            return None
        if path == "/":
            return _answer(_LOCKED, _KINDS[".html"], status=401)
        return _problem(
            ApiError(401, "unauthorized", "open the whole URL that trionat has printed")
        )
