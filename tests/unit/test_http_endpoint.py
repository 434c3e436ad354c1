"""A visitor's HTTP as a service sees it, in memory and over sockets: what goes where, how it ends, and who gets the next request."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise, product
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.memory import CAPACITY, MemoryEndpoint, memory_pair, receive_all, receive_some
from tests.unit.test_endpoint import tcp_pair
from tests.unit.test_tls_visitor import tls_pair
from tests.unit.test_tunnel import frame_for
from trionat.protocol.http.head import Origin, RequestHead
from trionat.relay.client_tunnel import ClientTunnel
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.server.names.http_connection import HttpConnection, HttpLimits, Refusal, Said
from trionat.server.names.http_endpoint import HttpEndpoint
from trionat.transport.endpoint import SocketEndpoint, send_all
from trionat.transport.readiness import TURN, Gate, pump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.conftest import Tidy
    from trionat.protocol.tunnel_frames import Open
    from trionat.transport.endpoint import Endpoint
    from trionat.transport.readiness import Readiness

ORIGIN: Final = Origin("192.0.2.1", "https")
NOT_YET: Final = Refusal(0, "nothing was said yet")


def get(path: str = "/", *lines: str, host: str = "a.example", minor: int = 1) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.{minor}", f"Host: {host}", *lines, "", ""]).encode()


def post(body: bytes, path: str = "/", *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: a.example", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def ok(body: bytes = b"", *lines: bytes) -> bytes:
    return (
        b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"Content-Length: %d" % len(body), b"", b""])
        + body
    )


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@attrs.define(eq=False)
class Visit:
    """A connection, the visitor's end of it, and the endpoint for its service; what it says next is in `said`."""

    visitor: Endpoint
    connection: HttpConnection
    http: HttpEndpoint = attrs.field(init=False)
    said: list[Said] = attrs.field(factory=list)
    answered: list[tuple[bytes, int]] = attrs.field(factory=list)
    amounts: list[tuple[int, float]] = attrs.field(factory=list)  # bytes and seconds of the same

    async def begin(self) -> HttpEndpoint:
        """Read the first head, which is well, and join it to a service."""
        said = await self.connection.next_request()
        assert isinstance(said, RequestHead), said
        return self.join(said)

    def join(self, request: RequestHead) -> HttpEndpoint:
        self.http = HttpEndpoint(
            self.connection,
            request,
            lambda next_: next_.host == request.host,
            self.said.append,
            self.note,
        )
        return self.http

    def note(self, request: RequestHead, status: int, sent: int, seconds: float) -> None:
        self.answered.append((request.target, status))
        self.amounts.append((sent, seconds))

    def to_service(self, room: int = 20_000) -> bytes | None:
        """What the service gets now: None where there is nothing yet, nothing at the end."""
        buffer = memoryview(bytearray(room))
        try:
            return bytes(buffer[: self.http.recv_into(buffer)])
        except BlockingIOError:
            return None

    def all_to_service(self) -> bytes:
        got = b""
        while piece := self.to_service():
            got += piece
        return got

    def to_visitor(self) -> bytes:
        got = b""
        buffer = memoryview(bytearray(20_000))
        with suppress(BlockingIOError):
            while count := self.visitor.recv_into(buffer):
                got += buffer[:count]
        return got

    def serve(self, answer: bytes) -> None:
        """Have the service say it, as a tunnel does."""
        rest = memoryview(answer)
        while rest or self.http.has_unsent:
            with suppress(BlockingIOError):  # the visitor has room, and takes little at once
                if rest:
                    rest = rest[self.http.send(rest) :]
                else:
                    self.http.flush()

    async def close(self) -> None:
        self.http.close()
        self.visitor.close()
        await self.connection.finish()


@pytest.fixture
async def visit(tidy: Tidy) -> AsyncIterator[Visit]:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    yield visit
    if visitor.closed:
        near.close()
    else:
        await visit.close()


def target(given: bytes | None) -> bytes:
    assert given is not None
    return given.split(b" ")[1]


async def test_requests_of_one_service_stay(visit: Visit) -> None:
    visit.visitor.send(get("/1", "X-Forwarded-For: 1.1.1.1"))
    await visit.begin()
    first = visit.to_service()
    assert first is not None
    assert first.startswith(b"GET /1 HTTP/1.1\r\nHost: a.example\r\n")
    assert b"X-Forwarded-For: 192.0.2.1\r\n" in first
    assert visit.to_service() is None
    visit.serve(ok(b"one", b"Connection: keep-alive"))
    assert visit.to_visitor() == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    visit.visitor.send(get("/2")[:10])
    assert visit.to_service() is None
    visit.visitor.send(get("/2")[10:])
    assert target(visit.to_service()) == b"/2"
    visit.serve(ok(b"two"))
    assert visit.to_visitor().endswith(b"\r\n\r\ntwo")
    assert visit.answered == [(b"/1", 200), (b"/2", 200)]
    assert visit.said == []


async def test_the_next_request_is_for_somebody_else(visit: Visit) -> None:
    visit.visitor.send(get("/1") + get("/2") + get("/3", host="b.example") + get("/4"))
    http = await visit.begin()
    assert target(visit.to_service()) == b"/1"
    assert visit.to_service() is None
    visit.serve(ok(b"1"))
    assert target(visit.to_service()) == b"/2"
    assert visit.to_service() is None  # the third waits until the second is answered
    assert visit.said == []
    visit.serve(ok(b"2"))
    assert visit.to_service() == b""
    assert visit.to_service() == b""
    (other,) = visit.said
    assert isinstance(other, RequestHead)
    assert (other.host, other.target) == ("b.example", b"/3")
    # The one before may do what it likes.
    with pytest.raises(BrokenPipeError):
        http.send(ok(b"poison"))
    http.send_eof()
    http.close()
    http.reset()
    visit.join(other)
    assert target(visit.to_service()) == b"/3"
    visit.serve(ok(b"3"))
    assert visit.to_service() == b""
    again = visit.said[-1]
    assert isinstance(again, RequestHead)
    assert again.host == "a.example"
    assert visit.to_visitor().count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_bodies_of_requests(tidy: Tidy, size: int) -> None:
    """Each comes whole, and what is behind it is the next request, wherever reads end."""
    visitor, near = tidy.pair()
    near.largest_read = size
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    body = bytes(range(256)) * 100
    split = b"POST /2 HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    visitor.send(post(body, "/1") + split + chunked(b"ab", b"c") + get("/3"))
    await visit.begin()
    first = visit.all_to_service()
    assert first.partition(b"\r\n\r\n")[2] == body
    visit.serve(ok())
    second = visit.all_to_service()
    assert target(second) == b"/2"
    pieces = second.partition(b"\r\n\r\n")[2]
    assert pieces.endswith(b"0\r\n\r\n")
    assert b"".join(pieces.split(b"\r\n")[1::2]) == b"abc"
    visit.serve(ok())
    assert target(visit.all_to_service()) == b"/3"
    await visit.close()


ANSWERS: Final = [
    (get(), ok(b"body")),
    (get(), ok(b"")),
    (get(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"\r\n\r\n")),
    (get(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n"),
    (get(), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    (get(), b"HTTP/1.1 204 No Content\r\n\r\n"),
    (get().replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    (get(), b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok(b"body")),
    (post(b"x"), b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok(b"body")),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "answer"), ANSWERS, ids=range(len(ANSWERS)))
async def test_where_answers_end(tidy: Tidy, request_: bytes, answer: bytes) -> None:
    for size, write in product([1, 5, 100_000], [1, 3, 100_000]):
        visitor, near = tidy.pair()
        near.largest_write = write
        visit = Visit(visitor, HttpConnection(near, ORIGIN))
        visitor.send(request_ + get("/next"))
        await visit.begin()
        visit.all_to_service()
        for at in range(0, len(answer), size):
            assert visit.to_service() is None
            visit.serve(answer[at : at + size])
        assert target(visit.to_service()) == b"/next"
        assert visit.to_visitor().endswith(answer[-4:])
        await visit.close()


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
    ids=["ssh", "an alert of TLS", "two lengths", "switches", "long"],
)
async def test_nonsense_is_no_answer(visit: Visit, answer: bytes, size: int) -> None:
    visit.visitor.send(get())
    await visit.begin()
    visit.all_to_service()
    with suppress(BrokenPipeError):
        for at in range(0, len(answer), size):
            visit.serve(answer[at : at + size])
    (said,) = visit.said
    assert isinstance(said, Refusal)
    assert said.status == 502
    assert visit.to_visitor() == b""
    assert visit.to_service() == b""


@pytest.mark.parametrize("idle", [False, True])
async def test_nobody_says_what_nobody_has_asked_for(visit: Visit, idle: bool) -> None:
    visit.visitor.send(get())
    await visit.begin()
    visit.all_to_service()
    poison = ok(b"poison")
    if idle:
        visit.serve(ok(b"1"))
        visit.serve(poison)
    else:
        visit.serve(ok(b"1") + poison)
    assert visit.said == [None]
    assert visit.to_visitor().endswith(b"\r\n\r\n1")
    with pytest.raises(BrokenPipeError):
        visit.serve(poison)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (get("/", "Connection: close"), ok(b"x")),
        (get("/", minor=0), ok(b"x")),
        (get(), ok(b"x", b"Connection: close")),
        (get("/", "Connection: keep-alive", minor=0), b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"),
    ],
)  # fmt: skip
async def test_the_last_answer(visit: Visit, request_: bytes, answer: bytes) -> None:
    visit.visitor.send(request_ + get("/never"))
    await visit.begin()
    visit.all_to_service()
    visit.serve(answer)
    assert visit.said == [None]
    assert visit.to_service() == b""
    assert b"Connection: close\r\n" in visit.to_visitor()


async def test_an_answer_that_ends_with_the_connection(visit: Visit) -> None:
    visit.visitor.send(get())
    http = await visit.begin()
    visit.all_to_service()
    visit.serve(b"HTTP/1.0 200 OK\r\n\r\nsome")
    visit.serve(b" more")
    assert visit.said == []
    http.send_eof()
    assert visit.said == [None]
    assert visit.answered == [(b"/", 200)]
    assert visit.to_visitor() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome more"


@pytest.mark.parametrize(
    ("answer", "how", "said"),
    [
        (b"", "send_eof", 502),
        (b"", "close", 502),
        (b"", "reset", 502),
        (b"HTTP/1.1 200 O", "send_eof", 502),
        (b"HTTP/1.1 200 O", "reset", 502),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "send_eof", 502),
        (ok(b"12345")[:-1], "send_eof", None),
        (ok(b"12345")[:-1], "reset", None),
        (ok(b"12345"), "send_eof", None),
        (ok(b"12345"), "close", None),
    ],
)
async def test_the_service_goes(visit: Visit, answer: bytes, how: str, said: int | None) -> None:
    visit.visitor.send(get())
    http = await visit.begin()
    visit.all_to_service()
    visit.serve(answer)
    getattr(http, how)()
    (next_,) = visit.said
    assert (next_.status if isinstance(next_, Refusal) else next_) == said
    # A refusal is told, and noted, by whoever owns the connection.
    assert visit.answered == ([(b"/", 200)] if said is None else [])
    assert [sent for sent, _ in visit.amounts] == [len(answer.partition(b"\r\n\r\n")[2])][
        : len(visit.answered)
    ]
    if how == "reset" and said is None:
        with pytest.raises(ConnectionResetError):
            visit.to_visitor()
            visit.to_visitor()
        visit.visitor.close()


async def test_no_tunnel_came(visit: Visit) -> None:
    visit.visitor.send(get())
    http = await visit.begin()
    http.close()
    (said,) = visit.said
    assert isinstance(said, Refusal)
    assert said.status == 503


async def test_an_answer_before_the_request_is_complete(visit: Visit) -> None:
    visit.visitor.send(post(b"12345")[:-2])
    await visit.begin()
    assert visit.all_to_service().endswith(b"123")
    visit.serve(ok(b"already"))
    assert visit.to_visitor().endswith(b"already")
    visit.visitor.send(b"45" + get("/next"))
    assert visit.to_service() == b"45"
    assert target(visit.to_service()) == b"/next"


async def test_a_refusal_before_the_request_is_complete(visit: Visit) -> None:
    """The service goes, and the visitor gets its answer nevertheless."""
    visit.visitor.send(post(bytes(50_000))[:-2])
    http = await visit.begin()
    visit.to_service()
    visit.serve(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
    assert visit.said == [None]
    http.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(visit.connection.finish)
        assert (await receive_all(visit.visitor)).endswith(b"no")
        visit.visitor.close()


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (get("/", "Transfer-Encoding: chunked", "Content-Length: 5"), 400),
        (b"GET / HTTP/9.9\r\n", 505),
        (b"\x16\x03\x01\x02\n", 400),
    ],
)
async def test_the_next_request_is_none(visit: Visit, behind: bytes, status: int) -> None:
    visit.visitor.send(get() + behind)
    await visit.begin()
    visit.all_to_service()
    visit.serve(ok())
    assert visit.to_service() == b""
    (said,) = visit.said
    assert isinstance(said, Refusal)
    assert said.status == status


@pytest.mark.parametrize("answered", [False, True])
async def test_chunks_that_are_none(visit: Visit, answered: bool) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    visit.visitor.send(head + b"1\r\nx\r\n")
    await visit.begin()
    assert visit.all_to_service().endswith(b"\r\n\r\n1\r\nx\r\n")
    if answered:
        visit.serve(ok(b"some")[:-1])
    visit.visitor.send(b"0x1\r\n")
    assert visit.to_service() == b""  # and so never a whole request
    (said,) = visit.said
    assert said is None if answered else isinstance(said, Refusal)


# --- the visitor goes ---


@pytest.mark.parametrize("when", ["idle", "head", "body", "answer"])
async def test_the_visitor_ends(visit: Visit, when: str) -> None:
    visit.visitor.send(post(b"12345")[: -2 if when == "body" else None])
    http = await visit.begin()
    visit.all_to_service()
    if when in {"idle", "head"}:
        visit.serve(ok())
        visit.visitor.send(get()[:10] if when == "head" else b"")
    assert visit.to_service() is None
    visit.visitor.send_eof()
    assert visit.to_service() == b""
    assert visit.to_service() == b""
    if when in {"body", "answer"}:  # it may still want to hear what the service says
        assert visit.said == []
        visit.serve(ok(b"yes"))
        assert b"Connection: close" in visit.to_visitor()
    assert visit.said == [None]
    assert not http.is_lost()


@pytest.mark.parametrize(
    ("when", "noted"),
    [("idle", (200, 0)), ("body", (499, 0)), ("answer", (499, 0)), ("within it", (200, 3))],
)
async def test_the_visitor_resets(visit: Visit, when: str, noted: tuple[int, int]) -> None:
    visit.visitor.send(post(b"12345")[: -2 if when == "body" else None])
    http = await visit.begin()
    visit.all_to_service()
    if when == "idle":
        visit.serve(ok())
    elif when == "within it":
        visit.serve(ok(b"some")[:-1])
    visit.visitor.reset()
    assert http.is_lost()
    http.close()  # as a tunnel does
    assert visit.said == [None]
    [(_, status)], [(sent, _)] = visit.answered, visit.amounts
    assert (status, sent) == noted
    await visit.connection.finish()


async def test_the_visitor_ends_within_an_answer(visit: Visit) -> None:
    visit.visitor.send(get())
    await visit.begin()
    visit.all_to_service()
    visit.serve(ok(b"yes")[:-1])
    visit.visitor.send_eof()
    assert visit.to_service() == b""
    visit.serve(b"s")
    assert visit.said == [None]


# --- what is waited for ---


async def test_what_is_waited_for(visit: Visit) -> None:
    near = visit.connection.endpoint

    def waited() -> object:
        return visit.http.readable

    visit.visitor.send(post(bytes(50_000))[:-50_000])
    await visit.begin()
    assert b"Content-Length: 50000" in visit.all_to_service()
    assert waited() is near.readable
    visit.visitor.send(bytes(50_000))
    for count, after in ((20_000, TURN), (20_000, TURN), (10_000, near.readable)):
        assert visit.to_service() == bytes(count)
        assert waited() is after
    visit.visitor.send(get("/next"))
    assert visit.to_service() is None
    assert type(waited()) is Gate  # and not TURN, which would go round and round
    visit.serve(ok())
    assert waited() is TURN


async def test_an_answer_is_complete_when_it_has_left(visit: Visit) -> None:
    near = visit.connection.endpoint
    assert isinstance(near, MemoryEndpoint)
    near.largest_write = 10
    visit.visitor.send(get() + get("/next"))
    http = await visit.begin()
    visit.all_to_service()
    answer = ok()
    assert http.send(answer) == len(answer)
    assert http.has_unsent
    assert visit.to_service() is None
    visit.serve(b"")
    assert target(visit.to_service()) == b"/next"


@pytest.mark.parametrize("pipelined", [False, True])
async def test_who_waits_for_the_visitor_is_let_go(tidy: Tidy, pipelined: bool) -> None:
    """The service goes without an answer: its tunnel hears that nothing comes, and the owner has the connection for itself."""
    visitor, near = map(SocketEndpoint, tcp_pair())
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(get() + (get("/next") if pipelined else b""))
    http = await visit.begin()
    got = []

    def step() -> Readiness | None:
        got.append(visit.to_service())
        return http.readable if got[-1] != b"" else None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, step)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(got) == 1
        http.send_eof()
        nursery.start_soon(visit.connection.finish, b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        assert await receive_all(visitor) == b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
        visitor.close()
    assert got[1:] == [b""]
    http.close()


# --- other protocols ---


async def test_an_upgrade(visit: Visit) -> None:
    asks = get("/ws", "Connection: Upgrade", "Upgrade: websocket")
    visit.visitor.send(asks + b"too early")
    http = await visit.begin()
    assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" in visit.all_to_service()
    assert visit.to_service() is None
    visit.serve(b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00")
    assert visit.to_visitor().endswith(b"\r\n\r\n\x81\x00")
    assert visit.to_service() == b"too early"
    visit.visitor.send(get("/no request any more", host="b.example"))
    assert visit.to_service() == get("/no request any more", host="b.example")
    visit.serve(b"\r\n\r\n")
    assert visit.to_visitor() == b"\r\n\r\n"
    visit.visitor.send_eof()
    assert visit.to_service() == b""
    visit.serve(b"still there")
    http.send_eof()
    assert visit.said == []
    http.close()
    assert visit.said == [None]
    assert visit.to_visitor() == b"still there"


async def test_an_upgrade_is_noted_when_it_is_over(tidy: Tidy, autojump_clock: object) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visit.visitor.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
    http = await visit.begin()
    visit.all_to_service()
    await trio.sleep(2)
    visit.serve(b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nwel")
    visit.serve(b"come")
    await trio.sleep(3600)
    assert visit.answered == []
    http.close()
    assert visit.answered == [(b"/ws", 101)]
    assert visit.amounts == [(7, 2)]
    await visit.close()


async def test_an_upgrade_that_is_declined(visit: Visit) -> None:
    visit.visitor.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket") + get("/never"))
    await visit.begin()
    visit.all_to_service()
    visit.serve(ok(b"plain"))
    assert visit.said == [None]
    assert b"Connection: close" in visit.to_visitor()


# --- deadlines ---


@pytest.mark.parametrize(
    ("sends", "after", "status"),
    [(b"", 10, None), (get()[:5], 10, 408), (get()[:-1], 10, 408)],
)
async def test_the_first_head_has_a_deadline(
    tidy: Tidy, autojump_clock: object, sends: bytes, after: float, status: int | None
) -> None:
    """Who has said nothing is told nothing: a browser that connects ahead would show it in answer to a request that it makes just then."""
    visitor, near = tidy.pair()
    visitor.send(sends)
    connection, begun = HttpConnection(near, ORIGIN), trio.current_time()
    said = await connection.next_request()
    assert (said.status if isinstance(said, Refusal) else said) == status
    assert trio.current_time() - begun == after
    near.close()
    visitor.close()


@pytest.mark.parametrize(("sends", "after"), [(b"", 60), (get()[:5], 10)])
@pytest.mark.parametrize("joined", [False, True])
async def test_the_next_ones_have_too(
    tidy: Tidy, autojump_clock: object, sends: bytes, after: float, joined: bool
) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN, HttpLimits()))
    visitor.send(get())
    await visit.begin()
    visit.all_to_service()
    visit.serve(ok())
    begun = trio.current_time()
    visitor.send(sends)
    if joined:
        while not visit.said:
            assert visit.to_service() is None
            assert not visit.http.is_lost()
            await trio.sleep(1)
        (said,) = visit.said
        assert visit.to_service() == b""
    else:
        said = await visit.connection.next_request()
    assert after <= trio.current_time() - begun <= after + 2
    assert said == (Refusal(408, "no request within 10 s") if sends else None)
    await visit.close()


async def test_an_answer_has_none(tidy: Tidy, autojump_clock: object) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(get())
    http = await visit.begin()
    visit.all_to_service()
    await trio.sleep(3600)
    assert not http.is_lost()
    visit.serve(ok(b"late"))
    assert visit.to_visitor().endswith(b"late")
    await visit.close()


async def sweep(visit: Visit, seconds: float) -> None:
    """Time goes by, with what a tunnel does that has room."""
    until = trio.current_time() + seconds
    while not visit.said and trio.current_time() < until:
        visit.all_to_service()
        assert not visit.http.is_lost()
        await trio.sleep(1)


SPLIT: Final = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sends",
    [post(bytes(9))[:-9], post(bytes(9))[:-1], SPLIT + b"1\r\nx\r\n"],
    ids=["none", "part", "chunk"],
)
@pytest.mark.parametrize(
    "answer", [b"", ok(b"some")[:-1], ok(b"all")], ids=["unanswered", "answering", "answered"]
)
async def test_a_body_that_stops_has_one(
    tidy: Tidy, autojump_clock: object, sends: bytes, answer: bytes
) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(sends)
    await visit.begin()
    await sweep(visit, 50)
    visit.serve(answer)
    begun = trio.current_time()
    await sweep(visit, 300)
    assert (50 if answer else 10) <= trio.current_time() - begun <= (63 if answer else 13)
    (said,) = visit.said
    if answer:
        assert said is None
        assert visit.answered == [(b"/", 200)]
        if answer != ok(b"all"):  # a part must not look like the whole
            with pytest.raises(ConnectionResetError):
                visit.to_visitor()
    else:
        assert isinstance(said, Refusal)
        assert (said.status, said.text) == (408, "nothing more of the body within 60 s")
    assert visit.to_service() == b""
    await visit.close()


@pytest.mark.parametrize("head", [post(bytes(99))[:-99], SPLIT], ids=["whole", "chunks"])
@pytest.mark.parametrize("answered", [False, True])
async def test_a_slow_body_has_none(
    tidy: Tidy, autojump_clock: object, head: bytes, answered: bool
) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(head)
    await visit.begin()
    visit.all_to_service()
    visit.serve(ok() if answered else b"")
    for _ in range(20):
        visitor.send(b"1\r\nx\r\n" if head is SPLIT else b"x")
        await sweep(visit, 55)
    assert visit.said == []
    await visit.close()


async def test_a_slow_answer_to_a_body_that_goes_on_has_none(
    tidy: Tidy, autojump_clock: object
) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(SPLIT)
    await visit.begin()
    visit.serve(ok(bytes(99))[:-99])
    for _ in range(20):
        await sweep(visit, 55)
        visit.serve(b"x")
    assert visit.said == []
    await visit.close()


async def test_a_body_for_which_the_service_has_no_room(tidy: Tidy, autojump_clock: object) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    body = bytes(range(200))
    visitor.send(post(body)[:-150])
    http = await visit.begin()
    got = visit.all_to_service()
    visitor.send(body[50:100])
    for _ in range(300):
        assert not http.is_lost()
        await trio.sleep(1)
    assert visit.said == []
    got += visit.all_to_service()
    visitor.send(body[100:])
    got += visit.all_to_service()
    assert got.endswith(b"\r\n\r\n" + body)
    visit.serve(ok(b"yes"))
    assert visit.to_visitor().endswith(b"yes")
    await visit.close()


async def test_a_body_that_the_service_is_to_ask_for(tidy: Tidy, autojump_clock: object) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(post(bytes(9), "/", "Expect: 100-continue")[:-9])
    await visit.begin()
    await sweep(visit, 300)
    assert visit.said == []
    visit.serve(b"HTTP/1.1 100 Continue\r\n\r\n")
    begun = trio.current_time()
    await sweep(visit, 300)
    assert 60 <= trio.current_time() - begun <= 62
    assert isinstance(visit.said[0], Refusal)
    await visit.close()


async def test_a_service_that_does_not_end_is_given_up(tidy: Tidy, autojump_clock: object) -> None:
    visitor, near = tidy.pair()
    visit = Visit(visitor, HttpConnection(near, ORIGIN))
    visitor.send(get("/", "Connection: close"))
    http = await visit.begin()
    visit.all_to_service()
    visit.serve(ok())
    assert visit.said == [None]
    assert not http.is_lost()
    await trio.sleep(11)
    assert http.is_lost()
    await visit.close()


# --- with tunnels ---


@attrs.define(eq=False)
class Services:
    """A tunnel for each request of another host, and services that say what they got."""

    everyone: list[MemoryEndpoint]
    nursery: trio.Nursery
    reached: list[str] = attrs.field(factory=list)
    number: int = 0

    async def serve_connection(self, near: Endpoint) -> None:
        connection = HttpConnection(near, ORIGIN)
        said = await connection.next_request()
        while isinstance(said, RequestHead):
            host = said.host
            self.reached.append(host)
            over, next_ = trio.Event(), list[Said]()

            def on_over(said: Said, over: trio.Event = over, next_: list[Said] = next_) -> None:
                next_.append(said)
                over.set()

            def is_its_own(other: RequestHead, host: str = host) -> bool:
                return other.host == host

            http = HttpEndpoint(connection, said, is_its_own, on_over)
            self.number += 1
            self.tunnel(VisitorStream(self.number, http), host)
            await over.wait()
            said = next_[0]
        await connection.finish(
            b"" if said is None else b"HTTP/1.1 %d refused\r\n\r\n" % said.status
        )

    def tunnel(self, stream: VisitorStream, host: str) -> None:
        wires = memory_pair(self.everyone, CAPACITY)
        server = ServerTunnel(wires[0])

        async def connect(_: Open) -> Endpoint:
            await trio.lowlevel.checkpoint()
            near, far = memory_pair(self.everyone, CAPACITY)
            self.nursery.start_soon(self.service, far, host)
            return near

        client = ClientTunnel(
            wires[1], connect, lambda _, stream: self.nursery.start_soon(client.carry, stream)
        )

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.receive)
                nursery.start_soon(client.receive)
                await server.open(stream, frame_for(stream.visitor))
                await trio.testing.wait_all_tasks_blocked()
                assert server.idle
                nursery.cancel_scope.cancel()
            for wire in wires:
                wire.close()

        self.nursery.start_soon(run)

    async def service(self, end: Endpoint, host: str) -> None:
        """Answers with the target and the length of the body, in chunks or not."""
        held = b""
        while piece := await receive_some(end):
            held += piece
            while b"\r\n\r\n" in held:
                head, _, rest = held.partition(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                if len(rest) < length:
                    break
                held = rest[length:]
                body = f"{host}{target(head).decode()} {length}".encode()
                if b"close" in head:
                    await send_all(end, b"HTTP/1.1 200 OK\r\n\r\n" + body)
                    end.close()
                    return
                await send_all(end, ok(body))
        end.close()


@pytest.mark.parametrize("kind", ["memory", "tcp", "tls"])
async def test_one_connection_and_several_services(tidy: Tidy, tmp_path: Path, kind: str) -> None:
    visitor: Endpoint
    near: Endpoint
    if kind == "memory":
        visitor, near = tidy.pair()
    elif kind == "tls":
        near, visitor = await tls_pair(tmp_path)
    else:
        visitor, near = map(SocketEndpoint, tcp_pair())
    everything = (
        get("/1")
        + get("/2", host="b.example")
        + post(bytes(200_000), "/3")
        + get("/4")
        + get("/5", host="b.example")
        + get("/6", "Connection: close", host="c.example")
        + get("/never")
    )
    async with trio.open_nursery() as nursery:
        services = Services(tidy.endpoints, nursery)
        nursery.start_soon(services.serve_connection, near)
        nursery.start_soon(send_all, visitor, everything)
        got = await receive_all(visitor)
        visitor.close()
    bodies = [piece.partition(b"\r\n\r\n")[2] for piece in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [
        b"a.example/1 0",
        b"b.example/2 0",
        b"a.example/3 200000",
        b"a.example/4 0",
        b"b.example/5 0",
        b"c.example/6 0",
    ]
    assert services.reached == [f"{each}.example" for each in "ababc"]


async def test_slow_requests_over_sockets(tidy: Tidy) -> None:
    """The kernel tells of what comes once: nothing may be forgotten between two requests."""
    visitor, near = map(SocketEndpoint, tcp_pair())
    async with trio.open_nursery() as nursery:
        services = Services(tidy.endpoints, nursery)
        nursery.start_soon(services.serve_connection, near)
        for number in range(20):
            host = f"{'aab'[number % 3]}.example"
            for piece in (get(f"/{number}", host=host)[:20], get(f"/{number}", host=host)[20:]):
                await send_all(visitor, piece)
                await trio.sleep(0.001)
            got = b""
            while not got.endswith(f"{host}/{number} 0".encode()):
                got += await receive_some(visitor)
        visitor.close()
    assert services.number == 13


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 600), max_size=6),
    st.lists(st.integers(0, 600), max_size=6),
    st.integers(1, 50),
)
def test_any_split_gives_the_same(asks: list[int], says: list[int], write: int) -> None:
    """What services and visitor see does not depend on where reads and writes end."""

    async def run() -> None:
        everyone: list[MemoryEndpoint] = []
        visitor, near = memory_pair(everyone)
        near.largest_write = write
        visit = Visit(visitor, HttpConnection(near, ORIGIN))
        stream = post(b"hello", "/1") + get("/2") + get("/3", host="b.example")
        answers = b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"one"), ok(b"two")
        places = sorted({0, len(stream), *(place % len(stream) for place in asks)})
        visitor.send(stream[: places[1]])
        for one, two in pairwise(places[1:]):
            visitor.send(stream[one:two])
        await visit.begin()
        got = []
        for answer in answers:
            got.append(visit.all_to_service())
            cuts = sorted({0, len(answer), *(place % len(answer) for place in says)})
            for one, two in pairwise(cuts):
                visit.serve(answer[one:two])
        assert [target(each) for each in got] == [b"/1", b"/2"]
        assert got[0].endswith(b"\r\n\r\nhello")
        assert visit.to_service() == b""
        (said,) = visit.said
        assert isinstance(said, RequestHead)
        assert said.host == "b.example"
        assert visit.to_visitor().endswith(b"two")
        await visit.close()

    trio.run(run)
