"""Bearer tokens: who asks by one, what it is good for, and the calls that make and revoke them."""

from __future__ import annotations

import http.client
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import attrs
import pytest
import trio

from tests.console.browsing import Browser, served
from tests.console.serving import Api, send, serving
from trionat.server.console.problem import Problem
from trionat.server.console.rate import ChangeRate
from trionat.server.console.tokens import StoredTokens
from trionat.store.base import Limits
from trionat.store.tokens import MOST_TOKENS, TokenScope, digest_token, make_token_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mariadb import MariaDB

pytestmark = pytest.mark.limit(60)


async def test_a_token_is_its_account_s_with_what_its_scope_permits(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        assert await api.get("/me") == {"username": "trionat", "admin": True, "csrf": None}
        reader = await api.as_user("trionat", TokenScope.READ)
        assert (await reader.ask("GET", "/users")).status == 200
        for method, path, body in (
            ("POST", "/users", {"name": "x", "password": "long enough"}),
            ("DELETE", "/users/trionat/tickets", None),
            ("POST", "/tokens", {"name": "x"}),
            ("POST", "/users/trionat/kick", None),
        ):
            (await reader.ask(method, path, body)).fails(403, "forbidden")
        metrics = await api.as_user("trionat", TokenScope.METRICS)
        for path in ("/users", "/tokens", "/traffic", "/sessions"):
            (await metrics.ask("GET", path)).fails(403, "forbidden")
        assert (await api.ask("POST", "/tokens", {"name": "x"})).status == 201


async def test_a_token_that_is_void_is_told_why_and_is_no_guess(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        alice = await api.add("alice")
        for reason in ("is disabled", "has expired"):
            if reason == "is disabled":
                await api.store.set_disabled("alice", disabled=True)
            else:
                await api.store.set_expiry("alice", datetime.now(UTC))
            for _ in range(12):  # more than a guesser has
                answer = await alice.ask("GET", "/me")
                assert reason in answer.fails(401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
            await api.store.set_disabled("alice", disabled=False)
        await api.store.set_expiry("alice", None)
        assert (await alice.ask("GET", "/me")).status == 200
        soon = datetime.now(UTC) + timedelta(seconds=1)
        short = await api.as_user("alice", expires_at=soon)
        assert (await short.ask("GET", "/me")).status == 200
        await trio.sleep(1.1)
        assert (await short.ask("GET", "/me")).fails(401, "unauthorized") == "the token has expired"


async def test_wrong_tokens_are_guesses_that_end_in_a_ban(tmp_path: Path) -> None:
    async with serving(tmp_path, ban_after=3) as api:
        connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=10)

        def show(token: str) -> tuple[int, str | None]:
            """On one connection: new ones from an address that is banned are not heard."""
            connection.request("GET", "/api/v1/me", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["Retry-After"]

        with closing(connection):
            for wrong in ("", "trn_x", make_token_text()):
                assert await trio.to_thread.run_sync(show, wrong) == (401, None)
            # Not even a right one is looked at.
            status, seconds = await trio.to_thread.run_sync(show, api.token)
            assert status == 429
            assert int(seconds or 0) > 1


async def test_a_revoked_token_and_one_of_a_removed_account_are_void_at_once(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as api:
        alice, bob = await api.add("alice"), await api.add("bob")
        (token,) = await alice.items("/tokens")
        assert (await alice.ask("DELETE", f"/tokens/{token['id']}")).status == 204
        (await alice.ask("GET", "/me")).fails(401, "unauthorized")
        (await api.ask("DELETE", f"/tokens/{token['id']}")).fails(404, "not_found")
        await api.store.remove_user("bob")
        await api.add("bob")
        (await bob.ask("GET", "/me")).fails(401, "unauthorized")


async def test_a_token_is_made_shown_once_and_listed_without_its_secret(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        answer = await api.ask("POST", "/tokens", {"name": "grafana", "expires_at": "30d"})
        assert answer.status == 201
        made = answer.values
        text = made.pop("token")
        kept = await api.store.find_token(digest_token(text))
        assert kept is not None
        assert (kept.name, kept.user, kept.scope) == ("grafana", "trionat", TokenScope.READ)
        location = answer.headers["location"].removeprefix("/api/v1")
        assert await api.get(location) == made
        assert made["id"] == kept.token_id
        assert timedelta(days=29) < datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
        assert text not in (await api.ask("GET", "/tokens")).text
        mine = attrs.evolve(api, token=text)
        assert (await mine.get("/me"))["username"] == "trionat"
        assert (await api.get(location))["last_used"] is not None
        again = await api.ask("POST", "/tokens", {"name": "grafana"})
        assert again.fails(409, "conflict") == "'trionat' has a token 'grafana' already"


async def test_a_token_that_is_made_by_a_token_does_not_outlive_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.add("alice")
        now = datetime.now(UTC)
        short = await api.as_user("alice", expires_at=now + timedelta(days=1))
        for ends in (None, "30d", "never"):
            answer = await short.ask("POST", "/tokens", {"name": "more", "expires_at": ends})
            assert "may not outlive it" in answer.fails(422, "invalid", "expires_at")
        answer = await short.ask("POST", "/tokens", {"name": "less", "expires_at": "2h"})
        assert answer.status == 201


async def test_of_many_who_make_the_same_token_one_does(tmp_path: Path) -> None:
    statuses: list[int] = []

    async def make(api: Api) -> None:
        statuses.append((await api.ask("POST", "/tokens", {"name": "ci"})).status)

    async with serving(tmp_path) as api:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(make, api)
        assert sorted(statuses) == [201, 409, 409, 409]


async def test_there_are_so_many_at_most(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for _ in range(MOST_TOKENS - 1):
            await api.as_user("trionat")
        assert "revoke one" in (await api.ask("POST", "/tokens", {"name": "x"})).fails(
            409, "conflict"
        )
        page = await api.get("/tokens?limit=60")
        rest = await api.get(f"/tokens?limit=60&after={quote(page['next'])}")
        assert rest["next"] is None
        tokens = page["items"] + rest["items"]
        assert len({token["id"] for token in tokens}) == MOST_TOKENS
        names = [token["name"] for token in tokens]
        assert names == sorted(names)


async def test_an_ordinary_account_has_its_own_tokens_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        alice = await api.add("alice")
        await api.add("bob")
        tokens = await api.items("/tokens")
        assert {token["user"] for token in tokens} == {"trionat", "alice", "bob"}
        assert {token["user"] for token in await api.items("/tokens?user=bob")} == {"bob"}
        assert {token["user"] for token in await alice.items("/tokens")} == {"alice"}
        (await alice.ask("GET", "/tokens?user=bob")).fails(404, "not_found")
        for token in tokens:
            if token["user"] != "alice":
                (await alice.ask("GET", f"/tokens/{token['id']}")).fails(404, "not_found")
                (await alice.ask("DELETE", f"/tokens/{token['id']}")).fails(404, "not_found")
        (await alice.ask("POST", "/tokens", {"name": "x", "user": "bob"})).fails(404, "not_found")
        mine = (await alice.ask("POST", "/tokens", {"name": "x", "scope": "manage"})).values
        assert mine["user"] == "alice"
        # It can no more than the account.
        (await attrs.evolve(api, token=mine["token"]).ask("GET", "/bans")).fails(403, "forbidden")
        assert (await api.ask("POST", "/tokens", {"name": "y", "user": "bob"})).status == 201
        assert len(await api.items("/tokens")) == 5


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x", "scope": "all"}, "scope"),
        ({"name": "x", "expires_at": "2020-01-01"}, "expires_at"),
        ({"name": "x", "expires_at": "soon"}, "expires_at"),
        ({"name": "x", "colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_field_is_named(tmp_path: Path, body: object, field: str) -> None:
    async with serving(tmp_path) as api:
        (await api.ask("POST", "/tokens", body)).fails(422, "invalid", field)
        assert len(await api.items("/tokens")) == 1


async def test_the_use_of_a_token_is_noted_once_an_hour(tmp_path: Path) -> None:
    now = datetime(2026, 11, 29, 12, tzinfo=UTC)
    async with serving(tmp_path) as api:
        digest = digest_token(api.token)
        tokens = StoredTokens(api.store, lambda: now)

        async def last_used() -> datetime | None:
            assert await tokens.find(api.token) is not None
            found = await api.store.find_token(digest)
            assert found is not None
            return found.last_used

        first = now
        assert await last_used() == first
        now = first + timedelta(minutes=59)
        assert await last_used() == first
        now = first + timedelta(minutes=60)
        assert await last_used() == now


async def test_a_damaged_account_has_no_use_of_its_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        alice = await api.add("alice", limits=Limits(sessions=-1))
        with pytest.raises(Problem, match="is damaged"):
            await StoredTokens(api.store).find(alice.token)


async def test_a_revoked_token_is_no_guess(tmp_path: Path) -> None:
    async with serving(tmp_path, ban_after=2) as api:
        made = (await api.ask("POST", "/tokens", {"name": "grafana"})).values
        assert (await api.ask("DELETE", f"/tokens/{made['id']}")).status == 204
        headers = {"Authorization": f"Bearer {made['token']}"}
        for _ in range(3):
            assert (await api.ask("GET", "/me", **headers)).status == 401
        assert (await api.ask("GET", "/me")).status == 200


async def test_the_same_void_token_again_is_no_guess(tmp_path: Path) -> None:
    """As after a restart of the server, which does not remember that it was good once."""
    async with serving(tmp_path, ban_after=2) as api:
        headers = {"Authorization": f"Bearer {make_token_text()}"}
        for _ in range(4):
            assert (await api.ask("GET", "/me", **headers)).status == 401
        assert (await api.ask("GET", "/me")).status == 200


async def test_streams_of_a_revoked_token_end_and_are_no_guesses(tmp_path: Path) -> None:
    async with serving(tmp_path, ban_after=2) as api, trio.open_nursery() as nursery:
        made = (await api.ask("POST", "/tokens", {"name": "screen"})).values
        ended: list[int] = []

        async def watch() -> None:
            get = partial(
                send, api.url, "GET", "/api/v1/live", b"", Authorization=f"Bearer {made['token']}"
            )
            ended.append(await trio.to_thread.run_sync(get, abandon_on_cancel=True))

        for _ in range(3):
            nursery.start_soon(watch)
        with trio.fail_after(10):
            while (await api.get("/server"))["seconds"] < 1:  # noqa: ASYNC110 - polls
                await trio.sleep(0.2)
        await api.ask("DELETE", f"/tokens/{made['id']}")
        with trio.fail_after(10):
            while len(ended) < 3:  # noqa: ASYNC110 - polls
                await trio.sleep(0.1)
        assert (await api.ask("GET", "/me")).status == 200


async def test_a_store_that_is_away_takes_no_metrics_away_and_lets_nobody_change_anything(
    tmp_path: Path, mariadb: MariaDB
) -> None:
    async with serving(tmp_path, mariadb.new_database()) as api:

        async def read(token: str) -> int:
            get = partial(send, api.url, "GET", "/metrics", b"", Authorization=f"Bearer {token}")
            return await trio.to_thread.run_sync(get)

        made = (await api.ask("POST", "/tokens", {"name": "new"})).values
        assert await read(api.token) == 200
        mariadb.stop()
        try:
            assert await read(api.token) == 200
            assert await read(made["token"]) == 503  # it was never seen
            (await api.ask("POST", "/drain")).fails(503, "store_unavailable")
        finally:
            mariadb.start()


async def test_what_a_proxy_asked_for_is_no_guess(tmp_path: Path) -> None:
    async with served(tmp_path, ban_after=1) as server:
        browser = await server.browser()
        for said in ("Basic dHJpb25hdDp4", "Digest x", "x"):
            assert (await browser.get("/api/v1/me", Authorization=said)).status == 200
            assert (await Browser(server.port).get("/api/v1/me", Authorization=said)).status == 401
        assert (await browser.get("/api/v1/me")).status == 200


async def test_a_ticket_that_is_made_by_a_token_does_not_outlive_it(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    async with serving(tmp_path) as api:
        await api.add("alice")
        short = await api.as_user("alice", expires_at=now + timedelta(hours=1))
        for expires in (None, "never", "2h"):
            body = {"expires": expires}
            answer = await short.ask("POST", "/users/alice/tickets", body)
            assert "may not outlive it" in answer.fails(422, "invalid", "expires")
        soon = (now + timedelta(minutes=50)).isoformat()
        answer = await short.ask("POST", "/users/alice/tickets", {"expires": soon})
        assert answer.status == 200
        assert len(answer.values["restrictions"]) == 1


async def test_an_ordinary_account_does_not_change_things_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionat.server.console.rate._BURST", 3)
    async with serving(tmp_path) as api:
        alice, bob = await api.add("alice"), await api.add("bob")
        for _ in range(3):
            assert (await alice.ask("DELETE", "/users/alice/tickets")).status == 204
        answer = await alice.ask("DELETE", "/users/alice/tickets")
        answer.fails(429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        assert (await alice.ask("GET", "/me")).status == 200
        assert (await bob.ask("DELETE", "/users/bob/tickets")).status == 204
        for _ in range(5):
            assert (await api.ask("DELETE", "/users/alice/tickets")).status == 204


async def test_the_rate_of_changes_comes_back_with_time(autojump_clock: object) -> None:
    rate = ChangeRate()
    for _ in range(60):
        assert rate.take(1) == 0
    assert rate.take(1) == pytest.approx(10)
    await trio.sleep(4)
    assert rate.take(1) == pytest.approx(6)
    assert rate.take(2) == 0
    await trio.sleep(6)
    assert rate.take(1) == 0
    assert rate.take(1) == pytest.approx(10)
    await trio.sleep(600)
    assert [rate.take(1) for _ in range(61)][59:] == [0, pytest.approx(10)]
