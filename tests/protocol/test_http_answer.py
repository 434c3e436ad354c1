"""Answers of services: where they end, what the visitor sees of their head, and what is none."""

from __future__ import annotations

from typing import Final

import pytest

from trionat.protocol.http.answer import (
    MOST_ANSWER_FIELDS,
    AnswerHead,
    parse_answer,
)
from trionat.protocol.http.fields import HttpError
from trionat.protocol.http.head import RequestHead, parse_request


def request(method: str = "GET", minor: int = 1, *lines: str) -> RequestHead:
    first = f"{method} / HTTP/1.{minor}"
    return parse_request("\r\n".join([first, "Host: a.example", *lines, "", ""]).encode())


def answer(
    *lines: str, first: str = "HTTP/1.1 200 OK", to: RequestHead | None = None
) -> AnswerHead:
    whole = "\r\n".join([first, *lines, "", ""]).encode("latin-1")
    return parse_answer(whole, to or request())


UNTIL_CLOSE: Final = (None, False, False)


@pytest.mark.parametrize(
    ("lines", "first", "method", "end"),
    [
        (["Content-Length: 5"], "HTTP/1.1 200 OK", "GET", (5, False, True)),
        (["Content-Length: 0"], "HTTP/1.1 200", "GET", (0, False, True)),
        (["Transfer-Encoding: chunked"], "HTTP/1.1 200 OK", "GET", (None, True, True)),
        (["Transfer-Encoding: Chunked"], "HTTP/1.1 404 Not Found", "PUT", (None, True, True)),
        ([], "HTTP/1.1 200 OK", "GET", UNTIL_CLOSE),
        (["Connection: keep-alive"], "HTTP/1.0 200 OK", "GET", UNTIL_CLOSE),
        (["Content-Length: 5"], "HTTP/1.0 200 OK", "GET", (5, False, False)),
        (
            ["Content-Length: 5", "Connection: Keep-Alive"],
            "HTTP/1.0 200 OK",
            "GET",
            (5, False, True),
        ),
        (["Content-Length: 5", "Connection: close"], "HTTP/1.1 200 OK", "GET", (5, False, False)),
        (["Content-Length: 5"], "HTTP/1.1 200 OK", "HEAD", (0, False, True)),
        (["Transfer-Encoding: chunked"], "HTTP/1.1 200 OK", "HEAD", (0, False, True)),
        ([], "HTTP/1.1 200 OK", "HEAD", (0, False, True)),
        (["Content-Length: 5"], "HTTP/1.1 304 Not Modified", "GET", (0, False, True)),
        ([], "HTTP/1.1 304 Not Modified", "GET", (0, False, True)),
        ([], "HTTP/1.1 204 No Content", "GET", (0, False, True)),
        (["Content-Length: 5"], "HTTP/1.1 204 No Content", "GET", (0, False, True)),
        (["Transfer-Encoding: chunked"], "HTTP/1.1 204 No Content", "GET", (0, False, True)),
        ([], "HTTP/1.1 205 Reset Content", "GET", (0, False, True)),
        ([], "HTTP/1.1 100 Continue", "POST", (0, False, True)),
        (["Link: </a>"], "HTTP/1.1 103 Early Hints", "GET", (0, False, True)),
        (["Content-Length: 5"], "HTTP/1.1 103 Early Hints", "GET", (0, False, True)),
    ],
)
def test_where_it_ends(
    lines: list[str], first: str, method: str, end: tuple[int | None, bool, bool]
) -> None:
    got = answer(*lines, first=first, to=request(method))
    assert (got.length, got.chunked, got.keep_alive) == end
    assert got.is_interim == (" 10" in first)
    assert got.ends_with_connection == (end == UNTIL_CLOSE)


def test_where_visitors_see_the_end_of_a_205() -> None:
    """They wait for a body where nobody says that there is none."""
    got = answer(first="HTTP/1.1 205 Reset Content", to=request("POST"))
    assert b"\r\nContent-Length: 0\r\n" in got.encode(keep_alive=True, minor=1)


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/2 200 OK",
        "HTTP/1.2 200 OK",
        "ICY 200 OK",
        "SSH-2.0-OpenSSH_9.2",
        "HTTP/1.1 99 OK",
        "HTTP/1.1 1000 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 200 OK\x00",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 OK\nX: y",
        "HTTP/1.1 200 OK\r\nX : y",
        "HTTP/1.1 200 OK\r\nX: y\r\n z",
        "HTTP/1.1 200 OK\r\nX: y\rz",
        "HTTP/1.1 200 OK\r\nX: \x00",
        "HTTP/1.1 200 OK\r\nX",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nContent-Length: -1",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 5",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x",
        "HTTP/1.1 200 OK\r\n" + "\r\n".join(["X: y"] * (MOST_ANSWER_FIELDS + 1)),
    ],
)
def test_what_is_no_answer(head: str) -> None:
    with pytest.raises(HttpError) as refused:
        parse_answer(f"{head}\r\n\r\n".encode("latin-1"), request())
    assert refused.value.status == 502


def test_chunks_are_no_answer_for_1_0() -> None:
    with pytest.raises(HttpError, match=r"HTTP/1\.0"):
        answer("Transfer-Encoding: chunked", to=request(minor=0))


@pytest.mark.parametrize(
    ("lines", "first", "keep_alive", "minor", "expected"),
    [
        (
            ["Content-Length: 5", "Connection: keep-alive", "Keep-Alive: timeout=5", "X:  y"],
            "HTTP/1.0 200 Fine",
            True,
            1,
            b"HTTP/1.1 200 Fine\r\nX:  y\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            ["Content-Length: 5"],
            "HTTP/1.1 200 OK",
            True,
            0,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            ["Content-Length: 5"],
            "HTTP/1.1 200 OK",
            False,
            1,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
        ),
        (
            ["Connection: X-Hop", "X-Hop: 1", "Upgrade: h2,h2c", "Proxy-Authenticate: Basic"],
            "HTTP/1.1 407 \xe4",
            False,
            1,
            b"HTTP/1.1 407 \xe4\r\nProxy-Authenticate: Basic\r\nConnection: close\r\n\r\n",
        ),
        (
            ["Content-Length: 0"],
            "HTTP/1.1 204",
            True,
            1,
            b"HTTP/1.1 204 \r\n\r\n",
        ),
        (["A: b"], "HTTP/1.1 103 Early", False, 1, b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n"),
    ],
)
def test_what_the_visitor_sees(
    lines: list[str], first: str, keep_alive: bool, minor: int, expected: bytes
) -> None:
    assert answer(*lines, first=first).encode(keep_alive=keep_alive, minor=minor) == expected


def test_switching() -> None:
    asked = request("GET", 1, "Connection: Upgrade", "Upgrade: websocket")
    got = answer(
        "Connection: upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Accept: x",
        first="HTTP/1.1 101 Switching Protocols",
        to=asked,
    )
    assert got.is_switched
    assert not got.is_interim
    assert got.encode(keep_alive=True, minor=1) == (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
    declined = answer("Content-Length: 0", first="HTTP/1.1 426 Upgrade Required", to=asked)
    assert not declined.is_switched
