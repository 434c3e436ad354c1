"""A server and a client with an inspector, in the test's own process, and what a browser would ask it."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import h11
import trio

import trionat
from tests.e2e.running import wait_until
from trionat.address import TCPAddress
from trionat.events import Connected, Inspecting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionat.client.inspector.inspector import Inspector
    from trionat.client.inspector.recorder import Recorder
    from trionat.events import ClientEvent

ANY_PORT = TCPAddress("127.0.0.1", 0)


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.define(eq=False)
class Scene:
    """`events` are those of the client. `serving` ends when its scope is cancelled, and then there is no server."""

    client: trionat.Client
    events: list[ClientEvent]
    url: str

    @property
    def inspector(self) -> Inspector:
        assert self.client._inspector is not None
        return self.client._inspector

    @property
    def recorder(self) -> Recorder:
        return self.inspector.recorder

    @property
    def address(self) -> TCPAddress:
        return self.inspector.access.address

    async def visit(self, service: int = 0) -> trio.SocketStream:
        public = self.client.services[service].public
        return await trio.open_tcp_stream(public.host, public.port)

    async def ask(
        self,
        path: str,
        content: object = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        token: bool = True,
        body: bytes | None = None,
    ) -> Answer:
        """As a browser does that has the token."""
        sent = {"Host": str(self.address), **(headers or {})}
        if token:
            sent["Authorization"] = f"Bearer {self.inspector.access.token}"
        if content is not None:
            body = json.dumps(content).encode()
            sent.setdefault("Content-Type", "application/json")
        if body is not None:
            sent["Content-Length"] = str(len(body))
        connection = h11.Connection(h11.CLIENT)
        stream = await trio.open_tcp_stream(self.address.host, self.address.port)
        async with stream:
            request = h11.Request(
                method=method or ("GET" if body is None else "POST"),
                target=path,
                headers=[
                    (name.encode(), value.encode("latin-1"))
                    for name, value in sent.items()
                    if value
                ],
            )
            await stream.send_all(connection.send(request) or b"")
            if body:
                with suppress(trio.BrokenResourceError):  # it need not read all of it
                    await stream.send_all(connection.send(h11.Data(data=body)) or b"")
            connection.send(h11.EndOfMessage())
            answer: h11.Response | None = None
            data = b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Response):
                    answer = event
                elif isinstance(event, h11.Data):
                    data += event.data
                else:
                    break
        assert answer is not None
        return Answer(
            answer.status_code,
            {name.decode(): value.decode() for name, value in answer.headers},
            data,
        )

    async def rows(self, count: int, *, ended: bool = True) -> list[dict[str, Any]]:
        """Return so many visitors as they are listed, the newest last, when they have all ended."""
        await wait_until(
            lambda: (
                len(self.recorder.recordings) == count and (not ended or not self.recorder.live)
            ),
            within=10,
        )
        return [(await self.ask(f"/api/visitors/{n}")).json for n in self.recorder.recordings]


@asynccontextmanager
async def inspected(
    folder: Path, ticket: str, *ports: int, **settings: Any
) -> AsyncIterator[Scene]:
    """Run a client for services on these ports. `settings` are its own."""
    events: list[ClientEvent] = []
    config = trionat.ClientConfig(
        ticket=ticket,
        services=tuple(trionat.parse_service(str(port)) for port in ports),
        state_dir=folder,
        **{"inspect_addr": ANY_PORT, "drain_grace": 0.5, **settings},
    )
    async with trionat.connect(config, on_event=events.append) as client:
        urls = [event.url for event in events if isinstance(event, Inspecting)]
        told = [type(event) for event in events]
        assert not urls or told.index(Inspecting) < told.index(Connected)
        yield Scene(client, events, urls[0] if urls else "")


@asynccontextmanager
async def serving(folder: Path, services: int) -> AsyncIterator[str]:
    """Run a server that has a visit port for so many services, and give its ticket."""
    config = trionat.ServerConfig(
        controller_addr=ANY_PORT,
        tunnel_addr=ANY_PORT,
        visit_port=(0,) * services,
        state_dir=folder,
    )
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(trionat.serve, config)
        yield ready.ticket
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def scene(folder: Path, *ports: int, **settings: Any) -> AsyncIterator[Scene]:
    """Run both, for services on these ports. `settings` are the client's."""
    async with (
        serving(folder / "server", len(ports)) as ticket,
        inspected(folder / "client", ticket, *ports, **settings) as here,
    ):
        yield here
