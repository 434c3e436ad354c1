"""A receiver of events on the loopback that answers as a test has it."""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.e2e.running import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"
LIMIT = 15.0


@attrs.frozen
class Received:
    """A request: `headers` are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The event in it."""
        value: dict[str, Any] = json.loads(self.body)
        return value


@attrs.define(eq=False)
class Receiver:
    """Takes requests, and answers each with `answer`; what it has taken is in `got`, also where it was not answered."""

    port: int
    answer: Callable[[trio.abc.Stream, Received], Awaitable[None]]
    scheme: str = "http"
    got: list[Received] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}/hook"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [received.event for received in self.got]

    @property
    def numbers(self) -> list[int]:
        return [event["number"] for event in self.events]

    async def wait(self, count: int) -> None:
        """Wait for so many requests."""
        await wait_until(lambda: len(self.got) >= count, within=LIMIT)

    async def wait_type(self, type_: str) -> dict[str, Any]:
        """Wait for an event of a type, and return it."""
        await wait_until(lambda: any(event["type"] == type_ for event in self.events), within=LIMIT)
        return next(event for event in self.events if event["type"] == type_)


def status(*codes: int, body: bytes = b"", **headers: str) -> Any:
    """Answer with these, one after another; the last one for all that come later."""
    left = list(codes)

    async def answer(stream: trio.abc.Stream, _: Received) -> None:
        code = left.pop(0) if len(left) > 1 else left[0]
        lines = [f"HTTP/1.1 {code} Word", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)

    return answer


@asynccontextmanager
async def receiving(
    answer: Any = None, *, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[Receiver]:
    """Run one."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=HOST)
        receiver = Receiver(
            listeners[0].socket.getsockname()[1],
            answer or status(204),
            "http" if tls is None else "https",
        )

        async def handle(connection: trio.SocketStream) -> None:
            stream: trio.abc.Stream = connection
            with suppress(trio.BrokenResourceError, ssl.SSLError, trio.ClosedResourceError):
                if tls is not None:
                    stream = trio.SSLStream(connection, tls, server_side=True)
                if (received := await _read(stream)) is not None:
                    receiver.got.append(received)
                    await receiver.answer(stream, received)

        await nursery.start(trio.serve_listeners, handle, listeners)
        yield receiver
        nursery.cancel_scope.cancel()


async def _read(stream: trio.abc.Stream) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    while len(body) < int(headers["content-length"]):
        body += await stream.receive_some(65536)
    return Received(method, target, headers, body)
