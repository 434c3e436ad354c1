"""Heads of requests: what is refused, what goes on, and that nobody can take what was written anew for something else."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trionat.protocol.http.fields import (
    MOST_FIELDS,
    MOST_HEAD_BYTES,
    HeadReader,
    HttpError,
    check_head,
    find_framing,
)
from trionat.protocol.http.head import (
    Origin,
    RequestHead,
    check_request_line,
    parse_authority,
    parse_request,
)

ORIGIN: Final = Origin("192.0.2.1", "https")
OURS: Final = [
    (b"x-forwarded-for", b"192.0.2.1"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"a.example"),
    (b"forwarded", b'for=192.0.2.1;host="a.example";proto=https'),
]


def head(*lines: str, first: str = "GET / HTTP/1.1", host: str | None = "a.example") -> bytes:
    hosts = () if host is None else (f"Host: {host}",)
    return "\r\n".join([first, *hosts, *lines, "", ""]).encode("latin-1")


def passed_on(request: bytes, origin: Origin = ORIGIN) -> h11.Request:
    """What a reader that is not ours takes the request for, as we write it anew."""
    service = h11.Connection(h11.SERVER)
    service.receive_data(parse_request(request).encode(origin))
    event = service.next_event()
    assert isinstance(event, h11.Request)
    return event


def fields(request: bytes, origin: Origin = ORIGIN) -> list[tuple[bytes, bytes]]:
    """The fields that go on, without those that all have."""
    got = list(passed_on(request, origin).headers)
    assert got.pop(0) == (b"host", b"a.example")
    return [each for each in got if each not in OURS]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        # Whose is it?
        (head(host=None), 400),
        (head("Host: a.example"), 400),
        (head("hOST: b.example"), 400),
        (head(host=""), 400),
        (head(host="a.example, b.example"), 400),
        (head(host="u@a.example"), 400),
        (head(host="u:p@a.example"), 400),
        (head(host="a.example/x"), 400),
        (head(host="a.example x"), 400),
        (head(host="a.example:"), 400),
        (head(host="a.example:65536"), 400),
        (head(host="a.example:80:80"), 400),
        (head(host="a.example:+80"), 400),
        (head(host="a..example"), 400),
        (head(host=".a.example"), 400),
        (head(host="a%2eexample"), 400),
        (head(host="a\\b"), 400),
        (head(host="a#b"), 400),
        (head(host="a?b"), 400),
        (head(host="\xe4.example"), 400),
        (head(host="[::1"), 400),
        (head(host="[::g]"), 400),
        (head(host="[1.2.3.4]"), 400),
        (head(host="::1"), 400),
        (head(host="a" * 300), 400),
        (head(first="GET http://b.example/ HTTP/1.1"), 400),
        (head(first="GET http://a.example:81/ HTTP/1.1"), 400),
        (head(first="GET http://u@a.example/ HTTP/1.1"), 400),
        (head(first="GET http://a.example@b.example/ HTTP/1.1"), 400),
        (head(first="GET http:///x HTTP/1.1"), 400),
        (head(first="GET ftp://a.example/ HTTP/1.1"), 400),
        (head(first="GET http://a.example/ HTTP/1.1", host=None), 400),
        (head(first="GET * HTTP/1.1"), 400),
        (head(first="GET a.example HTTP/1.1"), 400),
        (head("Connection: Host"), 400),
        (head("Connection: close, hOsT"), 400),
        # Where does it end?
        (head("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding: chunked", "Content-Length: 5"), 400),
        (head("Content-Length: 5", "Content-Length: 5"), 400),
        (head("Content-Length: 5", "content-length: 6"), 400),
        (head("Content-Length: 5, 5"), 400),
        (head("Content-Length: +5"), 400),
        (head("Content-Length: -5"), 400),
        (head("Content-Length: 0x5"), 400),
        (head("Content-Length: 5 5"), 400),
        (head("Content-Length: 5.0"), 400),
        (head("Content-Length: 1e3"), 400),
        (head("Content-Length: \xb2"), 400),
        (head("Content-Length:"), 400),
        (head("Content-Length: 18446744073709551621"), 400),
        (head("Content-Length: " + "9" * 18 + "9"), 400),
        (head("Connection: Content-Length", "Content-Length: 5"), 400),
        (head("Connection: Transfer-Encoding", "Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding: identity"), 400),
        (head("Transfer-Encoding: gzip, chunked"), 400),
        (head("Transfer-Encoding: chunked, identity"), 400),
        (head("Transfer-Encoding: chunked, chunked"), 400),
        (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), 400),
        (head("Transfer-Encoding: identity", "Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding: xchunked"), 400),
        (head("Transfer-Encoding: chunked;q=1"), 400),
        (head('Transfer-Encoding: "chunked"'), 400),
        (head("Transfer-Encoding: 'chunked'"), 400),
        (head("Transfer-Encoding:"), 400),
        (head("Transfer-Encoding: ,chunked"), 400),
        (head("Transfer-Encoding: \x0bchunked"), 400),
        (head("Transfer-Encoding: chunked\x0b"), 400),
        (head("Transfer-Encoding: \x00chunked"), 400),
        (head("Transfer-Encoding: \xa0chunked"), 400),
        (head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"), 400),
        (head("Transfer-Encoding : chunked"), 400),
        (head("Transfer-Encoding\t: chunked"), 400),
        (head("Transfer-Encoding\x00: chunked"), 400),
        (head(" Transfer-Encoding: chunked"), 400),
        (head("X: x\rTransfer-Encoding: chunked"), 400),
        (head("X: x\nTransfer-Encoding: chunked"), 400),
        (head("X: x", " Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding:", " chunked"), 400),
        (head("Transfer-Encoding:", "\tchunked"), 400),
        (head("Transfer\rEncoding: chunked"), 400),
        (head("Content-Length : 5"), 400),
        (head("Content-Length: 5\x00"), 400),
        (head("Content-Length: \x0c5"), 400),
        # What is no head.
        (head("X"), 400),
        (head(": x"), 400),
        (head("X Y: x"), 400),
        (head("X(: x"), 400),
        (head("\xe4: x"), 400),
        (head("X: \x00"), 400),
        (head("X: \x7f"), 400),
        (head("X: \x1b[0m"), 400),
        (head("Connection: a b"), 400),
        (head("Connection: @"), 400),
        (head(first="GET  / HTTP/1.1"), 400),
        (head(first="GET /  HTTP/1.1"), 400),
        (head(first="GET / HTTP/1.1 "), 400),
        (head(first=" GET / HTTP/1.1"), 400),
        (head(first="GET\t/ HTTP/1.1"), 400),
        (head(first="GET /\tHTTP/1.1"), 400),
        (head(first="GET /\x0bHTTP/1.1"), 400),
        (head(first="GET /\x0b HTTP/1.1"), 400),
        (head(first="GET /\x00 HTTP/1.1"), 400),
        (head(first="GET /\xe4 HTTP/1.1"), 400),
        (head(first="GET /#x HTTP/1.1"), 400),
        (head(first="GET /x y HTTP/1.1"), 400),
        (head(first="GET / HTTP/1.1\rX: x"), 400),
        (head(first="GET / http/1.1"), 400),
        (head(first="GET / HTTP/1"), 505),
        (head(first="GET / HTTP/1.2"), 505),
        (head(first="GET / HTTP/1.10"), 505),
        (head(first="GET / HTTP/01.1"), 505),
        (head(first="GET / HTTP/0.9"), 505),
        (head(first="GET / HTTP/2"), 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (head(first="GET / HTTP/1,1"), 400),
        (head(first="GET / XTTP/1.1"), 400),
        (head(first="OPTIONS * RTSP/1.0"), 400),
        (head(first="SOURCE / ICE/1.0"), 400),
        (head(first="GET /"), 400),
        (head(first="GET"), 400),
        (head(first=""), 400),
        (head(first="get / HTTP/1.1"), 400),
        (head(first="BREW / HTTP/1.1"), 501),
        (head(first="CONNECT a.example:443 HTTP/1.1"), 405),
        (head(*(f"X-{n}: x" for n in range(MOST_FIELDS))), 431),
    ],
)
def test_what_is_refused(request_: bytes, status: int) -> None:
    with pytest.raises(HttpError) as refused:
        parse_request(request_)
    assert refused.value.status == status
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.example", "a.example"),
        ("A.Example.", "a.example"),
        ("a.example:8443", "a.example"),
        ("my_shop.example", "my_shop.example"),
        ("xn--4ca.example", "xn--4ca.example"),
        ("192.0.2.7:80", "192.0.2.7"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("[2001:db8:0::1]:443", "2001:db8::1"),
        ("localhost", "localhost"),
    ],
)
def test_hosts(host: str, name: str) -> None:
    assert parse_authority(host.encode()) == name
    assert parse_request(head(host=host)).host == name


@pytest.mark.parametrize(
    ("first", "target"),
    [
        ("GET /a/b?c=%20&d//e HTTP/1.1", b"/a/b?c=%20&d//e"),
        ("GET //b.example/ HTTP/1.1", b"//b.example/"),
        ("GET http://a.example/x?y HTTP/1.1", b"/x?y"),
        ("GET HTTPS://A.example/x HTTP/1.1", b"/x"),
        ("GET http://a.example HTTP/1.1", b"/"),
        ("GET http://a.example?x HTTP/1.1", b"/?x"),
        ("OPTIONS * HTTP/1.1", b"*"),
        ("OPTIONS http://a.example HTTP/1.1", b"*"),
        ("PROPFIND /dav/ HTTP/1.1", b"/dav/"),
    ],
)
def test_targets(first: str, target: bytes) -> None:
    assert passed_on(head(first=first)).target == target


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Accept: */*", "X-A:1", "X-B:\t 2 \t"], [("accept", "*/*"), ("x-a", "1"), ("x-b", "2")]),
        (["X: a", "X: b"], [("x", "a"), ("x", "b")]),
        (["X:"], [("x", "")]),
        (["Content-Length: 005"], [("content-length", "5")]),
        (["Content-Length: 0"], [("content-length", "0")]),
        (["Transfer-Encoding: Chunked"], [("transfer-encoding", "chunked")]),
        # What only our hop is told.
        (["Connection: keep-alive", "Keep-Alive: timeout=5"], []),
        (["Connection: close"], [("connection", "close")]),
        (["Proxy-Connection: keep-alive", "Proxy-Authorization: Basic x", "Proxy: http://x"], []),
        (["Connection: X-Secret, Cookie", "X-Secret: 1", "cookie: a", "Y: 1"], [("y", "1")]),
        (["Connection: x", "Connection: y", "X: 1", "Y: 2"], []),
        (["Connection:"], []),
        (["Connection: , ,close,"], [("connection", "close")]),
        (["TE: trailers"], [("te", "trailers"), ("connection", "TE")]),
        (["TE: gzip, deflate"], []),
        # An underscore is a dash for some services.
        (["X_Forwarded_For: 1.1.1.1", "Content_Length: 5", "Transfer_Encoding: chunked"], []),
        (["X-Real_Name: a", "_: b", "X-Real-Name: c_d"], [("x-real-name", "c_d")]),
        # Who the visitor is nobody else says.
        (["X-Forwarded-For: 1.1.1.1", "x-forwarded-PROTO: ftp", "X-Forwarded-Prefix: /x"], []),
        (["X-Real-IP: 1.1.1.1", "Forwarded: for=1.1.1.1", "X-Forwarded-Host: b.example"], []),
        (["Connection: X-Forwarded-For, Forwarded"], []),
        (["Connection: X-Forwarded-For, close"], [("connection", "close")]),
        # What becomes of the connection.
        (
            ["Connection: keep-alive, Upgrade", "Upgrade: websocket"],
            [("upgrade", "websocket"), ("connection", "Upgrade")],
        ),
        (["Upgrade: websocket"], []),
        (["Connection: Upgrade"], []),
        (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"], []),
        (
            ["Connection: upgrade", "Upgrade: h2c, websocket"],
            [("upgrade", "websocket"), ("connection", "Upgrade")],
        ),
        (["Expect: 100-continue"], [("expect", "100-continue")]),
    ],
)
def test_what_goes_on(lines: list[str], expected: list[tuple[str, str]]) -> None:
    assert fields(head(*lines)) == [(name.encode(), value.encode()) for name, value in expected]


def test_everybody_is_told_who_asks() -> None:
    request = head("X-Forwarded-For: 1.1.1.1", "Connection: X-Forwarded-For, Forwarded")
    got = list(passed_on(request).headers)
    assert [each for each in got if b"forwarded" in each[0]] == OURS
    of_six = dict(passed_on(head(), Origin("2001:db8::1", "http")).headers)
    assert of_six[b"x-forwarded-for"] == b"2001:db8::1"
    assert of_six[b"forwarded"] == b'for="[2001:db8::1]";host="a.example";proto=http'


def test_a_trusted_proxy_is_believed() -> None:
    trusted = Origin("10.0.0.1", "http", trusted=True)
    request = head(
        "X-Forwarded-For: 192.0.2.9, 10.0.0.2",
        "X-Forwarded-Proto: https",
    )
    of_proxy = b'for=10.0.0.1;host="a.example";proto=http'
    assert fields(request, trusted) == [
        (b"x-forwarded-for", b"192.0.2.9, 10.0.0.2, 10.0.0.1"),
        (b"forwarded", b'for=10.0.0.2;host="a.example";proto=https, ' + of_proxy),
    ]
    got = dict(passed_on(request, trusted).headers)
    assert got[b"x-forwarded-proto"] == b"https"
    # An address that nobody can read, and a scheme that is none, go no further than they have to.
    odd = head('X-Forwarded-For: 1.1.1.1, a";for=b', 'X-Forwarded-Proto: https, a";for=b')
    assert fields(odd, trusted) == [
        (b"x-forwarded-for", b'1.1.1.1, a";for=b, 10.0.0.1'),
        (b"x-forwarded-proto", b"http"),
        (b"forwarded", of_proxy),
    ]
    of_six = head('X-Forwarded-For: 2001:DB8::9%a";b', "X-Forwarded-Proto: http, HTTPS")
    assert dict(passed_on(of_six, trusted).headers)[b"forwarded"] == (
        b'for="[2001:db8::9]";host="a.example";proto=https, ' + of_proxy
    )
    for written in ("::ffff:192.0.2.9", "::FFFF:c000:209"):
        mapped = dict(passed_on(head(f"X-Forwarded-For: {written}"), trusted).headers)
        assert mapped[b"forwarded"].startswith(b"for=192.0.2.9;")
    named = head("X-Forwarded-For: 192.0.2.9", "Connection: X-Forwarded-For")
    assert dict(passed_on(named, trusted).headers)[b"x-forwarded-for"] == b"10.0.0.1"
    assert dict(passed_on(head(), trusted).headers)[b"x-forwarded-for"] == b"10.0.0.1"


def test_what_a_trusted_proxy_may_only_have_passed_on_is_taken_out() -> None:
    trusted = Origin("10.0.0.1", "http", trusted=True)
    told = ("X-Forwarded-For: 192.0.2.9", "X-Forwarded-Proto: https")
    forged = (
        "X-Real-IP: 1.1.1.1",
        "Forwarded: for=1.1.1.1",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-User: admin",
        "X-Forwarded-Port: 1",
        "X_Forwarded_For: 1.1.1.1",
    )
    assert fields(head(*forged, *told), trusted) == fields(head(*told), trusted)
    assert fields(head(*forged), trusted) == fields(head(), trusted)


@pytest.mark.parametrize(
    ("minor", "connection", "keep_alive"),
    [
        (1, None, True),
        (1, "close", False),
        (1, "keep-alive, close", False),
        (0, None, False),
        (0, "keep-alive", True),
        (0, "Keep-Alive, close", False),
        (0, "upgrade", False),
    ],
)
def test_what_becomes_of_the_connection(
    minor: int, connection: str | None, keep_alive: bool
) -> None:
    lines = () if connection is None else (f"Connection: {connection}",)
    request = parse_request(head(*lines, first=f"GET / HTTP/1.{minor}"))
    assert request.keep_alive == keep_alive
    assert not request.upgrade
    again = parse_request(request.encode(ORIGIN))
    assert (again.minor, again.keep_alive) == (minor, keep_alive)


@pytest.mark.parametrize(
    ("lengths", "encodings", "minor"),
    [
        ([b"5"], [b"chunked"], 1),
        ([b"5", b"5"], [], 1),
        ([b"+5"], [], 1),
        ([b""], [], 1),
        ([b"9" * 19], [], 1),
        ([], [b"identity"], 1),
        ([], [b"chunked", b"chunked"], 1),
        ([], [b"chunked"], 0),
    ],
)
def test_two_ends_are_seen_without_llhttp(
    lengths: list[bytes], encodings: list[bytes], minor: int
) -> None:
    with pytest.raises(HttpError):
        find_framing(lengths, encodings, minor=minor, status=400)


@pytest.mark.parametrize("whole", [b"GET / HTTP/1.1\r\n", b"\r\n\r\n", head() + head()])
def test_a_head_is_one_head(whole: bytes) -> None:
    with pytest.raises(HttpError):
        check_head(whole, request=True, status=400)


# --- heads that come in pieces ---


def read(pieces: list[bytes]) -> tuple[bytes | None, bytes] | int:
    """The head and what comes behind it, or with which status it was refused."""
    reader = HeadReader()
    for number, piece in enumerate(pieces):
        try:
            got, rest = reader.feed(piece)
            if got is not None:
                parse_request(got)
        except HttpError as error:
            return error.status
        if got is not None:
            assert not reader.begun
            return got, rest + b"".join(pieces[number + 1 :])
    return None, b""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[one:two] for one, two in pairwise(ends)]


STREAMS: Final = [
    head("X: y") + b"behind it",
    b"\r\n" + head(),
    b"\r\n\r\n" + head() + head(),
    b"\r\n\r\n\r\n" + head(),
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\n\n",
    b"\n" + head(),
    head("X: " + "y" * 200),
]


@pytest.mark.parametrize("stream", STREAMS)
def test_byte_by_byte(stream: bytes) -> None:
    whole = read([stream])
    assert read([stream[at : at + 1] for at in range(len(stream))]) == whole


@given(st.sampled_from(STREAMS), st.lists(st.integers(0, 400), max_size=8))
def test_any_split_gives_the_same(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places)) == read([stream])


@pytest.mark.parametrize("piece", [1000, MOST_HEAD_BYTES + 1000])
def test_a_head_has_a_bound(piece: int) -> None:
    fits = head("X: " + "y" * (MOST_HEAD_BYTES - len(head("X: "))))
    assert len(fits) == MOST_HEAD_BYTES
    assert read(cut(fits, list(range(0, len(fits), piece)))) == (fits, b"")
    longer = fits.replace(b"y", b"yy", 1)
    assert read(cut(longer, list(range(0, len(longer), piece)))) == 431
    endless = b"GET /" + b"x" * MOST_HEAD_BYTES
    assert read(cut(endless, list(range(0, len(endless), piece)))) == 431


def test_the_first_line_is_there_before_the_head() -> None:
    reader, seen = HeadReader(), list[bytes | None]()
    for piece in (b"GET /", b" HTTP/3.0\r", b"\nHo"):
        reader.feed(piece)
        seen.append(reader.first_line)
    assert seen == [None, None, b"GET / HTTP/3.0"]
    with pytest.raises(HttpError, match=r"HTTP/1\.1"):
        check_request_line(b"GET / HTTP/3.0")


# --- what was written anew ---


def same(one: RequestHead, other: RequestHead) -> bool:
    return (one.method, one.target, one.minor, one.host, one.length, one.chunked, one.upgrade) == (
        other.method,
        other.target,
        other.minor,
        other.host,
        other.length,
        other.chunked,
        other.upgrade,
    ) and one.keep_alive == other.keep_alive


NAMES: Final = st.sampled_from(
    [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "TE",
        "Keep-Alive",
        "X-Forwarded-For",
        "Forwarded",
        "Cookie",
        "X_Y",
        "Expect",
        "X",
        "Proxy",
    ]
)
VALUES: Final = st.sampled_from(
    [
        "a.example",
        "b.example",
        "5",
        "0",
        "chunked",
        "identity",
        "close",
        "keep-alive",
        "upgrade",
        "x, y",
        "trailers",
        "websocket",
        "h2c",
        "Host",
        "a b",
        " 7 ",
        "",
    ]
) | st.text(st.characters(max_codepoint=255), max_size=6)
FIRSTS: Final = st.sampled_from(
    [
        "GET / HTTP/1.1",
        "POST /x HTTP/1.0",
        "GET http://a.example/ HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT a:1 HTTP/1.1",
    ]
)


@given(FIRSTS, st.lists(st.tuples(NAMES, VALUES), max_size=6))
@example("GET / HTTP/1.1", [("Connection", "X"), ("X", "1")])
def test_what_was_written_anew_is_the_same_request(
    first: str, lines: list[tuple[str, str]]
) -> None:
    try:
        request = parse_request(head(*(f"{name}: {value}" for name, value in lines), first=first))
    except HttpError:
        return
    written = request.encode(ORIGIN)
    assert same(parse_request(written), request)
    assert HeadReader().feed(written) == (written, b"")
    assert parse_request(written).encode(Origin("192.0.2.1", "https")) == written
    service = h11.Connection(h11.SERVER)
    service.receive_data(written)
    event = service.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (request.method, request.target)
    assert service.trailing_data[0] == b""


@given(st.binary(max_size=200), st.integers(0, 120), st.sampled_from(["insert", "replace"]))
def test_a_mutation_is_refused_or_one_request(noise: bytes, at: int, how: str) -> None:
    """However a head is disturbed, what goes on is one head: no reader sees a second one in it."""
    whole = head("X: y", "Content-Length: 0")
    place = at % len(whole)
    disturbed = whole[:place] + noise + whole[place + (len(noise) if how == "replace" else 0) :]
    try:
        got, _ = HeadReader().feed(disturbed)
        if got is None:
            return
        written = parse_request(got).encode(ORIGIN)
    except HttpError:
        return
    assert written.count(b"\r\n\r\n") == 1
    assert written.endswith(b"\r\n\r\n")
    assert written.replace(b"\r\n", b"").translate(None, b"\r\n\x00") == written.replace(
        b"\r\n", b""
    )
    assert written.lower().count(b"\r\nhost:") == 1
