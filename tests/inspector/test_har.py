"""The HAR file has every field that its format wants, of the right kind."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from hypothesis import given, settings

from tests.inspector.test_http_view import BYTES, asked, frame
from trionat.client.inspector.har import HIDDEN, as_har
from trionat.client.inspector.recorder import Recorder
from trionat.client.inspector.snapshot import Snapshot
from trionat.config.service import parse_service

NUMBER = (int, float)
NAMED = {"name": str, "value": str}
SCHEMA: dict[str, Any] = {
    "log": {
        "version": str,
        "creator": {"name": str, "version": str},
        "pages": list,
        "entries": [
            {
                "startedDateTime": str,
                "time": NUMBER,
                "request": {
                    "method": str,
                    "url": str,
                    "httpVersion": str,
                    "cookies": [NAMED],
                    "headers": [NAMED],
                    "queryString": [NAMED],
                    "headersSize": int,
                    "bodySize": int,
                },
                "response": {
                    "status": int,
                    "statusText": str,
                    "httpVersion": str,
                    "cookies": [NAMED],
                    "headers": [NAMED],
                    "content": {"size": int, "mimeType": str},
                    "redirectURL": str,
                    "headersSize": int,
                    "bodySize": int,
                },
                "cache": {},
                "timings": {"send": NUMBER, "wait": NUMBER, "receive": NUMBER},
            }
        ],
    }
}
"""What has to be there (http://www.softwareishard.com/blog/har-12-spec/); there may be more."""

OPTIONAL = {"connection", "postData", "text", "encoding", "comment", "_webSocketMessages"}


def check(value: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, dict):
        assert isinstance(value, dict), where
        assert set(wanted) <= set(value) <= set(wanted) | OPTIONAL, where
        for name, inner in wanted.items():
            check(value[name], inner, f"{where}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(value, list), where
        for each in value:
            check(each, wanted[0], f"{where}[]")
    else:
        assert isinstance(value, wanted), where
        assert not isinstance(value, bool), where


def har_of(received: bytes, sent: bytes, *, with_secrets: bool = False) -> Any:
    recorder = Recorder(10**6)
    recording = recorder.begin(0, parse_service("8080"), None, None)
    recording.add(recording.received, memoryview(received))
    recording.add(recording.sent, memoryview(sent))
    recorder.end(recording, "closed")
    har = json.loads(json.dumps(as_har([Snapshot.of(recording)], with_secrets=with_secrets)))
    check(har, SCHEMA)
    return har["log"]["entries"]


RECEIVED = asked(
    "POST /a?b=c&d HTTP/1.1\nHost: shop.example\nCookie: sid=secret1; x=y\nAuthorization: secret2\nContent-Type: text/plain\nContent-Length: 3",
    b"abc",
)
SENT = asked(
    "HTTP/1.1 302 Found\nLocation: /b\nSet-Cookie: sid=secret3; HttpOnly\nContent-Type: image/png\nContent-Length: 4",
    b"\x89PNG",
)


def test_an_entry() -> None:
    (entry,) = har_of(RECEIVED, SENT)
    request, response = entry["request"], entry["response"]
    assert request["url"] == "http://shop.example/a?b=c&d"
    assert request["queryString"] == [
        {"name": "b", "value": "c"},
        {"name": "d", "value": ""},
    ]
    assert request["postData"] == {"mimeType": "text/plain", "text": "abc"}
    assert request["bodySize"] == 3
    assert response["redirectURL"] == "/b"
    assert base64.b64decode(response["content"]["text"]) == b"\x89PNG"
    assert datetime.fromisoformat(entry["startedDateTime"]).tzinfo is not None


def test_secrets_are_stars_unless_they_are_wanted() -> None:
    hidden = json.dumps(har_of(RECEIVED, SENT))
    shown = json.dumps(har_of(RECEIVED, SENT, with_secrets=True))
    for secret in ("secret1", "secret2", "secret3"):
        assert secret not in hidden
        assert secret in shown
    (entry,) = har_of(RECEIVED, SENT)
    assert entry["request"]["cookies"][0] == {"name": "sid", "value": HIDDEN}


def test_an_answer_that_never_came() -> None:
    (entry,) = har_of(RECEIVED, b"")
    assert entry["response"]["status"] == 0
    assert entry["timings"]["wait"] == -1


def test_a_web_socket() -> None:
    upgrade = asked("GET / HTTP/1.1\nUpgrade: websocket")
    switched = asked("HTTP/1.1 101 Switching Protocols\nUpgrade: websocket")
    (entry,) = har_of(upgrade + frame(1, b"hello", mask=b"abcd"), switched + frame(2, b"\x00\xff"))
    messages = entry["_webSocketMessages"]
    assert [(each["type"], each["opcode"], each["data"]) for each in messages] == [
        ("send", 1, "hello"),
        ("receive", 2, base64.b64encode(b"\x00\xff").decode()),
    ]


@settings(max_examples=200)
@given(BYTES, BYTES)
def test_of_anything(received: bytes, sent: bytes) -> None:
    har_of(received, sent)
