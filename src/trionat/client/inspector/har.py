"""Recordings as a HAR file, version 1.2, which browsers and other tools read (http://www.softwareishard.com/blog/har-12-spec/)."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

import attrs

from trionat.client.inspector.context import append_json
from trionat.client.inspector.http_view import is_secret, read_body, read_text
from trionat.client.inspector.websocket_view import deflates, read_messages
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trionat.client.inspector.http_view import Body, Exchange, Message
    from trionat.client.inspector.snapshot import Snapshot

MOST_BYTES: Final = 32 * 1024 * 1024
"""Bytes of bodies in one file; those that come after are left out, and their entries say so."""

MOST_FILE_BYTES: Final = 96 * 1024 * 1024
"""Bytes of a file after which there are no more entries: heads of many short lines become many times as long."""

WITHIN: Final = 20.0
"""Seconds after which bodies are left out. Chosen: an ordinary file of `MOST_BYTES` is written long before."""

_LEFT_OUT: Final = "left out, as the file would be too large"
HIDDEN: Final = "***"
_MOST_PARAMETERS: Final = 1000


@attrs.define(eq=False, kw_only=True)
class Har:
    """One file. Without secrets, the values of such fields are stars. `write` is for a thread, and works for no longer than somewhat more than `seconds`."""

    with_secrets: bool
    seconds: float = WITHIN
    _left: int = attrs.field(init=False, default=MOST_BYTES)
    _ends_at: float = attrs.field(init=False, default=float("inf"))
    _is_stopped: bool = attrs.field(init=False, default=False)

    def stop(self) -> None:
        """Nobody waits for it any more; to be called from anywhere."""
        self._is_stopped = True

    def write(self, snapshots: Iterable[Snapshot]) -> bytes:
        """Return the file, with so many entries as fit; nothing that is of use when it was stopped."""
        self._ends_at = perf_counter() + self.seconds
        creator = json.dumps({"name": "trionat", "version": VERSION})
        file = bytearray(b'{"log": {"version": "1.2", "creator": %b' % creator.encode())
        file += b', "pages": [], "entries": ['
        comma, comment = b"\n", ""
        for entry in self._entries(snapshots):
            if self._is_stopped:
                return b""
            if len(file) > MOST_FILE_BYTES:
                comment = f', "comment": "{_LEFT_OUT}"'
                break
            file += comma
            append_json(file, entry)
            comma = b",\n"
        file += f"]{comment}}}}}\n".encode()
        return bytes(file)

    def _entries(self, snapshots: Iterable[Snapshot]) -> Iterator[dict[str, Any]]:
        for snapshot in snapshots:
            for exchange in snapshot.conversation.exchanges:
                yield self._entry(snapshot, exchange)

    def _entry(self, snapshot: Snapshot, exchange: Exchange) -> dict[str, Any]:
        request, answer = exchange.request, exchange.answer
        times = snapshot.times_of(exchange)
        began = datetime.fromtimestamp(snapshot.began_at + times.asked, UTC)
        entry: dict[str, Any] = {
            "startedDateTime": began.isoformat(timespec="milliseconds"),
            "time": _milliseconds(times.asked, times.ended or times.sent),
            "request": self._request(snapshot, request),
            "response": self._response(snapshot, answer),
            "cache": {},
            "timings": {
                "send": _milliseconds(times.asked, times.sent),
                "wait": _milliseconds(times.sent, times.answered),
                "receive": _milliseconds(times.answered, times.ended),
            },
            "connection": str(snapshot.number),
        }
        comments: list[str] = []
        if snapshot.replay_of is not None:
            comments.append(f"replay of visitor {snapshot.replay_of}")
        if exchange.is_websocket and answer is not None:
            if self._is_full():
                comments.append(f"messages: {_LEFT_OUT}")
            else:
                entry["_webSocketMessages"] = self._messages(snapshot, request, answer)
        if comments:
            entry["comment"] = "; ".join(comments)
        return entry

    def _request(self, snapshot: Snapshot, message: Message) -> dict[str, Any]:
        url = snapshot.url_of(message)
        body = self._body(snapshot.received, message)
        written: dict[str, Any] = {
            "method": message.first[0],
            "url": url,
            "httpVersion": f"HTTP/{message.first[2]}",
            "queryString": [{"name": name, "value": value} for name, value in _parameters(url)],
            **self._fields(message, "cookie"),
            "bodySize": message.end - message.body,
        }
        if body is None or body.data:
            written["postData"] = {
                "mimeType": "".join(message.values("content-type")[:1]),
                **self._content(body, message),
            }
        return written

    def _response(self, snapshot: Snapshot, message: Message | None) -> dict[str, Any]:
        if message is None:  # as browsers have it
            return {
                "status": 0,
                "statusText": "",
                "httpVersion": "",
                "cookies": [],
                "headers": [],
                "content": {"size": 0, "mimeType": ""},
                "redirectURL": "",
                "headersSize": -1,
                "bodySize": -1,
            }
        body = self._body(snapshot.sent, message)
        return {
            "status": int(message.first[1]),
            "statusText": message.first[2],
            "httpVersion": f"HTTP/{message.first[0]}",
            **self._fields(message, "set-cookie"),
            "content": {
                "size": message.end - message.body if body is None else len(body.data),
                "mimeType": "".join(message.values("content-type")[:1]),
                **self._content(body, message),
            },
            "redirectURL": "".join(message.values("location")[:1]),
            "bodySize": message.end - message.body,
        }

    def _fields(self, message: Message, cookies: str) -> dict[str, Any]:
        """Return the fields of a head, and those of them that are cookies once more."""
        return {
            "headers": [
                {"name": name, "value": self._value(name, value)} for name, value in message.fields
            ],
            "cookies": [
                {"name": name.strip(), "value": text if self.with_secrets else HIDDEN}
                for value in message.values(cookies)
                for pair in (value.split(";") if cookies == "cookie" else value.split(";")[:1])
                for name, equals, text in [pair.partition("=")]
                if equals
            ],
            "headersSize": message.body - message.start,
        }

    def _value(self, name: str, value: str) -> str:
        return value if self.with_secrets or not is_secret(name) else HIDDEN

    def _is_full(self) -> bool:
        return self._left <= 0 or self._is_stopped or perf_counter() > self._ends_at

    def _body(self, data: bytes, message: Message) -> Body | None:
        """Return a body as it was meant; None: there is no room for it, and so nothing is decompressed."""
        if self._is_full() and message.end > message.body:
            return None
        return read_body(data, message)

    def _content(self, body: Body | None, message: Message) -> dict[str, str]:
        if body is None:
            return {"text": "", "comment": _LEFT_OUT}
        return self._text(body.data, read_text(body.data, message))

    def _text(self, data: bytes, text: str | None) -> dict[str, str]:
        self._left -= len(data)
        if self._left < 0:
            return {"text": "", "comment": _LEFT_OUT}
        if text is not None:
            return {"text": text}
        return {"text": base64.b64encode(data).decode(), "encoding": "base64"}

    def _messages(
        self, snapshot: Snapshot, request: Message, answer: Message
    ) -> list[dict[str, Any]]:
        """Return the messages of a web socket, as Chromium writes them."""
        found: list[dict[str, Any]] = []
        for kind, data, head in (
            ("send", snapshot.received, request),
            ("receive", snapshot.sent, answer),
        ):
            for message in read_messages(data, head.end, deflated=deflates(answer)):
                direction = "received" if kind == "send" else "sent"
                written = self._text(
                    message.data,
                    message.data.decode("utf-8", "replace") if message.kind == "text" else None,
                )
                found.append(
                    {
                        "type": kind,
                        "time": snapshot.began_at + snapshot.time_of(direction, message.start),
                        "opcode": {"text": 1, "binary": 2, "close": 8, "ping": 9}.get(
                            message.kind, 10
                        ),
                        "data": written["text"],
                    }
                )
        return sorted(found, key=lambda each: float(each["time"]))


def _milliseconds(since: float | None, until: float | None) -> float:
    """Return how long it took; -1 where that is not known, as the format has it."""
    if since is None or until is None:
        return -1
    return round(max(0.0, until - since) * 1000, 3)


def _parameters(url: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            urlsplit(url).query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS
        )
    except ValueError:
        return []
