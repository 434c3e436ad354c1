"""Logging in with a browser: who gets a cookie, what it is good for, and when it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.console.browsing import Browser, add_user, served
from trionat.server.console.logins import IDLE_TIME, LIFETIME, Logins
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import User

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(30)

USER = User(name="alice", password="x", ticket_salt=bytes(16), account_id=7)


async def test_the_first_user_logs_in_and_out(nothing_left: None, tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = Browser(server.port)
        assert (await browser.get("/api/v1/me")).code == "unauthorized"
        answer = await browser.log_in("trionat", server.password)
        assert answer.values == {"username": "trionat", "admin": True, "csrf": browser.csrf}
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name.startswith("__Host-trionat=")
        assert set(attributes) == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"}
        me = await browser.get("/api/v1/me")
        assert me.values == answer.values
        assert (await browser.post("/api/v1/logout")).status == 204
        assert (await browser.get("/api/v1/me")).status == 401


async def test_guesses_are_counted_as_those_of_clients_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with served(tmp_path, ban_after=3) as server:
        other = await server.browser()
        browser = Browser(server.port)
        for name in ("trionat", "nobody", "trionat"):
            assert (await browser.log_in(name, "a guess")).code == "unauthorized"
        banned = await browser.log_in("trionat", server.password)
        assert banned.code == "rate_limited"
        assert 0 < int(banned.headers["retry-after"]) <= 300
        assert (await browser.get("/api/v1/me", Authorization="Bearer x")).status == 429
        # Who is logged in goes on, and lifts it.
        (ban,) = (await other.get("/api/v1/bans")).values["items"]
        assert ban["network"] == "127.0.0.1"
        assert (await other.delete("/api/v1/bans/127.0.0.1")).status == 204
        assert (await other.get("/api/v1/bans")).values["items"] == []
        assert (await other.delete("/api/v1/bans/127.0.0.1")).code == "not_found"
        assert (await browser.log_in("trionat", server.password)).status == 200
    assert "a guess" not in caplog.text


async def test_wrong_tokens_are_counted_too(tmp_path: Path) -> None:
    async with served(tmp_path, ban_after=2) as server:
        browser = Browser(server.port)
        for _ in range(2):
            answer = await browser.get("/api/v1/me", Authorization="Bearer trn_guess")
            assert answer.code == "unauthorized"
        assert (await browser.get("/api/v1/me", Authorization="Bearer trn_guess")).status == 429


async def test_a_login_makes_a_new_cookie_and_ends_the_one_that_was_there(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        planted = Browser(server.port, cookie="__Host-trionat=chosen-by-somebody-else")
        await planted.log_in("trionat", server.password)
        assert "chosen" not in planted.cookie
        before = Browser(server.port, planted.cookie, planted.csrf)
        await planted.log_in("trionat", server.password)
        assert planted.cookie != before.cookie
        assert (await before.get("/api/v1/me")).status == 401
        assert (await planted.get("/api/v1/me")).status == 200


async def test_logins_end_with_what_they_were_made_by(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        await add_user(tmp_path, "alice", "one")
        await add_user(tmp_path, "bob", "two", admin=True)
        alice, bob = Browser(server.port), Browser(server.port)
        assert (await alice.log_in("alice", "one")).values["admin"] is False
        assert (await bob.log_in("bob", "two")).values["admin"] is True
        async with open_store(None, database_file(tmp_path)) as store:
            await store.remove_user("alice")
            await store.set_admin("bob", admin=False)
        await trio.sleep(2.1)
        assert (await alice.get("/api/v1/me")).status == 401
        assert (await bob.get("/api/v1/me")).status == 401
        assert (await bob.log_in("bob", "two")).values["admin"] is False


async def test_they_end_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    logins = Logins()
    idle, _ = logins.add(USER)
    busy, _ = logins.add(USER)
    for _ in range(int(LIFETIME / IDLE_TIME * 2) - 1):
        await trio.sleep(IDLE_TIME / 2)
        assert logins.find(busy) is not None
    assert logins.find(idle) is None
    await trio.sleep(IDLE_TIME / 2)
    assert logins.find(busy) is None
    assert logins.find("") is None


def test_there_are_not_too_many_of_them(mock_clock: trio.testing.MockClock) -> None:
    async def look() -> None:
        await trio.lowlevel.checkpoint()
        logins = Logins()
        first, _ = logins.add(USER)
        for _ in range(20):
            logins.add(USER)
        assert logins.find(first) is None
        assert len(logins._by_digest) == 20
        for number in range(1500):
            logins.add(User(name=f"u{number}", password="x", ticket_salt=bytes(16)))
        assert len(logins._by_digest) == 1000

    trio.run(look)
