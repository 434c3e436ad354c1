"""What tests with a real authority get: pebble, and listeners as a server would have them."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.pebble import Pebble, running_pebble
from tests.mariadb import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trionat.server.certificates.challenges import Challenges


@pytest.fixture(scope="session")
def pebble() -> Iterator[Pebble]:
    """Give an authority that refuses every fifth nonce for no reason, and wants each name to be proved anew."""
    with running_pebble(PEBBLE_WFE_NONCEREJECT="20", PEBBLE_AUTHZREUSE="0") as running:
        yield running


@asynccontextmanager
async def listening(pebble: Pebble, challenges: Challenges) -> AsyncIterator[list[str]]:
    """Answer on both ports, as a server's listeners do; gives what was asked for: paths, and names by TLS."""
    asked: list[str] = []

    async def answer(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        path = head.split()[1].decode()
        asked.append(path)
        body = challenges.http01_answer(path)
        status, body = (b"404 Not Found", b"") if body is None else (b"200 OK", body)
        await stream.send_all(
            b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
        )
        await stream.aclose()

    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        asked.append(str(name))
        context = challenges.alpn01_context(name or "")
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = context
        return None

    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    plain.sni_callback = choose

    async def shake_hands(stream: trio.SocketStream) -> None:
        encrypted = trio.SSLStream(stream, plain, server_side=True)
        try:
            await encrypted.do_handshake()
            await encrypted.receive_some()
        except trio.BrokenResourceError:
            pass
        await trio.aclose_forcefully(encrypted)

    async with trio.open_nursery() as nursery:
        for port, handler in ((pebble.http_port, answer), (pebble.tls_port, shake_hands)):
            listeners = await trio.open_tcp_listeners(port, host=HOST)
            await nursery.start(trio.serve_listeners, handler, listeners)
        yield asked
        nursery.cancel_scope.cancel()
