"""Passwords that are guessed, from one address and from many: what a flood of them gets, and what it costs others."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running
from tests.e2e.test_authentication import PASSWORD, user
from trionat.errors import PeerError
from trionat.protocol.messages import Expose, Hello, Refused, ServiceRequest, Welcome
from trionat.transport.channel import Channel
from trionat.transport.tls import client_context, connect_tls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.running import Server

pytestmark = [
    pytest.mark.limit(90),
    pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 needs no setting up on Linux"),
]

GUESSES = 60
CLOSED = "closed"


async def log_in(server: Server, host: str, name: str, password: str) -> str:
    """Return what the server says to a login from `host`: a code, or `Welcome`, or that it closes."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((host, 0))
    with trio.fail_after(60):
        await trio.socket.from_stdlib_socket(sock).connect(server.control)
        try:
            endpoint = await connect_tls(sock, client_context(pinned=True), "127.0.0.1")
        except PeerError:
            return CLOSED
        try:
            channel = Channel(endpoint)
            await channel.send(Hello(username=name, password=password, identity=host))
            await channel.send(Expose(services=(ServiceRequest(),)))
            while True:
                message = await channel.receive()
                if isinstance(message, Refused):
                    return message.code
                if isinstance(message, Welcome):
                    return "Welcome"
        except PeerError:
            return CLOSED
        finally:
            endpoint.close()


async def test_sixty_guesses_in_one_moment(tmp_path: Path) -> None:
    answers: Counter[str] = Counter()
    async with running.server(tmp_path / "s", "--ban-after", "3", "--ban-time", "60") as server:
        await user(server, "add", "ann", stdin=PASSWORD.encode() + b"\n")

        async def guess(number: int) -> None:
            answers[await log_in(server, "127.0.0.1", "ann", f"guess {number}")] += 1

        async with trio.open_nursery() as nursery:
            for number in range(GUESSES):
                nursery.start_soon(guess, number)
            with trio.fail_after(5):
                assert await log_in(server, "127.0.0.2", "ann", PASSWORD) == "Welcome"
        assert answers["auth-failed"] == 3
        assert answers["banned"] + answers[CLOSED] == GUESSES - 3
        assert await log_in(server, "127.0.0.1", "ann", PASSWORD) == CLOSED


async def test_guesses_from_many_networks(tmp_path: Path) -> None:
    """Some 240 checks of a password, for seconds: whoever has not failed has to wait for a few of them."""
    networks = [f"127.0.1.{number}" for number in range(1, 31)]
    flags = ("--ban-after", "100")
    async with running.server(tmp_path / "s", *flags) as server, trio.open_nursery() as nursery:
        await user(server, "add", "ann", stdin=PASSWORD.encode() + b"\n")
        async with trio.open_nursery() as first:
            for host in networks:
                first.start_soon(log_in, server, host, "ann", "wrong")
        for host in networks:
            for number in range(8):
                nursery.start_soon(log_in, server, host, "ann", f"guess {number}")
        await trio.sleep(1)
        with trio.fail_after(1.2):
            assert await log_in(server, "127.0.0.2", "ann", PASSWORD) == "Welcome"
        nursery.cancel_scope.cancel()
