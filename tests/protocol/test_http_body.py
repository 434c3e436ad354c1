"""Bodies in chunks: what is refused, where they end, and what a service gets of them."""

from __future__ import annotations

import string
import time
from itertools import pairwise
from typing import Final

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.protocol.http.body import ChunkFollower, ChunkReader
from trionat.protocol.http.fields import MOST_FIELDS, MOST_HEAD_BYTES, HttpError

BEHIND: Final = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"


def framed_anew(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """What the service gets, and what is behind the body."""
    reader, out = ChunkReader(), b""
    for number, piece in enumerate(pieces):
        written, count = reader.feed(piece)
        out += written
        if reader.complete:
            return out, piece[count:] + b"".join(pieces[number + 1 :])
        assert count == len(piece)
    raise AssertionError("it did not end")


def as_read(chunked: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body and the fields behind it, as a reader that is not ours sees them; nothing may be left over."""
    service = h11.Connection(h11.SERVER)
    service.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(service.next_event(), h11.Request)
    service.receive_data(chunked)
    body = b""
    while not isinstance(event := service.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        body += event.data
    assert service.trailing_data[0] == b""
    return body, list(event.headers)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[one:two] for one, two in pairwise(ends)]


GOOD: Final = [
    (b"0\r\n\r\n", b"", []),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
    (b"000005\r\nhello\r\n000\r\n\r\n", b"hello", []),
    (b"a\r\n0123456789\r\nA\r\nabcdefghij\r\n0\r\n\r\n", b"0123456789abcdefghij", []),
    (b'5;a=b;c;d="e f"\r\nhello\r\n0;x\r\n\r\n', b"hello", []),
    (b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n\r\n", []),
    (b"9\r\n0\r\n\r\nGET \r\n0\r\n\r\n", b"0\r\n\r\nGET ", []),
    (b"1\r\n\r\r\n4\r\n\n\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n", []),
    (b"1\r\nx\r\n0\r\nDigest: 1\r\nX-A:2 \r\n\r\n", b"x", [(b"digest", b"1"), (b"x-a", b"2")]),
    (
        b"0\r\nAuthorization: x\r\nX_A: 1\r\nX-Forwarded-For: 1.1.1.1\r\nCookie: a\r\nOk: 1\r\nTrailer: Ok\r\n\r\n",
        b"",
        [(b"ok", b"1")],
    ),
]


@pytest.mark.parametrize(("chunked", "body", "trailers"), GOOD)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_what_goes_on(
    chunked: bytes, body: bytes, trailers: list[tuple[bytes, bytes]], size: int
) -> None:
    stream = chunked + BEHIND
    out, rest = framed_anew([stream[at : at + size] for at in range(0, len(stream), size)])
    assert rest == BEHIND
    assert as_read(out) == (body, trailers)
    assert b";" not in out or b";" in body


@pytest.mark.parametrize(
    "chunked",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\t\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 ;a\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"-0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"5.0\r\nhello\r\n0\r\n\r\n",
        b"5h\r\nhello\r\n0\r\n\r\n",
        b"\xb25\r\nhello\r\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b";a\r\nhello\r\n0\r\n\r\n",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\n\rhello\r\n0\r\n\r\n",
        b"5\r\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\n\n",
        b"5\r\nhello\r\n0\r\n\rX",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;a\x00\r\nhello\r\n0\r\n\r\n",
        b'5;a="\r\n0\r\n\r\n',
        b"5;a=\nhello\r\n0\r\n\r\n",
        b"5;\nxx\r\nhello\r\n0\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\ncontent-LENGTH: 0\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\nHost: b\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\nX: 1\r\n y\r\n\r\n",
        b"0\r\nX: 1\rY: 2\r\n\r\n",
        b"0\r\n X: 1\r\n\r\n",
        b"0\r\n: 1\r\n\r\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(MOST_FIELDS + 1)) + b"\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1000_000])
def test_what_is_refused(chunked: bytes, size: int) -> None:
    stream = chunked + BEHIND
    reader = ChunkReader()
    with pytest.raises(HttpError) as refused:
        for at in range(0, len(stream), size):
            reader.feed(stream[at : at + size])
            assert not reader.complete
    assert refused.value.status in {400, 431}


@pytest.mark.parametrize(
    "stream",
    [
        b"5;" + b"a" * 10_000_000,
        b"0\r\nX: " + b"a" * 10_000_000,
        b"0\r\n" + b"X: y\r\n" * 1_000_000,
    ],
    ids=["extension", "field", "fields"],
)
def test_what_is_no_body_has_a_bound(stream: bytes) -> None:
    reader, fed = ChunkReader(), 0
    with pytest.raises(HttpError):
        for at in range(0, len(stream), 1000):
            reader.feed(stream[at : at + 1000])
            fed += 1000
    assert fed <= MOST_HEAD_BYTES + 1000


@given(st.sampled_from(GOOD), st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same(
    good: tuple[bytes, bytes, list[tuple[bytes, bytes]]], places: list[int]
) -> None:
    chunked, body, trailers = good
    out, rest = framed_anew(cut(chunked + BEHIND, places))
    assert (as_read(out), rest) == ((body, trailers), BEHIND)


BODIES: Final = st.lists(
    st.text(st.sampled_from("\r\n0;a" + string.hexdigits), min_size=1, max_size=12), max_size=5
)


@given(BODIES, st.lists(st.integers(0, 200), max_size=8))
def test_a_follower_finds_the_same_end(pieces: list[str], places: list[int]) -> None:
    body = [piece.encode() for piece in pieces]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body) + b"0\r\n\r\n"
    out, rest = framed_anew(cut(chunked + BEHIND, places))
    assert (as_read(out)[0], rest) == (b"".join(body), BEHIND)
    follower, followed = ChunkFollower(502), 0
    for piece in cut(chunked + BEHIND, places):
        if not follower.complete:
            followed += follower.follow(piece)
    assert followed == len(chunked)


@given(
    st.integers(0, 60),
    st.binary(max_size=3) | st.sampled_from([b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b";", b" "]),
)
def test_a_mutation_never_moves_the_end_unseen(at: int, noise: bytes) -> None:
    """However chunks are disturbed: where we see an end, a strict reader of what we write sees the same body, and nothing behind it."""
    good = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX: 1\r\n\r\n"
    disturbed = good[: at % len(good)] + noise + good[at % len(good) :]
    reader = ChunkReader()
    try:
        out, count = reader.feed(disturbed + BEHIND)
    except HttpError:
        return
    if reader.complete:
        as_read(out)
        assert (disturbed + BEHIND)[:count].endswith(b"\r\n\r\n")


def test_a_body_of_line_ends_costs_what_any_other_does() -> None:
    """Each could be the end, and a parser that is called for each takes two hundred times as long."""

    def seconds(content: bytes) -> float:
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        began = time.process_time()
        for at in range(0, len(chunked), 65536):
            reader.feed(chunked[at : at + 65536])
        assert reader.complete
        return time.process_time() - began

    costs: list[tuple[float, float]] = []
    for _ in range(5):
        reader = ChunkReader()
        plain = seconds(bytes(2**20))
        reader = ChunkReader()
        costs.append((plain, seconds(b"\r\n" * 2**19)))
    assert min(each for _, each in costs) < 20 * min(each for each, _ in costs)
