"""The HAR file has every field that its format wants, of the right kind."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from datetime import datetime
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings

from tests.inspector.test_http_view import BYTES, asked, frame
from trionat.client.inspector import har as har_module
from trionat.client.inspector.har import HIDDEN, MOST_BYTES, Har
from trionat.client.inspector.http_view import read_body
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
    har = json.loads(Har(with_secrets=with_secrets).write([Snapshot.of(recording)]))
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


def test_secrets_that_are_folded_or_oddly_spelled_are_stars_too() -> None:
    head = "GET / HTTP/1.1\nHost: x\nAuthorization: Bearer\n secret1\n\tsecret2: more\nX-Api-Key : secret3\nAccept: a"
    (entry,) = har_of(asked(head), b"")
    fields = entry["request"]["headers"]
    assert "secret" not in json.dumps(fields)
    assert fields[-1] == {"name": "Accept", "value": "a"}
    (entry,) = har_of(asked(head), b"", with_secrets=True)
    shown = {"name": "Authorization", "value": "Bearer secret1 secret2: more"}
    assert shown in entry["request"]["headers"]


def bombs(count: int) -> Snapshot:
    """Return what becomes 4 MiB by each answer."""
    body = gzip.compress(bytes(2**22))
    head = f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(body)}"
    recorder = Recorder(2**24)
    recording = recorder.begin(0, parse_service("8080"), None, None)
    recording.add(recording.received, memoryview(asked("GET / HTTP/1.1\nHost: x") * count))
    recording.add(recording.sent, memoryview(asked(head, body) * count))
    recorder.end(recording, "closed")
    return Snapshot.of(recording)


def test_nothing_is_decompressed_for_which_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decompressed = 0

    def read(*given: Any) -> Any:
        nonlocal decompressed
        body = read_body(*given)
        decompressed += len(body.data)
        return body

    monkeypatch.setattr(har_module, "read_body", read)
    entries = json.loads(Har(with_secrets=False).write([bombs(30)]))["log"]["entries"]
    assert len(entries) == 30
    assert decompressed <= MOST_BYTES + 2**22
    contents = [entry["response"]["content"] for entry in entries]
    assert "comment" not in contents[0]
    assert contents[-1]["comment"] == "left out, as the file would be too large"


def test_it_has_a_deadline_for_bodies_and_a_size() -> None:
    (entry, *_) = json.loads(Har(with_secrets=False, seconds=0).write([bombs(3)]))["log"]["entries"]
    assert entry["response"]["content"]["text"] == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(har_module, "MOST_FILE_BYTES", 1000)
        log = json.loads(Har(with_secrets=False, seconds=0).write([bombs(30)]))["log"]
    assert 0 < len(log["entries"]) < 30
    assert log["comment"]


def test_it_stops_when_it_is_told_to() -> None:
    har = Har(with_secrets=False)
    writing = threading.Thread(target=har.write, args=([bombs(3)] * 3000,))
    writing.start()
    har.stop()
    began = perf_counter()
    writing.join(10)
    assert not writing.is_alive()
    assert perf_counter() - began < 5
