"""Hundreds of sessions that are cut anywhere, through the library: afterwards everything is as it was before."""

from __future__ import annotations

import random
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

import trionat
from tests.conftest import open_descriptors
from tests.e2e import running, services
from trionat.address import TCPAddress
from trionat.config.client import ClientConfig
from trionat.config.server import ServerConfig
from trionat.config.service import Service as LocalService
from trionat.protocol.frames import FrameReader
from trionat.protocol.messages import (
    Attach,
    Close,
    CloseCode,
    Drain,
    Expose,
    Hello,
    Message,
    Ping,
    Refused,
    ServiceRequest,
    Welcome,
    decode_message,
    encode_message,
)
from trionat.protocol.ticket import Ticket
from trionat.protocol.tunnel_frames import END_FRAME

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service
    from trionat.events import Ready

SESSIONS = 200
AT_ONCE = 40
PORTS = 20
"""Fewer than sessions at once, so that some are cut while they wait in the queue."""


class _CutError(Exception):
    """Here it ends."""


@attrs.define(eq=False)
class Script:
    """A client by hand that goes through all of the protocol and is cut at step `last`."""

    ready: Ready
    rng: random.Random
    number: int
    last: int
    step: int = 0

    def reached(self) -> None:
        """Go on to the next step, or end here."""
        self.step += 1
        if self.step > self.last:
            raise _CutError

    async def run(self) -> None:
        """Connect, log in, expose, attach a tunnel, serve a visitor, leave."""
        host, port = self.ready.control.host, self.ready.control.port
        async with trio.open_nursery() as nursery:
            with suppress(_CutError):
                plain = await self._connect(nursery, host, port)
                self.reached()
                control = await self._secure(plain)
                self.reached()
                welcome = await self._log_in(control)
                self.reached()
                tunnel = await self._secure(await self._connect(nursery, host, port))
                self.reached()
                attach = encode_message(Attach(welcome.uid, welcome.secret))
                await tunnel.send_all(attach[:20])
                self.reached()
                await tunnel.send_all(attach[20:])
                self.reached()
                visitor = await self._connect(nursery, host, welcome.ports[0])
                await visitor.send_all(b"anybody?" * self.rng.randrange(1, 20_000))
                self.reached()
                with trio.move_on_after(1):
                    await tunnel.receive_some(10)
                self.reached()
                await tunnel.send_all(b"\x00\x01\x00\x00")  # the first half of a header
                self.reached()
                await visitor.send_eof()
                await control.send_all(encode_message(Drain(seconds=1)))
                self.reached()
                await control.send_all(encode_message(Close(code=CloseCode.STOPPED, text="bye")))
                self.reached()
                await tunnel.send_all(END_FRAME * 3)
            nursery.cancel_scope.cancel()

    async def _connect(self, nursery: trio.Nursery, host: str, port: int) -> trio.SocketStream:
        """Connect; when the script ends, the connection is reset or closed, as chance wills."""
        stream = await trio.open_tcp_stream(host, port)

        async def end() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if self.rng.random() < 0.5:
                    running.reset(stream)
                else:
                    stream.socket.close()

        nursery.start_soon(end)
        return stream

    async def _secure(self, plain: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = trio.SSLStream(plain, context)
        await stream.do_handshake()
        return stream

    async def _log_in(self, control: trio.SSLStream[trio.SocketStream]) -> Welcome:
        assert self.ready.ticket is not None
        ticket = Ticket.decode(self.ready.ticket)
        # Every third one has the identity of another, which evicts it.
        identity = f"script {self.number - self.number % 3}"
        hello = encode_message(
            Hello(username=ticket.username, identity=identity, token=ticket.token)
        )
        await control.send_all(hello[:30])
        self.reached()
        await control.send_all(hello[30:])
        self.reached()
        request = ServiceRequest(name="x", local="x")
        await control.send_all(encode_message(Expose(services=(request,), idle_tunnels=1)))
        self.reached()
        reader = FrameReader(limit=65_536)
        while True:
            message = await self._receive(control, reader)
            match message:
                case Welcome():
                    return message
                case Refused():
                    raise _CutError
                case _:
                    await control.send_all(encode_message(Ping(1)))

    async def _receive(
        self, control: trio.SSLStream[trio.SocketStream], reader: FrameReader
    ) -> Message:
        while (frame := reader.next_frame()) is None:
            data = await control.receive_some()
            if not data:
                raise _CutError
            reader.feed(data)
        return decode_message(frame)


@pytest.mark.slow
@pytest.mark.limit(60)
@pytest.mark.parametrize("seed", [1])
async def test_sessions_cut_anywhere(
    seed: int, echo_server: Service, tmp_path: Path, nothing_left: None
) -> None:
    rng = random.Random(seed)
    any_port = TCPAddress(services.HOST, 0)
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,) * PORTS,
        state_dir=tmp_path / "server",
        port_reservation=0.2,
        handshake_timeout=2,
    )
    async with trio.open_nursery() as serving:
        ready: Ready = await serving.start(trionat.serve, config)
        client_config = ClientConfig(
            ticket=ready.ticket,
            services=(LocalService(local=TCPAddress(services.HOST, echo_server.port)),),
            state_dir=tmp_path / "client",
        )
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living, len(open_descriptors())

        async def scripted(number: int) -> None:
            async with limit:
                script = Script(ready, random.Random(rng.random()), number, rng.randrange(15))
                with (
                    trio.move_on_after(rng.uniform(0.5, 3)),
                    suppress(trio.BrokenResourceError, trio.ClosedResourceError),
                ):
                    try:
                        await script.run()
                    except* (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass

        async def real(number: int) -> None:
            async with limit:
                with trio.move_on_after(rng.uniform(0, 1)):
                    config = attrs.evolve(client_config, identity=f"client {number}")
                    async with trionat.connect(config) as client:
                        address = client.services[0].public
                        stream = await trio.open_tcp_stream(address.host, address.port)
                        async with stream:
                            while True:
                                assert await running.ask(stream, b"hello") == b"hello"

        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(rng.choice([scripted, scripted, real]), number)

        now = (0, 0)
        for _ in range(100):  # the reservation has to run out, and the last words to be said
            now = trio.lowlevel.current_statistics().tasks_living, len(open_descriptors())
            if now == before:
                break
            await trio.sleep(0.1)
        assert now == before
        # Every port and every slot is free: so many sessions can be up at once, each of them with its own port.
        async with trio.open_nursery() as nursery:
            stop, ports = trio.Event(), set[int]()

            async def hold(number: int) -> None:
                config = attrs.evolve(client_config, identity=f"last {number}")
                async with trionat.connect(config) as client:
                    ports.add(client.services[0].public.port)
                    if len(ports) == PORTS:
                        stop.set()
                    await stop.wait()

            for number in range(PORTS):
                nursery.start_soon(hold, number)
        assert ports == set(ready.visit_ports)
        serving.cancel_scope.cancel()
