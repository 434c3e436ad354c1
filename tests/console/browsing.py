"""A real server with a console, in the test's own nursery, and a client that says exactly what it is told."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import h11
import trio

from trionat.address import TCPAddress
from trionat.client.app import Client
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.server import ServerConfig
from trionat.config.service import Service
from trionat.errors import SessionOverError
from trionat.events import ClientEvent, Connected
from trionat.server.app import serve
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import User, new_ticket_salt
from trionat.store.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from trionat.events import Ready

ANY = TCPAddress("127.0.0.1", 0)


@attrs.frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def values(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self
        assert self.values["status"] == self.status
        return str(self.values["code"])


async def ask(
    port: int,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Send one request on a connection of its own, and return its answer."""
    given = {"Host": f"127.0.0.1:{port}", "Connection": "close", **(headers or {})}
    if body is not None:
        given.setdefault("Content-Length", str(len(body)))
    protocol = h11.Connection(h11.CLIENT)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        fields = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        request = h11.Request(method=method, target=path, headers=fields)
        await stream.send_all(protocol.send(request) or b"")
        if body:
            await stream.send_all(protocol.send(h11.Data(data=body)) or b"")
        await stream.send_all(protocol.send(h11.EndOfMessage()) or b"")
        return await read_answer(stream, protocol)


async def read_answer(stream: trio.abc.Stream, protocol: h11.Connection) -> Answer:
    response: h11.Response | None = None
    found = bytearray()
    while True:
        match event := protocol.next_event():
            case h11.NEED_DATA:
                protocol.receive_data(bytes(await stream.receive_some(65536)))
            case h11.Response():
                response = event
            case h11.Data(data=data):
                found += data
            case h11.EndOfMessage():
                assert response is not None
                headers = {name.decode(): value.decode() for name, value in response.headers}
                return Answer(response.status_code, headers, bytes(found))
            case other:
                raise AssertionError(f"no answer: {other}")


@attrs.define(eq=False)
class Browser:
    """Somebody who is logged in, or not yet."""

    port: int
    cookie: str = ""
    csrf: str = ""

    async def log_in(self, username: str, password: str) -> Answer:
        answer = await self.post("/api/v1/login", {"username": username, "password": password})
        if answer.status == 200:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
            self.csrf = answer.values["csrf"]
        return answer

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie, "X-CSRF-Token": self.csrf} if self.cookie else {}

    async def get(self, path: str, **headers: str) -> Answer:
        return await ask(self.port, "GET", path, headers={**self.headers, **headers})

    async def post(self, path: str, values: object = None, **headers: str) -> Answer:
        given = {"Content-Type": "application/json", "X-CSRF-Token": self.csrf}
        body = json.dumps({} if values is None else values).encode()
        return await ask(
            self.port, "POST", path, headers={**self.headers, **given, **headers}, body=body
        )

    async def delete(self, path: str, **headers: str) -> Answer:
        given = {**self.headers, "X-CSRF-Token": self.csrf, **headers}
        return await ask(self.port, "DELETE", path, headers=given)


@attrs.define(eq=False)
class Served:
    """A server with a console."""

    ready: Ready
    stopping: trio.Event
    nursery: trio.Nursery

    @property
    def port(self) -> int:
        assert self.ready.console is not None
        return int(self.ready.console.rstrip("/").rpartition(":")[2])

    @property
    def password(self) -> str:
        assert self.ready.first_password is not None
        return self.ready.first_password

    async def browser(self) -> Browser:
        """Return that of the administrator."""
        browser = Browser(self.port)
        assert (await browser.log_in("trionat", self.password)).status == 200
        return browser


@asynccontextmanager
async def served(folder: Path, **keys: Any) -> AsyncGenerator[Served]:
    """Give a server with a console and three visit ports."""
    given: dict[str, Any] = {
        "controller_addr": ANY,
        "tunnel_addr": ANY,
        "console_addr": ANY,
        "visit_port": (0, 0, 0),
        "state_dir": folder,
        "drain_grace": 1.0,
        **keys,
    }
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        job = partial(serve, ServerConfig(**given), stopping=stopping)
        ready: Ready = await nursery.start(job)
        yield Served(ready, stopping, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    server: Served, username: str = "trionat", password: str | None = None, *, folder: Path
) -> AsyncGenerator[int]:
    """Give the visit port of a service that answers with what it gets, of a client of its own."""

    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for piece in stream:
                await stream.send_all(piece)

    up = trio.Event()

    def hear(event: ClientEvent) -> None:
        if isinstance(event, Connected):
            up.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, echo, 0, host="127.0.0.1", handler_nursery=nursery)
        )
        local = TCPAddress("127.0.0.1", listener.socket.getsockname()[1])
        client = Client(
            ClientConfig(
                ticket=server.ready.ticket if password is None else None,
                controller_addr=None if password is None else server.ready.control,
                fingerprint=None if password is None else server.ready.fingerprint,
                services=(Service(local=local),),
                state_dir=folder,
            ),
            AuthConfig() if password is None else AuthConfig(username=username, password=password),
            on_event=hear,
        )

        async def run() -> None:
            with suppress(SessionOverError):  # it was sent away
                await client.run()

        nursery.start_soon(run)
        await up.wait()
        yield client.services[0].public.port
        nursery.cancel_scope.cancel()


async def add_user(folder: Path, name: str, password: str, **keys: Any) -> None:
    """Add an account, as `trionat user add` does while a server runs."""
    async with open_store(None, database_file(folder)) as store:
        user = User(
            name=name,
            password=await hash_password(password),
            ticket_salt=new_ticket_salt(),
            **keys,
        )
        await store.add_user(user)
