"""HTTP that is read out of recorded bytes, well-formed or not."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trionat.client.inspector.http_view import (
    MOST_BODY_BYTES,
    MOST_EXCHANGES,
    find_secrets,
    raw_body,
    read_body,
    read_conversation,
    read_text,
)
from trionat.client.inspector.websocket_view import (
    MOST_INFLATED,
    MOST_MESSAGES,
    MOST_SHOWN,
    read_messages,
)


def asked(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_a_request_and_its_answer() -> None:
    received = asked("POST /a?b=c HTTP/1.1\nHost: x\nContent-Length: 3", b"abc")
    sent = asked("HTTP/1.1 201 All right\nContent-Length: 2", b"ok")
    view = read_conversation(received, sent)
    (exchange,) = view.exchanges
    assert exchange.request.first == ("POST", "/a?b=c", "1.1")
    assert exchange.request.fields == (("Host", "x"), ("Content-Length", "3"))
    assert exchange.request.is_whole
    assert read_body(received, exchange.request).data == b"abc"
    assert exchange.answer is not None
    assert exchange.answer.first == ("1.1", "201", "All right")
    assert read_body(sent, exchange.answer).data == b"ok"
    assert view.rest == ""


def test_several_requests_on_one_connection() -> None:
    """Pipelined, with each of the ways in which a body ends, and answers that have none."""
    received = (
        asked("GET /1 HTTP/1.1\nHost: x")
        + asked("HEAD /2 HTTP/1.1\nHost: x")
        + b"\r\n"
        + asked("PUT /3 HTTP/1.1\nTransfer-Encoding: chunked", chunked(b"one", b"two"))
        + asked("GET /4 HTTP/1.1\nHost: x")
        + asked("GET /5 HTTP/1.0")
    )
    sent = (
        asked("HTTP/1.1 200 OK\nContent-Length: 5", b"first")
        + asked("HTTP/1.1 200 OK\nContent-Length: 500")
        + asked("HTTP/1.1 100 Continue")
        + asked("HTTP/1.1 103 Early Hints\nLink: </a>")
        + asked("HTTP/1.1 204 No Content")
        + asked("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", chunked(b"fourth"))
        + asked("HTTP/1.0 200 OK", b"until the end")
    )
    view = read_conversation(received, sent, sent_ended=True)
    assert [each.request.first[1] for each in view.exchanges] == [f"/{n}" for n in range(1, 6)]
    bodies = []
    for each in view.exchanges:
        assert each.answer is not None
        assert each.answer.is_whole
        bodies.append(read_body(sent, each.answer).data)
    assert bodies == [b"first", b"", b"", b"fourth", b"until the end"]
    assert len(view.exchanges[2].interim) == 2
    assert read_body(received, view.exchanges[2].request).data == b"onetwo"
    still = read_conversation(received, sent).exchanges[-1].answer
    assert still is not None
    assert not still.is_whole
    cut = read_conversation(received, sent, sent_ended=True, is_cut=True).exchanges[-1].answer
    assert cut is not None
    assert not cut.is_whole


def test_a_request_that_is_still_coming() -> None:
    received = asked("PUT / HTTP/1.1\nContent-Length: 10", b"abc")
    view = read_conversation(received, asked("HTTP/1.1 413 Too much\nContent-Length: 0"))
    (exchange,) = view.exchanges
    assert not exchange.request.is_whole
    assert exchange.answer is not None
    body = read_body(received, exchange.request)
    assert (body.data, body.notes) == (b"abc", ("not all of it is here",))
    assert read_conversation(b"GET / HTTP/1.1\r\nHost", b"").exchanges == ()


def test_what_is_no_http() -> None:
    assert read_conversation(b"SSH-2.0-x\r\n", b"").rest == "no HTTP"
    assert read_conversation(b"", b"220 hello\r\n").rest == ""
    mixed = read_conversation(asked("GET / HTTP/1.1") + b"\x00\x01nonsense\r\n\r\n", b"")
    assert len(mixed.exchanges) == 1
    assert mixed.rest == "no HTTP"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "gzip, gzip", "members"])
def test_compressed_bodies(coding: str) -> None:
    plain = b'{"a": 1}' * 100
    if coding == "gzip":
        body = gzip.compress(plain)
    elif coding == "deflate":
        body = zlib.compress(plain)
    elif coding == "raw deflate":
        body = zlib.compress(plain)[2:-4]
    elif coding == "members":
        body = gzip.compress(plain[:300]) + gzip.compress(plain[300:])
    else:
        body = gzip.compress(gzip.compress(plain))
    word = {"raw deflate": "deflate", "members": "x-gzip"}.get(coding, coding)
    sent = asked(
        f"HTTP/1.1 200 OK\nContent-Encoding: {word}\nTransfer-Encoding: chunked",
        chunked(body[:7], body[7:]),
    )
    answer = read_conversation(asked("GET / HTTP/1.1"), sent).exchanges[0].answer
    assert answer is not None
    assert read_body(sent, answer).data == plain
    assert raw_body(sent, answer) == body


def answered(body: bytes, coding: str) -> tuple[bytes, tuple[str, ...]]:
    head = f"HTTP/1.1 200 OK\nContent-Encoding: {coding}\nContent-Length: {len(body)}"
    sent = asked(head, body)
    answer = read_conversation(asked("GET / HTTP/1.1"), sent).exchanges[0].answer
    assert answer is not None
    read = read_body(sent, answer)
    return read.data, read.notes


def test_a_bomb_goes_off_only_so_far() -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    since = time.perf_counter()
    data, notes = answered(bomb, "gzip")
    assert len(data) == MOST_BODY_BYTES
    assert notes == ("only the first 4 MiB are shown",)
    nested = gzip.compress(gzip.compress(bytes(2**30 // 8), 9), 9)
    assert len(answered(nested, "gzip, gzip")[0]) <= MOST_BODY_BYTES
    members = gzip.compress(b"") * 50_000
    assert answered(members, "gzip")[0] == b""
    assert time.perf_counter() - since < 20
    data, notes = answered(b"x", ", ".join(["gzip"] * 1000))
    assert data == b"x"
    assert "left alone" in notes[0]


def test_damaged_and_unknown_compression_is_shown_as_it_came() -> None:
    assert answered(b"not compressed", "gzip") == (
        b"not compressed",
        ("cannot be decompressed, and is shown as it came",),
    )
    assert answered(b"xyz", "br") == (b"xyz", ("compressed (br), and left alone",))
    cut = gzip.compress(b"a" * 1000)[:-9]
    assert answered(cut, "gzip")[0].startswith(b"a")


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("application/json", '{"ä": "漢"}'.encode(), '{"ä": "漢"}'),
        ("text/plain; charset=iso-8859-1", b"\xe4", "ä"),
        ("text/plain; charset=GBK", "汉字".encode("gbk"), "汉字"),
        ("text/plain; charset=punycode", b"abc", "abc"),
        ("text/plain; charset=zlib_codec", b"abc", "abc"),
        ("text/plain", "cut off ä".encode()[:-1], "cut off "),
        ("image/png", b"\x89PNG\r\n\x1a\n\0", None),
        ("text/plain", b"a\0b", None),
        ("text/plain; charset=utf-16", b"\xff", None),
    ],
)
def test_text(kind: str, body: bytes, text: str | None) -> None:
    message = (
        read_conversation(
            asked(f"POST / HTTP/1.1\nContent-Type: {kind}\nContent-Length: {len(body)}", body), b""
        )
        .exchanges[0]
        .request
    )
    assert read_text(body, message) == text


def test_secrets_are_found_wherever_they_stand() -> None:
    data = b"x\r\nAuthorization: Basic abc\r\nCOOKIE:a=b\nX-Api-Key:  k \r\nAccept: y\r\nSet-Cookie: s\r\n"
    assert [data[a:b] for a, b in find_secrets(data)] == [b"Basic abc", b"a=b", b"k ", b"s"]
    assert len(find_secrets(b"cookie: a\n" * 100_000)) == 2000


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n",
        b"HEAD / HTTP/1.0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999\r\n",
        b"Content-Encoding: gzip, deflate\r\n",
        b"\r\n",
        b"\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffff\r\n",
        b"-1\r\n",
        b": \r\n",
        gzip.compress(b"x"),
        b"\x81\x05hello",
        b"\xc1\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x80",
    ]
)
BYTES = st.lists(PIECES | st.binary(max_size=20), max_size=20).map(b"".join)


@settings(max_examples=500)
@given(BYTES, BYTES, st.booleans())
@example(b"GET / HTTP/1.1\n\n" * 3, b"HTTP/1.1 200\n\n", True)
def test_nothing_raises_and_all_is_in_its_place(
    received: bytes, sent: bytes, deflated: bool
) -> None:
    view = read_conversation(received, sent, sent_ended=deflated)
    at = {"received": 0, "sent": 0}
    for exchange in view.exchanges:
        for direction, message in (
            ("received", exchange.request),
            *(("sent", each) for each in exchange.interim),
            ("sent", exchange.answer),
        ):
            if message is None:
                continue
            data = received if direction == "received" else sent
            assert at[direction] <= message.start < message.body <= message.end <= len(data)
            at[direction] = message.end
            body = read_body(data, message)
            assert len(body.data) <= max(MOST_BODY_BYTES, message.end)
            read_text(body.data, message)
    for data in (received, sent):
        find_secrets(data)
        for said in read_messages(data, 0, deflated=deflated):
            assert 0 <= said.start < len(data)
            assert len(said.data) <= MOST_SHOWN


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["GET", "POST", "PUT"]), st.binary(max_size=300), st.booleans()),
        max_size=8,
    )
)
def test_what_was_said_is_what_is_read(messages: list[tuple[str, bytes, bool]]) -> None:
    received, sent = b"", b""
    for number, (method, body, in_chunks) in enumerate(messages):
        half = len(body) // 2
        pieces = [piece for piece in (body[:half], body[half:]) if piece]
        framing = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}"
        framed = chunked(*pieces) if in_chunks else body
        received += asked(f"{method} /{number} HTTP/1.1\nHost: x\n{framing}", framed)
        sent += asked(f"HTTP/1.1 200 OK\n{framing}", framed)
    view = read_conversation(received, sent)
    assert len(view.exchanges) == len(messages)
    for exchange, (method, body, _) in zip(view.exchanges, messages, strict=True):
        assert exchange.request.first[0] == method
        assert read_body(received, exchange.request).data == body
        assert exchange.answer is not None
        assert read_body(sent, exchange.answer).data == body
        assert exchange.answer.is_whole


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" * 60_000, b""),
        (b"\r\n" * 500_000, b"\r\n" * 500_000),
        (b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 200_000, b""),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 170_000, b""),
        (b"GET / HTTP/1.1\r\n\r\n" * 1000, b"HTTP/1.1 100 a\r\n\r\n" * 60_000),
        (b"cookie" * 170_000, b"cookie:" + b" " * 10**6),
        (b"GET / HTTP/1.1\r\nContent-Encoding:" + b"," * 60_000 + b"\r\n\r\n", b""),
    ],
)
def test_a_mebibyte_of_anything_takes_no_time(received: bytes, sent: bytes) -> None:
    since = time.perf_counter()
    view = read_conversation(received, sent)
    assert len(view.exchanges) <= MOST_EXCHANGES
    for exchange in view.exchanges[:10]:
        read_body(received, exchange.request)
    find_secrets(received)
    find_secrets(sent)
    assert time.perf_counter() - since < 10, "a tenth of it on an idle machine"


# -- WebSocket --


def frame(
    opcode: int, payload: bytes, *, mask: bytes = b"", final: bool = True, packed: bool = False
) -> bytes:
    first = opcode | 0x80 * final | 0x40 * packed
    flag = 0x80 if mask else 0
    if len(payload) < 126:
        head = bytes([first, flag | len(payload)])
    elif len(payload) < 2**16:
        head = bytes([first, flag | 126]) + len(payload).to_bytes(2, "big")
    else:
        head = bytes([first, flag | 127]) + len(payload).to_bytes(8, "big")
    if mask:
        payload = bytes(each ^ mask[at % 4] for at, each in enumerate(payload))
    return head + mask + payload


@given(st.lists(st.binary(max_size=300), max_size=5), st.binary(min_size=4, max_size=4))
def test_masked_messages(payloads: list[bytes], mask: bytes) -> None:
    data = b"".join(frame(2, payload, mask=mask) for payload in payloads)
    assert [each.data for each in read_messages(b"xx" + data, 2, deflated=False)] == payloads


def test_messages_in_pieces_with_a_ping_between() -> None:
    data = (
        frame(1, b"one ", final=False)
        + frame(9, b"ping")
        + frame(0, b"two ", final=False)
        + frame(0, b"three")
        + frame(2, b"x" * 70_000)
        + frame(8, b"\x03\xe8bye")
        + frame(1, b"cut off")[:-3]
    )
    messages = read_messages(data, 0, deflated=False)
    assert [(each.kind, each.is_whole) for each in messages] == [
        ("ping", True),
        ("text", True),
        ("binary", True),
        ("close", True),
        ("text", False),
    ]
    assert messages[1].data == b"one two three"
    assert messages[2].size == 70_000
    assert len(messages[2].data) == MOST_SHOWN
    assert messages[4].data == b"cut "


def test_compressed_messages_refer_to_those_before() -> None:
    engine = zlib.compressobj(wbits=-15)
    data, words = b"", [json.dumps({"number": number, "text": "the same"}) for number in range(5)]
    for word in words:
        packed = engine.compress(word.encode()) + engine.flush(zlib.Z_SYNC_FLUSH)
        data += frame(1, packed.removesuffix(b"\x00\x00\xff\xff"), packed=True)
    messages = read_messages(data, 0, deflated=True)
    assert [each.data.decode() for each in messages] == words


def test_a_bomb_in_messages_goes_off_only_so_far() -> None:
    engine = zlib.compressobj(9, wbits=-15)
    packed = engine.compress(bytes(100 * 2**20)) + engine.flush(zlib.Z_SYNC_FLUSH)
    data = frame(2, packed, packed=True) + frame(2, packed, packed=True) + frame(1, b"x") * 5000
    messages = read_messages(data, 0, deflated=True)
    assert len(messages) == MOST_MESSAGES
    assert sum(len(each.data) for each in messages) < MOST_INFLATED
    assert "too much" in messages[1].note
    (broken,) = read_messages(frame(1, b"\xff\xff", packed=True), 0, deflated=True)
    assert broken.note == "compressed, and cannot be decompressed"
