"""A client whose services change while its session comes or goes; the server's end is in the test's hands."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.unit.client_side import CONTROL, TUNNEL, Host
from trionat.address import TCPAddress
from trionat.client.app import Client
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.load import load
from trionat.config.service import Service
from trionat.errors import PeerError
from trionat.protocol.messages import (
    CAPABILITIES,
    MOVE,
    SECRET_BYTES,
    SERVICE_CHANGES,
    Change,
    Changed,
    Close,
    CloseCode,
    Drain,
    Expose,
    Hello,
    Message,
    Moved,
    Ping,
    Pong,
    Welcome,
)
from trionat.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.conftest import Tidy
    from trionat.config.load import Configuration

WEB = Service(local=TCPAddress("127.0.0.1", 1), name="web")
SSH = Service(local=TCPAddress("127.0.0.1", 2), name="ssh")


@attrs.define(eq=False)
class ServerEnd:
    """The far end of one session."""

    channel: Channel
    expose: Expose

    async def hear(self, kind: type[Message]) -> Message:
        while isinstance(message := await self.channel.receive(), Ping | Pong):
            if isinstance(message, Ping):
                await self.channel.send(Pong(message.number))
        assert isinstance(message, kind)
        return message


@attrs.define(eq=False)
class World:
    """A client, and the server that it dials."""

    host: Host
    client: Client
    before: Configuration

    async def welcome(self) -> ServerEnd:
        """Let the next session in."""
        channel = Channel(await self.host.answer())
        channel.allow_control_frames()
        assert isinstance(await channel.receive(), Hello)
        expose = await channel.receive()
        assert isinstance(expose, Expose)
        await channel.send(
            Welcome(
                uid=7,
                secret=b"s" * SECRET_BYTES,
                ports=tuple(range(60001, 60001 + len(expose.services))),
                host="public.example",
                ping_interval=60,
                peer_timeout=180,
                max_tunnels=50,
                capabilities=(*CAPABILITIES, SERVICE_CHANGES, MOVE),
            )
        )
        return ServerEnd(channel, expose)

    def wanted(self, *services: Service) -> Configuration:
        return attrs.evolve(self.before, client=attrs.evolve(self.before.client, services=services))


@asynccontextmanager
async def open_world(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    host = Host(tidy, tmp_path)
    monkeypatch.setattr("trionat.client.app.ServerDialer", lambda *_, **__: host.dialer)
    config = ClientConfig(
        controller_addr=CONTROL,
        tunnel_server_addr=TUNNEL,
        services=(WEB,),
        identity="me",
        state_dir=tmp_path,
        min_idle_tunnels=0,
    )
    auth = AuthConfig(username="alice", password="x")
    before = attrs.evolve(load("client", environ={}), client=config, auth=auth)
    client = Client(config, auth)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield World(host, client, before)
            nursery.cancel_scope.cancel("the test is over")
    host.go()


async def until_up(client: Client) -> None:
    while not client.services:  # noqa: ASYNC110 - there is no event for it
        await trio.sleep(0.01)


async def test_a_server_that_stops_while_services_change(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time of its answer the client is on its way to another server, with the services of before: there they change as well."""
    async with open_world(tidy, tmp_path, monkeypatch) as world:
        first = await world.welcome()
        await until_up(world.client)
        wanted = world.wanted(WEB, SSH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.change, world.before, wanted)
            await first.hear(Change)
            await first.channel.send(Drain(seconds=20, servers=(CONTROL,)))
            second = await world.welcome()
            assert len(second.expose.services) == 1
            await first.hear(Moved)
            await first.channel.send(Changed(ports=(60009,)))
            with trio.fail_after(4):
                third = await world.welcome()
            assert len(third.expose.services) == 2
        while len(world.client.services) != 2:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)
        assert [service.name for service in world.client.services] == ["web", "ssh"]


async def test_a_client_that_waits_to_try_again_tries_at_once(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has mended what was wrong need not wait for what was wrong."""
    async with open_world(tidy, tmp_path, monkeypatch) as world:
        for _ in range(4):  # the longer it waits each time
            first = await world.welcome()
            await first.channel.send(Close(code=CloseCode.STOPPED, text="x"))
            with pytest.raises(PeerError):
                await first.hear(Close)
        await trio.sleep(0.1)
        assert not world.host.waiting()
        began = trio.current_time()
        auth = attrs.evolve(world.before.auth, password="y")
        await world.client.change(world.before, attrs.evolve(world.before, auth=auth))
        await world.welcome()
        assert trio.current_time() - began < 0.5


async def test_a_server_that_names_no_address_for_a_service_by_name(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that it is at port 0: the session is given up, as at a WELCOME like that."""
    async with open_world(tidy, tmp_path, monkeypatch) as world:
        first = await world.welcome()
        await until_up(world.client)
        shop = Service(local=TCPAddress("127.0.0.1", 3), http="shop")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.change, world.before, world.wanted(WEB, shop))
            await first.hear(Change)
            await first.channel.send(Changed(ports=(1,)))
            with trio.fail_after(5):
                second = await world.welcome()
            assert len(second.expose.services) == 2
        assert all(service.public.port for service in world.client.services)
