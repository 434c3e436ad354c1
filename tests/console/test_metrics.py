"""Who may read `/metrics`, and what they get."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.console.browsing import Browser, ask, served
from tests.console.serving import serving
from tests.e2e import services
from tests.unit.test_exposition import samples
from trionat.store.tokens import TokenScope

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(60)


async def test_an_administrator_who_is_logged_in(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        stranger, browser = Browser(server.port), await server.browser()
        refused = await stranger.get("/metrics")
        assert (refused.status, refused.code) == (401, "unauthorized")
        answer = await browser.get("/metrics")
        assert (answer.status, answer.headers["content-type"]) == (
            200,
            "text/plain; version=0.0.4; charset=utf-8",
        )
        assert answer.headers["cache-control"] == "no-store"
        found = samples(text_string_to_metric_families(answer.body.decode()))
        assert found['trionat_visit_ports{state="free"}'] == 3
        assert found["trionat_store_up"] == 1
        answer = await browser.get(
            "/metrics", Accept="application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
        )
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")
        assert (await browser.post("/metrics")).status == 405


async def test_tokens_of_an_administrator(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        port = int(api.url.rstrip("/").rpartition(":")[2])

        async def read(token: str, path: str = "/metrics") -> int:
            answer = await ask(port, "GET", path, headers={"Authorization": f"Bearer {token}"})
            assert token not in str(answer)
            return answer.status

        for scope in TokenScope:
            token = (await api.as_user("trionat", scope)).token
            assert (scope, await read(token)) == (scope, 200)
        only_metrics = (await api.as_user("trionat", TokenScope.METRICS)).token
        assert await read(only_metrics, "/api/v1/sessions") == 403
        over = await api.as_user(
            "trionat", TokenScope.METRICS, expires_at=datetime.now(UTC) - timedelta(seconds=1)
        )
        assert await read(over.token) == 401
        assert await read("trn_" + "a" * 43) == 401
        bob = await api.add("bob")
        for scope in TokenScope:
            assert await read((await bob.as_user("bob", scope)).token) == 403
        await api.store.set_admin("bob", admin=True)
        wish = {"name": "prometheus", "scope": "metrics"}
        made = (await bob.ask("POST", "/tokens", wish)).values["token"]
        assert await read(made) == 200
        await api.store.set_admin("bob", admin=False)
        answer = await ask(port, "GET", "/metrics", headers={"Authorization": f"Bearer {made}"})
        assert answer.status == 403
        assert "the account of this token, 'bob', is none" in answer.values["detail"]
        told = (await bob.ask("POST", "/tokens", {**wish, "name": "again"})).fails(
            422, "invalid", "scope"
        )
        assert "so it is for administrators, and 'bob' is none" in told
        told = (await api.ask("POST", "/tokens", {**wish, "user": "bob"})).fails(
            422, "invalid", "scope"
        )
        assert "'bob' is none" in told


async def test_nobody_else_sees_the_bytes_of_all_users(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        done = await services.run_trionat(
            "user", "add", "bob", "--state-dir", tmp_path, stdin=b"a-password\n"
        )
        assert done.returncode == 0, done.stderr
        browser = Browser(server.port)
        assert (await browser.log_in("bob", "a-password")).status == 200
        refused = await browser.get("/metrics")
        assert (refused.status, refused.code) == (403, "forbidden")


async def test_everybody_where_it_is_open(tmp_path: Path) -> None:
    async with served(tmp_path, open_metrics=True) as server:
        answer = await ask(server.port, "GET", "/metrics")
        assert answer.status == 200
        assert b"\ntrionat_sessions 0.0\n" in answer.body
        assert (await ask(server.port, "GET", "/api/v1/server")).status == 401
        rebound = await ask(server.port, "GET", "/metrics", headers={"Host": "evil.example.org"})
        assert rebound.status == 421
