"""The search finds what was said, however it was packed, and never takes long."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.inspector.test_http_view import frame
from trionat.client.inspector import search as search_module
from trionat.client.inspector.recorder import Recorder
from trionat.client.inspector.search import MOST_FOUND, Search
from trionat.config.service import parse_service

if TYPE_CHECKING:
    from trionat.client.inspector.recording import Recording

SERVICE = parse_service("8080")
WORDS = json.dumps({"order": 17, "note": "A Needle in the hay, Ärger, 针"}, ensure_ascii=False)
HAY = json.dumps([{"hay": number} for number in range(20_000)])
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SOCKET = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"


class Said:
    """A recorder, and what visitors and services have said."""

    def __init__(self) -> None:
        self.recorder = Recorder(2**26)

    def add(self, received: bytes, sent: bytes = b"") -> int:
        recording = self.recorder.begin(0, SERVICE, None, None)
        recording.add(recording.received, memoryview(received))
        recording.add(recording.sent, memoryview(sent))
        return recording.number

    @property
    def recordings(self) -> list[Recording]:
        return list(self.recorder.recordings.values())

    def find(self, wanted: str) -> list[int]:
        search = Search(wanted)
        search.run(self.recordings)
        assert search.is_whole
        return list(search.found)


def answer(body: bytes, *fields: str, chunks: int = 0) -> bytes:
    """Return an answer; `chunks` is how long each chunk is, 0 for none."""
    lines = ["HTTP/1.1 200 OK", *fields]
    if chunks:
        pieces = [body[at : at + chunks] for at in range(0, len(body), chunks)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def deflated(text: str) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    packed = engine.compress(text.encode()) + engine.flush(zlib.Z_SYNC_FLUSH)
    return packed.removesuffix(b"\x00\x00\xff\xff")


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        (WORDS.encode(), b""),
        (GET, answer(WORDS.encode())),
        (GET, answer(WORDS.encode(), chunks=3)),
        (GET, answer(gzip.compress(WORDS.encode()), "Content-Encoding: gzip")),
        (GET, answer(zlib.compress(WORDS.encode()), "Content-Encoding: deflate", chunks=5)),
        (GET, answer(gzip.compress((HAY + WORDS).encode()), "Content-Encoding: gzip")),
        (GET + GET, answer(b"") + answer(WORDS.encode(), chunks=2)),
        (answer(WORDS.encode(), chunks=4).replace(b"HTTP/1.1 200 OK", b"POST / HTTP/1.1"), b""),
        (GET, SOCKET + frame(1, deflated(WORDS), packed=True)),
        (GET + frame(1, WORDS.encode(), mask=b"abcd"), SOCKET),
        (GET, SOCKET + frame(1, WORDS[:9].encode(), final=False) + frame(0, WORDS[9:].encode())),
        (GET, SOCKET + frame(1, deflated(HAY + WORDS), packed=True)),
    ],
)
def test_it_is_found_however_it_is_packed(received: bytes, sent: bytes) -> None:
    said = Said()
    said.add(GET, answer(b"nothing"))
    number = said.add(received, sent)
    said.add(b"\x00\xff" * 1000, os.urandom(1000))
    for wanted in ("needle", "NEEDLE IN THE", "A Needle", "Ärger", "针"):
        assert said.find(wanted) == [number], wanted
    if received != WORDS.encode():
        assert said.find("äRGER") == [number]
    assert said.find("needles") == []


@pytest.mark.parametrize(("charset", "word"), [("gbk", "针"), ("iso-8859-1", "ärger")])
def test_other_encodings(charset: str, word: str) -> None:
    said = Said()
    plain = answer(f"A Needle and {word.upper()}".encode(charset))
    kind = f"Content-Type: text/html; charset={charset}"
    one = said.add(GET, plain.replace(b"Content-Length", f"{kind}\r\nContent-Length".encode()))
    assert said.find(word) == [one]
    assert said.find("NEEDLE") == [one]


def test_a_text_that_is_where_two_pieces_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_PIECE", 8)
    for before in range(20):
        said = Said()
        hay = "x" * before
        plain = said.add(f"{hay}needle".encode())
        packed = said.add(
            GET, answer(gzip.compress(f"{hay}needleÄ".encode()), "Content-Encoding: gzip")
        )
        assert said.find("needle") == [plain, packed]
        assert said.find("NEEDLEä") == [packed]
        assert said.find("a" * 50) == []


def test_the_newest_come_first_and_there_is_an_end() -> None:
    said = Said()
    for _ in range(MOST_FOUND + 5):
        said.add(b"needle")
    search = Search("needle")
    search.run(said.recordings)
    assert list(search.found) == list(range(MOST_FOUND + 5, 5, -1))
    assert not search.is_whole


def bombs() -> Said:
    """Thousands of bodies that are 4 MiB each, and so many gigabytes, when they are decompressed."""
    said = Said()
    body = gzip.compress(bytes(64 * 2**20))
    for _ in range(20):
        said.add(GET * 30, 30 * answer(body, "Content-Encoding: gzip"))
    said.add(b"a needle at first sight")
    return said


def test_it_ends_in_time_and_takes_little_memory() -> None:
    said = bombs()
    search = Search("needle", seconds=0.5)
    tracemalloc.start()
    try:
        began = time.perf_counter()
        search.run(said.recordings)
        passed = time.perf_counter() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passed < 3, "twice as long as it may take, on a busy machine"
    assert peak < 32 * 2**20
    assert (list(search.found), search.is_whole) == ([21], False)


def test_it_is_stopped_when_nobody_waits() -> None:
    search = Search("nothing of the kind", seconds=60)
    running = threading.Thread(target=search.run, args=(bombs().recordings,))
    running.start()
    time.sleep(0.1)
    search.stop()
    running.join(5)
    assert not running.is_alive()
    assert not search.is_whole
