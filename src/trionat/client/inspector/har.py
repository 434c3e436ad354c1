"""Recordings as a HAR file, version 1.2, which browsers and other tools read (http://www.softwareishard.com/blog/har-12-spec/)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from trionat.client.inspector.http_view import SECRET_FIELDS, read_body, read_text
from trionat.client.inspector.websocket_view import deflates, read_messages
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trionat.client.inspector.http_view import Exchange, Message
    from trionat.client.inspector.snapshot import Snapshot

MOST_BYTES: Final = 32 * 1024 * 1024
"""Bytes of bodies in one file; those that come after are left out, and their entries say so."""

HIDDEN: Final = "***"
_MOST_PARAMETERS: Final = 1000


def as_har(snapshots: Iterable[Snapshot], *, with_secrets: bool) -> dict[str, Any]:
    """Return the file's content, for JSON. Without secrets, the values of such fields are stars."""
    return {
        "log": {
            "version": "1.2",
            "creator": {"name": "trionat", "version": VERSION},
            "pages": [],
            "entries": list(_Writer(with_secrets=with_secrets).entries(snapshots)),
        }
    }


class _Writer:
    def __init__(self, *, with_secrets: bool) -> None:
        self._with_secrets = with_secrets
        self._left = MOST_BYTES

    def entries(self, snapshots: Iterable[Snapshot]) -> Iterator[dict[str, Any]]:
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
        if exchange.is_websocket and answer is not None:
            entry["_webSocketMessages"] = self._messages(snapshot, request, answer)
        return entry

    def _request(self, snapshot: Snapshot, message: Message) -> dict[str, Any]:
        url = snapshot.url_of(message)
        body = read_body(snapshot.received, message)
        written: dict[str, Any] = {
            "method": message.first[0],
            "url": url,
            "httpVersion": f"HTTP/{message.first[2]}",
            "queryString": [{"name": name, "value": value} for name, value in _parameters(url)],
            **self._fields(message, "cookie"),
            "bodySize": message.end - message.body,
        }
        if body.data:
            text = read_text(body.data, message)
            written["postData"] = {
                "mimeType": "".join(message.values("content-type")[:1]),
                **self._text(body.data, text),
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
        body = read_body(snapshot.sent, message)
        return {
            "status": int(message.first[1]),
            "statusText": message.first[2],
            "httpVersion": f"HTTP/{message.first[0]}",
            **self._fields(message, "set-cookie"),
            "content": {
                "size": len(body.data),
                "mimeType": "".join(message.values("content-type")[:1]),
                **self._text(body.data, read_text(body.data, message)),
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
                {"name": name.strip(), "value": text if self._with_secrets else HIDDEN}
                for value in message.values(cookies)
                for pair in (value.split(";") if cookies == "cookie" else value.split(";")[:1])
                for name, equals, text in [pair.partition("=")]
                if equals
            ],
            "headersSize": message.body - message.start,
        }

    def _value(self, name: str, value: str) -> str:
        return value if self._with_secrets or name.lower() not in SECRET_FIELDS else HIDDEN

    def _text(self, data: bytes, text: str | None) -> dict[str, str]:
        self._left -= len(data)
        if self._left < 0:
            return {"text": "", "comment": "left out, as the file would be too large"}
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
