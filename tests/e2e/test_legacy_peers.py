"""The peers of `legacy_peers.py` themselves: what they send is what the specification has, and they understand each other."""

from __future__ import annotations

import hashlib
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.e2e import legacy_peers, running, services
from tests.e2e.legacy_peers import (
    HOST,
    Credentials,
    Dialect,
    Id,
    LegacyClient,
    LegacyDialer,
    MalformedError,
    running_client,
    running_server,
)
from tests.e2e.running import ask, end_of, read_all

if TYPE_CHECKING:
    from tests.e2e.services import Service

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "protocol" / "vectors.json").read_text(encoding="utf-8")
)

both_dialects = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
good = pytest.mark.parametrize(
    "vector",
    VECTORS["frames"],
    ids=[f"{number} {v['dialect']} {v['name']}" for number, v in enumerate(VECTORS["frames"])],
)


@good
async def test_good_vector(vector: dict[str, Any]) -> None:
    """It is what a peer sends for its meaning, and is read as that; a piece of it is not taken for the whole."""
    dialect, meaning = Dialect(vector["dialect"]), vector["meaning"]
    wire, message = bytes.fromhex(vector["frame_hex"]), Id[vector["name"]]
    payload = bytes.fromhex(vector["payload_hex"])
    if message is Id.USER_REQUEST_AUTH:
        texts = (meaning["username"], meaning["password"])
        login = Credentials(*texts, meaning["expire_unix"], meaning["uid"])
        assert legacy_peers.credentials_frame(dialect, login) == wire
        assert legacy_peers.parse_credentials(dialect, payload) == login
    elif message is Id.USER_INFORMATION:
        assert legacy_peers.information_frame(dialect, **meaning) == wire
        uid, port = legacy_peers.parse_information(payload)
        assert meaning == {"uid": uid, "port": port}
    else:
        assert legacy_peers.frame(dialect, message) == wire
        assert meaning.get("text", "").encode() == payload
    for size in range(len(wire) + 1):
        ours, theirs = trio.testing.memory_stream_one_way_pair()
        async with ours, theirs:
            await ours.send_all(wire[:size])
            await ours.aclose()
            if size == 0:
                assert await legacy_peers.receive(theirs, dialect) is None
            elif size < len(wire):
                with pytest.raises(MalformedError):
                    await legacy_peers.receive(theirs, dialect)
            else:
                read = await legacy_peers.receive(theirs, dialect)
                assert read == legacy_peers.Message(message, payload)
                assert await legacy_peers.receive(theirs, dialect) is None


def of(dialect: Dialect, name: str) -> list[dict[str, Any]]:
    """Return the good vectors of a message."""
    return [
        vector
        for vector in VECTORS["frames"]
        if vector["dialect"] == dialect.value and vector["name"] == name
    ]


def wire_of(dialect: Dialect, name: str) -> bytes:
    return bytes.fromhex(of(dialect, name)[0]["frame_hex"])


@both_dialects
async def test_client_on_the_wire(dialect: Dialect, echo_server: Service) -> None:
    """The test plays the server with nothing but the vectors."""
    async with (
        services.handed_over() as (control_service, controls),
        services.handed_over() as (tunnel_service, tunnels),
    ):
        for vector, session in zip(
            of(dialect, "USER_REQUEST_AUTH"), of(dialect, "USER_INFORMATION"), strict=True
        ):
            meaning = vector["meaning"]
            client = LegacyClient(
                dialect=dialect,
                control_address=(HOST, control_service.port),
                tunnel_address=(HOST, tunnel_service.port),
                service=(HOST, echo_server.port),
                username=meaning["username"],
                password=meaning["password"],
                expire_unix=meaning["expire_unix"],
            )
            async with running_client(client):
                control = await controls.receive()
                credentials = bytes.fromhex(vector["frame_hex"])
                assert await running.read_exactly(control, len(credentials)) == credentials
                information = bytes.fromhex(session["frame_hex"])
                names = ("USER_AUTHENTICATION_SUCCESSFULLY", "KEEP_ALIVE", "NEW_CONNECTION")
                await control.send_all(
                    wire_of(dialect, names[0])
                    + information
                    + b"".join(wire_of(dialect, name) for name in names[1:])
                )
                tunnel = await tunnels.receive()
                assert await running.read_exactly(tunnel, len(information)) == information
                assert await ask(tunnel, b"raw from here on") == b"raw from here on"
                assert client.uid == session["meaning"]["uid"]
                assert client.port == session["meaning"]["port"]
                await control.send_eof()
                assert await client.wait_outcome() == "closed"
                assert await read_all(tunnel) == b""


@both_dialects
async def test_server_on_the_wire(dialect: Dialect, nothing_left: None) -> None:
    """The test plays the client with nothing but the vectors."""
    vectors = of(dialect, "USER_REQUEST_AUTH")
    users = {vector["meaning"]["username"]: vector["meaning"]["password"] for vector in vectors}
    server = LegacyDialer(
        dialect=dialect, users=users, keep_alive_interval=0.05, visit_ports=(0,), queue_places=1
    )
    async with running_server(server):
        for uid, vector in enumerate(vectors, start=1):
            async with await trio.open_tcp_stream(HOST, server.control_port) as control:
                await control.send_all(bytes.fromhex(vector["frame_hex"]))
                success = wire_of(dialect, "USER_AUTHENTICATION_SUCCESSFULLY")
                assert await running.read_exactly(control, len(success)) == success
                size = len(wire_of(dialect, "USER_INFORMATION"))
                information = await running.read_exactly(control, size)
                port = server.sessions[uid].port
                assert information == legacy_peers.information_frame(dialect, uid, port)
                ping = wire_of(dialect, "KEEP_ALIVE")
                assert await running.read_exactly(control, 2 * len(ping)) == 2 * ping
                async with AsyncExitStack() as streams:

                    async def connect(
                        port: int, streams: AsyncExitStack = streams
                    ) -> trio.SocketStream:
                        stream = await trio.open_tcp_stream(HOST, port)
                        return await streams.enter_async_context(stream)

                    visitors, heard = [], b""
                    for count, words in enumerate((b"first", b"after"), start=1):
                        visitors.append(await connect(port))
                        await visitors[-1].send_all(words)
                        while heard.count(wire_of(dialect, "NEW_CONNECTION")) < count:
                            heard += await control.receive_some()
                    tunnel = await connect(server.tunnel_port)
                    await tunnel.send_all(information + b"good day")
                    assert await running.read_exactly(tunnel, 5) == b"first"
                    assert await running.read_exactly(visitors[0], 8) == b"good day"
                    await tunnel.aclose()
                    assert await read_all(visitors[0]) == b""
            assert server.logins[-1].username == vector["meaning"]["username"]
    assert not server.malformed


@both_dialects
async def test_server_refuses_bad_vectors(dialect: Dialect) -> None:
    vectors = [v for v in VECTORS["bad"] if v["dialect"] in ("any", dialect.value)]
    server = LegacyDialer(dialect=dialect)
    async with running_server(server):
        for port in (server.control_port, server.tunnel_port):
            for count, vector in enumerate(vectors, start=1):
                async with await trio.open_tcp_stream(HOST, port) as stream:
                    await stream.send_all(bytes.fromhex(vector["bytes_hex"]))
                    with suppress(trio.BrokenResourceError):  # it has heard enough
                        await stream.send_eof()
                    await end_of(stream)
                assert len(server.malformed) == count, vector["why"]
            server.malformed.clear()
    assert not server.logins


def client_of(
    server: LegacyDialer, *, service: Service | None = None, **others: Any
) -> LegacyClient:
    return LegacyClient(
        dialect=server.dialect,
        control_address=(HOST, server.control_port),
        tunnel_address=(HOST, server.tunnel_port),
        service=None if service is None else (service.host, service.port),
        **others,
    )


@both_dialects
async def test_visitors(dialect: Dialect, http_server: Service) -> None:
    """A request, half-close both ways, eight megabytes each way, many at once, and a visitor that nobody serves."""
    size = 8 * 1024 * 1024
    server = LegacyDialer(dialect=dialect, users={"me": "secret"}, visitor_wait=0.2)
    async with (
        running_server(server),
        services.echo(login=b"hello", farewell=b"bye") as echo,
        running_client(client_of(server, service=echo, username="me", password="secret")) as client,
    ):
        await client.wait_session()
        pieces, digest = services.pattern(size), hashlib.sha256()

        async def visit() -> None:
            async with await client.visit() as visitor:
                await visitor.send_all(b"|")
                await visitor.send_eof()
                assert await read_all(visitor) == b"hello|bye"

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(visit)
            async with await client.visit() as visitor:

                async def send() -> None:
                    for piece in pieces:
                        await visitor.send_all(piece)
                    await visitor.send_eof()

                nursery.start_soon(send)
                assert await running.read_exactly(visitor, 5) == b"hello"
                received = await read_all(visitor)
                digest.update(received.removesuffix(b"bye"))
                assert digest.hexdigest() == services.pattern_digest(size)
        client.service = (HOST, services.free_low_port())
        async with await client.visit() as visitor:
            assert await end_of(visitor) == "end"
        assert len(server.tunnels) == 21
        assert set(server.tunnels) == {(1, client.port)}
        [login] = server.logins
        uid = {Dialect.NAT_DOC: None, Dialect.NAT_V1: 0}[dialect]
        assert login == Credentials("me", "secret", -62135596800, uid)
        assert not server.sessions[1].waiting
    assert not server.malformed


@both_dialects
async def test_who_gets_in(dialect: Dialect) -> None:
    """A wrong password; one waits, the next is told that it is full and tries again until a place is free."""
    server = LegacyDialer(dialect=dialect, users={"me": "secret"})
    async with running_server(server), AsyncExitStack() as clients:

        async def start(password: str = "secret") -> LegacyClient:
            client = client_of(server, username="me", password=password, retry_interval=0.02)
            return await clients.enter_async_context(running_client(client))

        assert await (await start("wrong")).wait_outcome() == "auth-fail"
        first = await start()
        await first.wait_session()
        assert first.uid == 1
        second = await start()
        await second.wait_heard(Id.USER_AUTHENTICATION_SUCCESSFULLY)
        await running.wait_until(lambda: server.queued == 1)
        third = await start()
        await third.wait_heard(Id.CONNECTION_IF_FULL, count=2)
        first.kill()
        await second.wait_session()
        assert second.uid == 2
        assert second.control is not None
        await second.control.send_eof()  # a program that ends in order
        await third.wait_session()
        assert third.uid == 3
    assert not server.malformed


async def test_server_that_is_killed_has_its_ports_again() -> None:
    server = LegacyDialer(dialect=Dialect.NAT_V1)
    ports = set()
    for _ in range(2):
        async with running_server(server), running_client(client_of(server)) as client:
            await client.wait_session()
            ports.add((server.control_port, server.tunnel_port))
            assert client.control_address == (HOST, server.control_port)
    assert len(ports) == 1
