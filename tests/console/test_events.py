"""What the API says of events, and of who has changed what."""

from __future__ import annotations

import http.client
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.console.serving import Api, serving
from tests.events.receiver import receiving, status
from trionat.config.events import EventsConfig, WebhookConfig
from trionat.errors import StoreUnavailableError
from trionat.store.base import Limits
from trionat.store.sqlite import SQLiteStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(60)


async def wait_items(api: Api, path: str, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(15):
        while len(items := await api.items(path)) < count:  # noqa: ASYNC110 - it is asked
            await trio.sleep(0.1)
    return items


async def test_changes_are_events_and_in_the_audit(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        body = {"name": "ann", "password": "a long secret"}
        assert (await api.ask("POST", "/users", body)).status == 201
        assert (await api.ask("PATCH", "/users/ann", {"limits": {"sessions": 2}})).status == 200
        assert (await api.ask("DELETE", "/users/ann")).status == 204
        events = await wait_items(api, "/events", 4)
        told = [
            (each["type"], each["data"].get("user"), each["data"].get("what")) for each in events
        ]
        assert told == [
            ("account.removed", "ann", ""),
            ("account.changed", "ann", "limits"),
            ("account.added", "ann", ""),
            ("server.up", None, None),
        ]
        assert [each["number"] for each in events] == [4, 3, 2, 1]
        assert events[2]["text"] == "[Server-NAT] account ann was added by trionat (token)"
        page = await api.get("/events?limit=3")
        assert page["next"] == "2"
        assert [each["number"] for each in (await api.get("/events?after=2"))["items"]] == [1]
        changes = await wait_items(api, "/audit", 3)
        assert [(each["what"], each["target"]) for each in changes] == [
            ("account.removed", "ann"),
            ("account.changed", "ann"),
            ("account.added", "ann"),
        ]
        assert {(each["by"], each["user"], each["host"]) for each in changes} == {
            ("token", "trionat", "127.0.0.1")
        }
        assert (await api.get("/audit?limit=2"))["next"] == "2"
        assert [each["what"] for each in (await api.get("/audit?after=2"))["items"]] == [
            "account.added"
        ]
        bob = await api.add("bob")
        for method, path in (
            ("GET", "/events"),
            ("GET", "/audit"),
            ("POST", "/events/test"),
            ("GET", "/live?topics=event"),
        ):
            (await bob.ask(method, path)).fails(403, "forbidden")
    assert "a long secret" not in (tmp_path / "audit.log").read_text()


async def test_the_audit_tells_what_was_made_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.add("alice")
        await api.ask("PATCH", "/users/alice", {"admin": True})
        wish = {"name": "ci", "user": "alice", "scope": "manage"}
        made = (await api.ask("POST", "/tokens", wish)).values
        await api.ask("DELETE", f"/tokens/{made['id']}")
        await api.ask("PATCH", "/users/alice", {"limits": {"sessions": 2}, "admin": False})
        await api.ask("PUT", "/users/alice/password", {"password": "another one"})
        await api.ask("POST", "/users", {"name": "cam", "password": None})
        bare, password, limited, revoked, added, changed = await wait_items(api, "/audit", 6)
        assert (bare["target"], bare["detail"]) == ("cam", "password: none")
        assert changed["detail"] == "what: admin, admin: true"
        assert (added["target"], revoked["target"]) == ("ci", "ci")
        assert added["detail"] == f"user: alice, scope: manage, id: {made['id']}"
        assert revoked["detail"] == f"id: {made['id']}, user: alice"
        assert 'limits: {"sessions": 2}' in limited["detail"]
        assert "admin: false" in limited["detail"]
        assert password["detail"] == "what: password"
        assert password["number"] == changed["number"] + 4
    audit = (tmp_path / "audit.log").read_text()
    assert made["token"] not in audit
    assert "another one" not in audit


async def test_the_audit_has_what_has_changed_and_nothing_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.add("alice", limits=Limits(sessions=2))
        limits = {"sessions": 2, "visitors": None, "monthly_quota": 10_000, "names": None}
        change = {"limits": limits, "expires_at": None, "admin": False, "disabled": False}
        for _ in range(2):  # the second time all is so before
            assert (await api.ask("PATCH", "/users/alice", change)).status == 200
        await api.ask("PATCH", "/users/alice", {"disabled": True})
        disabled, limited = await wait_items(api, "/audit", 2)
        assert limited["detail"] == 'what: limits, limits: {"monthly_quota": 10000}'
        assert disabled["detail"] == "what: disabled, disabled: true"
        body = {"name": "bob", "password": "a long secret", **change}
        assert (await api.ask("POST", "/users", body)).status == 201
        added, *_ = await wait_items(api, "/audit", 3)
        assert added["detail"] == 'limits: {"sessions": 2, "monthly_quota": 10000}'
        events = await wait_items(api, "/events", 4)
        assert [each["data"].get("what") for each in events] == ["", "disabled", "limits", None]


async def test_what_fails_in_the_middle_is_in_the_audit_and_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailableError("away")

    async with serving(tmp_path) as api:
        await api.add("alice")
        monkeypatch.setattr(SQLiteStore, "set_password", fail)
        answer = await api.ask("PUT", "/users/alice/password", {"password": "another one"})
        answer.fails(503, "store_unavailable")
        (await api.ask("PUT", "/users/bob/password", {"password": "another one"})).fails(
            404, "not_found"
        )
        changes = await wait_items(api, "/audit", 1)
        assert (changes[0]["what"], changes[0]["target"]) == ("account.changed", "alice")
        assert changes[0]["detail"] == "what: password, unfinished: true"
        assert "account.changed" not in {each["type"] for each in await api.items("/events")}


async def test_an_account_cannot_push_out_the_audit(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        alice = await api.add("alice")
        for _ in range(40):
            assert (await alice.ask("POST", "/users/alice/tickets", {})).status == 200
        await trio.sleep(0.5)
        changes = await api.items("/audit")
        assert sum(each["what"] == "make_ticket" for each in changes) == 30


async def test_a_test_event(tmp_path: Path) -> None:
    async with receiving() as receiver, receiving(status(500)) as broken:
        webhooks = tuple(
            WebhookConfig(url=f"{each.url}?hidden", allow_private=True, secret="s")
            for each in (receiver, broken)
        )
        async with serving(tmp_path, events=EventsConfig(webhooks=webhooks)) as api:
            answer = await api.ask("POST", "/events/test")
            assert "hidden" not in answer.text
            assert [(each["taken"], each["status"]) for each in answer.values["items"]] == [
                (True, 204),
                (False, 500),
            ]
            shown = await api.get("/configuration")
            assert "hidden" not in json.dumps(shown)
    async with serving(tmp_path / "other") as api:
        assert (await api.ask("POST", "/events/test")).values == {"items": [], "next": None}


async def test_events_of_some_types(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for number in range(3):
            body = {"name": f"ann{number}", "password": "a long secret"}
            assert (await api.ask("POST", "/users", body)).status == 201
        assert (await api.ask("DELETE", "/users/ann0")).status == 204
        await wait_items(api, "/events", 5)

        async def numbers(query: str) -> list[int]:
            return [each["number"] for each in (await api.get(f"/events?{query}"))["items"]]

        assert await numbers("types=account.added") == [4, 3, 2]
        assert await numbers("types=server.*,account.removed") == [5, 1]
        assert await numbers("types=*") == [5, 4, 3, 2, 1]
        page = await api.get("/events?types=account.added&limit=2")
        assert ([each["number"] for each in page["items"]], page["next"]) == ([4, 3], "3")
        page = await api.get("/events?types=account.added&limit=2&after=3")
        assert ([each["number"] for each in page["items"]], page["next"]) == ([2], None)
        for wrong in ("nonsense", "account.added,", ""):
            detail = (await api.ask("GET", f"/events?types={wrong}")).fails(422, "invalid", "types")
            assert "is no event: known are account.added" in detail


async def test_how_webhooks_stand(tmp_path: Path) -> None:
    async with receiving() as well, receiving(status(500)) as ill, receiving(status(410)) as over:
        webhooks = tuple(
            WebhookConfig(
                url=f"{each.url}?hidden", allow_private=True, secret="hidden", types=types
            )
            for each, types in ((well, ()), (ill, ("ban", "server.up")), (over, ()))
        )
        async with serving(tmp_path, events=EventsConfig(webhooks=webhooks)) as api:
            await ill.wait(1)
            await over.wait(1)
            for number in range(2):
                body = {"name": f"ann{number}", "password": "a long secret"}
                assert (await api.ask("POST", "/users", body)).status == 201
            await well.wait(3)
            with trio.fail_after(15):
                while (await api.items("/events/webhooks"))[0]["behind"]:  # noqa: ASYNC110 - it is asked
                    await trio.sleep(0.1)
            answer = await api.ask("GET", "/events/webhooks")
            assert "hidden" not in answer.text
            rows = answer.values["items"]
            assert [(each["state"], each["behind"]) for each in rows] == [
                ("well", 0),
                ("failing", 1),  # of types that it wants
                ("stopped", 3),
            ]
            assert [each["template"] for each in rows] == ["json"] * 3
            assert rows[1]["types"] == ["ban", "server.up"]
            assert rows[1]["url"] == f"http://127.0.0.1:{ill.port}/…"
            assert [each["reason"] for each in rows] == [None, "status 500", "status 410"]
            assert rows[1]["failures"] >= 1
            assert datetime.fromisoformat(rows[1]["next_try"]) > datetime.now(UTC) - timedelta(
                seconds=15
            )
            assert [rows[0]["next_try"], rows[2]["next_try"]] == [None, None]
            bob = await api.add("bob")
            (await bob.ask("GET", "/events/webhooks")).fails(403, "forbidden")
    async with serving(tmp_path / "other") as api:
        assert await api.items("/events/webhooks") == []


async def test_events_are_told_live(tmp_path: Path) -> None:
    def read(api: Api, opened: trio.Event, token: trio.lowlevel.TrioToken) -> list[Any]:
        connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=15)
        connection.request(
            "GET", "/api/v1/live?topics=event", headers={"Authorization": f"Bearer {api.token}"}
        )
        response, found = connection.getresponse(), list[Any]()
        while len(found) < 2:
            line = response.readline()
            if line == b"event: reset\n":
                trio.from_thread.run_sync(opened.set, trio_token=token)
            if line == b"event: event\n":
                found.append(json.loads(response.readline().removeprefix(b"data: ")))
        connection.close()
        return found

    async with serving(tmp_path) as api:
        opened = trio.Event()
        found: list[Any] = []

        async def listen() -> None:
            job = partial(read, api, opened, trio.lowlevel.current_trio_token())
            found.extend(await trio.to_thread.run_sync(job))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await opened.wait()
            await api.ask("POST", "/users", {"name": "ann", "password": "a long secret"})
            await api.ask("DELETE", "/users/ann")
    assert [(each["type"], each["number"]) for each in found] == [
        ("account.added", 2),
        ("account.removed", 3),
    ]
