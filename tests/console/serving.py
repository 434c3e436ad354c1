"""A real server with its console, in the test's own process, and programs that ask its API."""

from __future__ import annotations

import http.client
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.server.app import serve
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import User, new_ticket_salt
from trionat.store.passwords import hash_password
from trionat.store.tokens import Token, TokenScope, digest_token, make_token_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trionat.config.database import DatabaseConfig
    from trionat.config.events import EventsConfig
    from trionat.store.base import Store

ANY_PORT = TCPAddress("127.0.0.1", 0)


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def values(self) -> Any:
        return json.loads(self.text)

    def fails(self, status: int, code: str, field: str | None = None) -> str:
        """Check that it is that problem; return what it says to people."""
        assert self.status == status, self.text
        assert self.headers["content-type"] == "application/problem+json"
        assert (self.values["code"], self.values.get("field")) == (code, field), self.text
        return str(self.values["detail"])


@attrs.define(eq=False)
class Api:
    """The API of a server, whose accounts are in `store`; `token` is whose who asks."""

    url: str
    store: Store
    token: str = ""

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send one request, on a connection of its own."""
        return await trio.to_thread.run_sync(partial(self._ask, method, path, body, headers))

    def _ask(self, method: str, path: str, body: object, headers: dict[str, str]) -> Answer:
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, f"/api/v1{path}", data, sent)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, text)

    async def get(self, path: str) -> Any:
        """Return what is there."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer.text
        return answer.values

    async def items(self, path: str) -> list[Any]:
        """Return all of a list that is one page."""
        page = await self.get(path)
        assert page["next"] is None
        return list(page["items"])

    async def as_user(self, name: str, scope: TokenScope = TokenScope.MANAGE, **more: Any) -> Api:
        """Return the same as somebody else asks, with a new token of that account."""
        user = await self.store.find_user(name)
        assert user is not None
        text = make_token_text()
        token = Token(
            name=text[4:20],
            user=user.name,
            account_id=user.account_id,
            digest=digest_token(text),
            scope=scope,
            created_at=datetime.now(UTC),
            **more,
        )
        await self.store.add_token(token)
        return attrs.evolve(self, token=text)

    async def add(self, name: str, password: str = "secret", **more: Any) -> Api:
        """Make an account behind the API's back, and return the API as it asks."""
        await self.store.add_user(
            User(
                name=name,
                password=await hash_password(password),
                ticket_salt=new_ticket_salt(),
                **more,
            )
        )
        return await self.as_user(name)


def send(url: str, method: str, path: str, data: bytes, **headers: str) -> int:
    """Send bytes that no JSON encoder would write; return the status. Blocks."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


@asynccontextmanager
async def serving(
    folder: Path,
    database: DatabaseConfig | None = None,
    events: EventsConfig | None = None,
    **settings: Any,
) -> AsyncIterator[Api]:
    """Serve; the API is asked by an administrator, `trionat` in the embedded store and `root` in a database."""
    config = ServerConfig(
        controller_addr=ANY_PORT,
        tunnel_addr=ANY_PORT,
        visit_port=(0,),
        state_dir=folder,
        console_addr=ANY_PORT,
        **settings,
    )
    async with (
        open_store(database, database_file(folder)) as store,
        trio.open_nursery() as nursery,
    ):
        ready = await nursery.start(partial(serve, config, database=database, events=events))
        api = Api(ready.console, store)
        if database is None:
            yield await api.as_user("trionat")
        else:
            yield await api.add("root", admin=True)
        nursery.cancel_scope.cancel()
