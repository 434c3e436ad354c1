"""How a conversation begins and ends, seen from both of its ends. All tests go through one server and one client process."""

from __future__ import annotations

import os
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, name_of, read_all, read_exactly, reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Pair

pytestmark = pytest.mark.limit(30)

MEGABYTE = os.urandom(1_000_000)


@attrs.frozen
class Site:
    """Both ends of whatever goes through the pair."""

    pair: Pair
    accepted: trio.MemoryReceiveChannel[trio.SocketStream]
    visitors: ExitStack

    async def visit(self) -> trio.SocketStream:
        """Return a visitor's connection; it is closed in the end, if it is not before."""
        visitor = await self.pair.visit()
        self.visitors.callback(visitor.socket.close)
        return visitor

    async def join(self, login: bytes = b"hi") -> tuple[trio.SocketStream, trio.SocketStream]:
        """Return a visitor's end and the service's end of one conversation, after the visitor's first words."""
        visitor = await self.visit()
        await visitor.send_all(login)
        service = await self.accepted.receive()
        assert await read_exactly(service, len(login)) == login
        return visitor, service


@asynccontextmanager
async def site(pair: Pair) -> AsyncIterator[Site]:
    """At the end one more conversation shows that whatever happened before has harmed nobody else."""
    async with services.handed_over(port=pair.local_port) as (_, accepted):
        with ExitStack() as visitors:
            site = Site(pair, accepted, visitors)
            yield site
            visitor, peer = await site.join()
            await peer.send_all(b"fine")
            assert await read_exactly(visitor, 4) == b"fine"
            await visitor.aclose()
            assert await end_of(peer) == "end"
            await peer.aclose()


async def test_visitor_ends_first_and_gets_the_rest(pair: Pair) -> None:
    async with site(pair) as at:
        visitor, service = await at.join()
        await visitor.send_all(b"question")
        await visitor.send_eof()
        assert await read_all(service) == b"question"
        async with trio.open_nursery() as nursery:
            received: list[bytes] = []

            async def read() -> None:
                received.append(await read_all(visitor))

            nursery.start_soon(read)
            await service.send_all(MEGABYTE)
            await trio.sleep(0.1)  # the direction stays open, however long the answer takes
            await service.send_all(b"the end")
            await service.send_eof()
        assert received == [MEGABYTE + b"the end"]
        record = await pair.server.wait_record("visitor closed", address=name_of(visitor))
        assert (record["reason"], record["received"]) == ("ended by both sides", len(b"hiquestion"))
        assert record["sent"] == len(MEGABYTE) + len(b"the end")


async def test_service_ends_first_and_gets_the_rest(pair: Pair) -> None:
    async with site(pair) as at:
        visitor, service = await at.join()
        await service.send_all(b"banner")
        await service.send_eof()
        assert await read_all(visitor) == b"banner"
        async with trio.open_nursery() as nursery:
            received: list[bytes] = []

            async def read() -> None:
                received.append(await read_all(service))

            nursery.start_soon(read)
            await visitor.send_all(MEGABYTE)
            await trio.sleep(0.1)
            await visitor.send_all(b"the end")
            await visitor.send_eof()
        assert received == [MEGABYTE + b"the end"]
        record = await pair.client.wait_record("visitor closed", address=name_of(visitor))
        assert record["reason"] == "ended by both sides"


async def half_close(
    side: str | None, visitor: trio.SocketStream, service: trio.SocketStream
) -> None:
    """Let one side end its direction, and the other one see it."""
    if side == "visitor":
        await visitor.send_eof()
        assert await read_all(service) == b""
    elif side == "service":
        await service.send_eof()
        assert await read_all(visitor) == b""


@pytest.mark.parametrize("half_closed", [None, "visitor", "service"])
async def test_reset_by_the_visitor_reaches_the_service(
    half_closed: str | None, pair: Pair
) -> None:
    async with site(pair) as at:
        visitor, service = await at.join()
        await half_close(half_closed, visitor, service)
        name = name_of(visitor)
        reset(visitor)
        if half_closed == "visitor":  # nothing more to read there: it shows on writing
            await write_until_broken(service)
        else:
            assert await end_of(service) == "reset"
        for log in (pair.server, pair.client):
            record = await log.wait_record("visitor closed", address=name)
            assert record["reason"] == "the visitor reset its connection"


@pytest.mark.parametrize("half_closed", [None, "visitor", "service"])
async def test_reset_by_the_service_reaches_the_visitor(
    half_closed: str | None, pair: Pair
) -> None:
    async with site(pair) as at:
        visitor, service = await at.join()
        await half_close(half_closed, visitor, service)
        name = name_of(visitor)
        reset(service)
        if half_closed == "service":
            await write_until_broken(visitor)
        else:
            assert await end_of(visitor) == "reset"
        for log in (pair.server, pair.client):
            record = await log.wait_record("visitor closed", address=name)
            assert record["reason"] == "the local service reset its connection"


async def write_until_broken(stream: trio.SocketStream) -> None:
    """Write a little now and then until it fails."""
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.02)


async def test_visitor_that_closes_both_ways_at_once(pair: Pair) -> None:
    """As most programs end: close(), with nothing unread; the service reads the end and ends as well."""
    async with site(pair) as at:
        visitor, service = await at.join(b"and gone")
        name = name_of(visitor)
        await visitor.aclose()
        assert await end_of(service) == "end"
        await service.aclose()
        record = await pair.server.wait_record("visitor closed", address=name)
        assert record["reason"] == "ended by both sides"


async def test_visitor_that_leaves_in_the_middle_of_a_large_answer(pair: Pair) -> None:
    async with site(pair) as at:
        visitor, service = await at.join()
        name = name_of(visitor)
        await service.send_all(MEGABYTE)
        await visitor.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await service.send_all(MEGABYTE)
        record = await pair.server.wait_record("visitor closed", address=name)
        assert record["reason"] == "the visitor reset its connection"


async def test_silent_visitors(pair: Pair) -> None:
    """Nothing is sent, not for a second, by more of them than there are idle tunnels: each has its own service connection."""
    async with site(pair) as at:
        silent = [await at.visit() for _ in range(20)]
        names = [name_of(visitor) for visitor in silent]
        ends = [await at.accepted.receive() for _ in silent]
        visitor, service = await at.join()
        await service.send_all(b"served")
        assert await read_exactly(visitor, 6) == b"served"
        await trio.sleep(1)
        for stream in (*silent, visitor):
            await stream.aclose()
        for end in (*ends, service):
            assert await end_of(end) == "end"
            await end.aclose()
        for name in names:
            for log in (pair.server, pair.client):
                record = await log.wait_record("visitor closed", address=name)
                assert record["reason"] == "ended by both sides"


async def test_service_that_speaks_first(pair: Pair) -> None:
    async with services.echo(login=b"220 ready\r\n", farewell=b"221 bye\r\n", port=pair.local_port):
        for _ in range(3):  # the same tunnel serves them one after another
            async with await pair.visit() as visitor:
                assert await read_exactly(visitor, 11) == b"220 ready\r\n"
                assert await ask(visitor, b"hello") == b"hello"
                await visitor.send_eof()
                assert await read_all(visitor) == b"221 bye\r\n"


async def test_service_that_is_down(pair: Pair) -> None:
    """Its visitors are closed at once, and told apart in both logs; the client stays, and serves when it is up again."""
    refusal = f"the local service 127.0.0.1:{pair.local_port} cannot be reached: Connection refused"
    for _ in range(2):
        async with await pair.visit() as visitor:
            with trio.fail_after(2):
                assert await read_all(visitor) == b""
            await pair.server.wait_record(
                "visitor closed", address=name_of(visitor), reason=refusal
            )
            await pair.client.wait_record("visitor refused", reason=refusal)
    async with (
        services.echo(port=pair.local_port),
        await pair.visit() as visitor,
    ):
        assert await ask(visitor, b"up again") == b"up again"


@pytest.mark.parametrize("after", [0, 5])
async def test_service_that_resets(after: int, pair: Pair) -> None:
    async with services.resetter(after=after, port=pair.local_port):
        for _ in range(2):
            async with await pair.visit() as visitor:
                await visitor.send_all(b"x" * after)
                how = await end_of(visitor)
                record = await pair.server.wait_record("visitor closed", address=name_of(visitor))
                # Without a byte, it may be reset before the client knows that it was connected at all: a refusal.
                ends = {"the local service reset its connection": "reset"}
                if not after:
                    ends[
                        f"the local service 127.0.0.1:{pair.local_port} cannot be reached: Connection reset by peer"
                    ] = "end"
                assert ends[record["reason"]] == how


async def test_service_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()

    async def serve() -> None:
        while True:
            connection, _ = await listening.accept()
            async with trio.SocketStream(connection) as stream:
                await stream.send_all((await read_all(stream))[::-1])

    with listening:
        async with (
            trio.open_nursery() as nursery,
            running.server(tmp_path / "s") as server,
            running.client(tmp_path / "c", server.ticket, path) as client,
        ):
            nursery.start_soon(serve)
            assert client.connected["services"][0]["local"] == str(path)
            for _ in range(2):
                async with await client.visit() as visitor:
                    async with trio.open_nursery() as sending:

                        async def send(visitor: trio.SocketStream = visitor) -> None:
                            await visitor.send_all(MEGABYTE)
                            await visitor.send_eof()

                        sending.start_soon(send)
                        assert await read_all(visitor) == MEGABYTE[::-1]
            nursery.cancel_scope.cancel()
