"""What changes, told as it does, to readers that read and to those that do not."""

from __future__ import annotations

import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trio.testing

from tests.console.browsing import Browser, add_user, connected, served
from tests.console.serving import serving
from tests.unit.test_cli_status import SNAPSHOT
from trionat.errors import StoreUnavailableError
from trionat.log import get_logger
from trionat.server.console import directory, guard, live
from trionat.server.console.api import live as api_live
from trionat.server.console.directory import Directory
from trionat.server.console.live import event
from trionat.server.console.sampler import Sampler
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import Flush, Limits, User
from trionat.store.month import month_of
from trionat.store.sqlite import SQLiteStore
from trionat.transport import web_connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trionat.server.admin.snapshot import Snapshot
    from trionat.store.tokens import Token

pytestmark = pytest.mark.limit(40)


@attrs.define(eq=False)
class Reader:
    stream: trio.SocketStream
    rest: bytes = b""
    heard: bytes = b""

    async def next(self, name: str) -> dict[str, Any]:
        """Return the next event of that name."""
        with trio.fail_after(10):
            while True:
                while b"\n\n" not in self.rest:
                    piece = await self.stream.receive_some(65536)
                    if not piece:
                        raise EOFError
                    self.rest += piece
                    self.heard += piece
                text, _, self.rest = self.rest.partition(b"\n\n")
                if b"event: " + name.encode() + b"\n" in text:
                    values: dict[str, Any] = json.loads(text.partition(b"data: ")[2])
                    return values


def request_for(browser: Browser, topics: str) -> bytes:
    head = f"GET /api/v1/live?topics={topics} HTTP/1.0\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\n\r\n"
    return head.encode()


@asynccontextmanager
async def reading(browser: Browser, topics: str) -> AsyncGenerator[Reader]:
    async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stream:
        await stream.send_all(request_for(browser, topics))
        reader = Reader(stream)
        assert (await reader.next("reset"))["topics"] == topics.split(",")
        yield reader


async def test_what_changes_is_told(
    nothing_left: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with served(tmp_path / "server") as server:
        browser = await server.browser()
        async with reading(browser, "server,sessions,visitors,log") as reader:
            assert (await reader.next("server"))["sessions"] == 0
            async with connected(server, folder=tmp_path / "client") as port:
                (row,) = (await reader.next("sessions"))["added"]
                assert row["services"][0]["port"] == port
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    (visitor,) = (await reader.next("visitors"))["added"]
                    await stream.send_all(bytes(50_000))
                    while True:
                        (changed,) = (await reader.next("visitors"))["changed"]
                        assert changed["number"] == visitor["number"]
                        if changed["received"] == 50_000:
                            break
                assert (await reader.next("visitors"))["removed"] == [visitor["number"]]
            assert (await reader.next("sessions"))["removed"] == [row["uid"]]
            await Browser(server.port).log_in("nobody", "x")
            while (await reader.next("log"))["event"] != "a login at the console has failed":
                pass


async def test_others_are_not_told_of(tmp_path: Path) -> None:
    async with served(tmp_path / "server") as server:
        await add_user(tmp_path / "server", "alice", "secret")
        alice = Browser(server.port)
        await alice.log_in("alice", "secret")
        async with reading(alice, "server,sessions") as reader:
            async with connected(server, folder=tmp_path / "a"):
                for _ in range(3):
                    assert (await reader.next("server"))["sessions"] == 0
                async with connected(server, "alice", "secret", folder=tmp_path / "b"):
                    (row,) = (await reader.next("sessions"))["added"]
                    assert row["user"] == "alice"
        assert b'"user":"trionat"' not in reader.heard


async def test_a_stream_ends_with_its_login(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with reading(browser, "server") as reader:
            await browser.post("/api/v1/logout")
            with pytest.raises(EOFError):
                while True:
                    await reader.next("server")


async def test_who_does_not_read_costs_little_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_connection, "_WRITE_PATIENCE", 1.0)
    monkeypatch.setattr(
        "trionat.server.console.live.event",
        lambda name, _: event(name, {"topics": ["server"], "much": "x" * 3_000_000}),
    )
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stuck:
            head = f"GET /api/v1/live?topics=server HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\n\r\n"
            await stuck.send_all(head.encode())
            async with reading(browser, "server") as reader:
                for _ in range(5):  # nobody else is held up
                    await reader.next("server")
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await trio.sleep(2)
                while await stuck.receive_some(65536):
                    pass
                raise trio.BrokenResourceError
        assert (await browser.get("/api/v1/me")).status == 200


async def test_topics_are_known(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        answer = await browser.get("/api/v1/live?topics=server,secrets")
        assert (answer.code, answer.values["field"]) == ("invalid", "topics")


async def test_a_stream_whose_request_does_not_end_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_BODY_PATIENCE", 0.5)
    async with served(tmp_path) as server:
        browser = await server.browser()
        head = f"GET /api/v1/live?topics=server HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", browser.port) as stream:
            await stream.send_all(head.encode())
            with trio.fail_after(5):
                while await stream.receive_some(65536):
                    pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_stream_ends_with_the_rights_of_its_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        anna = await api.add("anna", admin=True)
        port = int(urlsplit(api.url).port or 0)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            head = f"GET /api/v1/live?topics=event HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {anna.token}\r\n\r\n"
            await stream.send_all(head.encode())
            reader = Reader(stream)
            await reader.next("reset")
            await api.ask("PATCH", "/users/anna", {"admin": False})
            with pytest.raises(EOFError):
                await reader.next("never")


async def test_no_account_takes_all_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_MOST_STREAMS", 7)
    monkeypatch.setattr(live, "_MOST_ORDINARY", 5)
    monkeypatch.setattr(live, "_MOST_OF_ONE", 3)
    async with served(tmp_path) as server, AsyncExitStack() as stack:
        admin = await server.browser()
        browsers = [admin]
        for name in ("alice", "bob"):
            await add_user(tmp_path, name, "secret")
            browsers.append(Browser(server.port))
            await browsers[-1].log_in(name, "secret")

        async def opens(browser: Browser) -> bool:
            answer = await browser.get("/api/v1/live?topics=secrets")
            assert answer.code == "invalid"
            async with await trio.open_tcp_stream("127.0.0.1", browser.port) as probe:
                await probe.send_all(request_for(browser, "server"))
                return b" 200 " in bytes(await probe.receive_some(65536)).partition(b"\r\n")[0]

        _, alice, bob = browsers
        for _ in range(3):
            await stack.enter_async_context(reading(alice, "server"))
        assert not await opens(alice)
        for _ in range(2):
            await stack.enter_async_context(reading(bob, "server"))
        assert not await opens(bob)
        for _ in range(2):
            await stack.enter_async_context(reading(admin, "server"))
        assert not await opens(admin)
        await stack.aclose()
        with trio.fail_after(5):
            while not await opens(alice):  # noqa: ASYNC110 - polls
                await trio.sleep(0.1)


async def test_what_is_kept_of_changes_is_little() -> None:
    """Only the newest has the whole look at the server, and where nobody watches there are none."""
    snapshots = 0

    class Looks:
        async def snapshot(self) -> Snapshot:
            nonlocal snapshots
            snapshots += 1
            await trio.lowlevel.checkpoint()
            return attrs.evolve(SNAPSHOT, refused={"BanAfter": snapshots})

    sampler = Sampler(Looks())  # type: ignore[arg-type]  # as much of it as is asked for
    changes = live.Live(sampler)

    async def look() -> None:
        number = changes.number
        sampler.forget()
        await sampler.look()
        with trio.fail_after(5):
            while changes.number == number:  # noqa: ASYNC110 - polls
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.run)
        await trio.testing.wait_all_tasks_blocked()
        await look()
        assert changes.since(changes.number) == []
        with sampler.watching():
            told = changes.number
            for _ in range(3):
                await look()
            ticks = changes.since(told)
            assert ticks is not None
            assert [tick.sample is not None for tick in ticks] == [False, False, True]
        await look()
        assert changes.since(told) is None  # forgotten: whoever asks fetches all anew
        assert changes.since(changes.number) == []
        nursery.cancel_scope.cancel()


async def test_of_very_many_records_the_newest_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_live, "_MOST_RECORDS", 5)
    async with served(tmp_path) as server:
        async with reading(await server.browser(), "log") as reader:
            for number in range(50):
                get_logger("trionat.test").warning("many", number=number)
            found = await reader.next("log")
            while found["event"] != "many":
                found = await reader.next("log")
            numbers = [found["keys"]["number"]]
            while numbers[-1] != 49:
                numbers.append((await reader.next("log"))["keys"]["number"])
            assert len(numbers) < 50
            assert b"event: reset" not in reader.heard.partition(b"event: log")[2]


async def test_accounts_are_told_soon_whoever_changes_them(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with (
            open_store(None, database_file(tmp_path)) as store,
            reading(browser, "users,tokens") as reader,
        ):
            await add_user(tmp_path, "alice", "secret")
            (row,) = (await reader.next("users"))["added"]
            assert (row["name"], row["limits"]["monthly_quota"]) == ("alice", None)
            await store.change_user(
                "alice", lambda user: attrs.evolve(user, limits=Limits(monthly_quota=1000))
            )
            (row,) = (await reader.next("users"))["changed"]
            assert row["limits"]["monthly_quota"] == 1000
            month = month_of(datetime.now(UTC))
            await store.add_traffic(
                Flush(server="a" * 32, number=1, month=month, amounts={"alice": 70})
            )
            (row,) = (await reader.next("users"))["changed"]
            assert row["used_this_month"] == 70
            await store.remove_user("alice")
            assert (await reader.next("users"))["removed"] == ["alice"]


async def test_what_is_changed_here_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "INTERVAL", 600.0)  # longer than a reader here waits
    async with served(tmp_path) as server:
        browser = await server.browser()
        async with reading(browser, "users,tokens") as reader:
            made = (await browser.post("/api/v1/tokens", {"name": "grafana"})).values
            (token,) = (await reader.next("tokens"))["added"]
            assert (token["name"], "token" in token) == ("grafana", False)
            await browser.post("/api/v1/users", {"name": "bob", "password": "long enough"})
            assert (await reader.next("users"))["added"][0]["name"] == "bob"
            await browser.delete(f"/api/v1/tokens/{made['id']}")
            assert (await reader.next("tokens"))["removed"] == [token["id"]]


async def test_of_accounts_others_are_told_their_own(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await add_user(tmp_path, "alice", "secret")
        alice = Browser(server.port)
        await alice.log_in("alice", "secret")
        async with reading(alice, "users,tokens") as reader:
            admin = await server.browser()
            await admin.post("/api/v1/tokens", {"name": "of-the-administrator"})
            await add_user(tmp_path, "bob", "secret")
            await alice.post("/api/v1/tokens", {"name": "mine"})
            (token,) = (await reader.next("tokens"))["added"]
            assert token["name"] == "mine"
        assert b"bob" not in reader.heard
        assert b"administrator" not in reader.heard


async def test_the_store_is_asked_once_for_all_who_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    list_users = SQLiteStore.list_users

    async def counted(store: SQLiteStore) -> list[User]:
        nonlocal asked
        asked += 1
        return await list_users(store)

    monkeypatch.setattr(SQLiteStore, "list_users", counted)
    async with served(tmp_path) as server, AsyncExitStack() as stack:
        browser = await server.browser()
        before = asked
        await trio.sleep(directory.INTERVAL)
        assert asked == before  # nobody watches
        monkeypatch.setattr(directory, "INTERVAL", 600.0)
        readers = [await stack.enter_async_context(reading(browser, "users")) for _ in range(10)]
        await browser.post("/api/v1/users", {"name": "bob", "password": "long enough"})
        for reader in readers:
            assert (await reader.next("users"))["added"][0]["name"] == "bob"
        assert asked - before == 2  # the first look, and that after the change


async def test_a_store_that_was_away_has_all_fetched_anew(tmp_path: Path) -> None:
    class Away:
        is_away = False

        async def list_users(self) -> list[User]:
            await trio.lowlevel.checkpoint()
            if self.is_away:
                raise StoreUnavailableError("away")
            return []

        async def list_tokens(self) -> list[Token]:
            await trio.lowlevel.checkpoint()
            return []

        async def used_this_month(self, names: list[str]) -> dict[str, int]:
            await trio.lowlevel.checkpoint()
            return {}

    store = Away()
    accounts = Directory(store, store)  # type: ignore[arg-type]  # as much of them as is asked for
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accounts.run)
        with accounts.watching():
            await accounts.wait_first()
            told = accounts.number
            assert accounts.since(told) == []
            for store.is_away in (True, False):
                accounts.forget()
                await trio.sleep(0.3)
            assert accounts.since(told) is None
            nursery.cancel_scope.cancel()
