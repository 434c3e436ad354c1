"""What the API shows of a server that is at work, and does to it."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.console.browsing import Browser, add_user, ask, connected, served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(40)


async def items(browser: Browser, path: str) -> list[dict[str, Any]]:
    answer = await browser.get(path)
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.values["items"]
    return found


async def wait_for(browser: Browser, path: str, count: int) -> list[dict[str, Any]]:
    with trio.fail_after(10):
        while len(found := await items(browser, path)) != count:  # noqa: ASYNC110 - polls
            await trio.sleep(0.1)
    return found


async def test_sessions_and_visitors_are_seen_and_sent_away(
    nothing_left: None, tmp_path: Path
) -> None:
    async with (
        served(tmp_path / "server") as server,
        connected(server, folder=tmp_path / "client") as port,
    ):
        browser = await server.browser()
        (session,) = await wait_for(browser, "/api/v1/sessions", 1)
        assert session["user"] == "trionat"
        assert session["services"][0]["port"] == port
        (held, *free) = await items(browser, "/api/v1/points")
        points = {point["point"]: point["state"] for point in (held, *free)}
        assert points == {each: "held" if each == port else "free" for each in points}
        async with (
            await trio.open_tcp_stream("127.0.0.1", port) as kept,
            await trio.open_tcp_stream("127.0.0.1", port) as kicked,
        ):
            for stream in (kept, kicked):
                await stream.send_all(b"hello")
                assert await stream.receive_some(5) == b"hello"
            two = await wait_for(browser, "/api/v1/visitors", 2)
            assert {each["session"] for each in two} == {session["uid"]}
            ours = kicked.socket.getsockname()
            (number,) = (
                each["number"] for each in two if each["address"] == f"{ours[0]}:{ours[1]}"
            )
            assert (await browser.delete(f"/api/v1/visitors/{number}")).status == 204
            with pytest.raises(trio.BrokenResourceError):
                while await kicked.receive_some(1):
                    pass
            assert (await browser.delete(f"/api/v1/visitors/{number}")).code == "not_found"
            row = (await browser.get(f"/api/v1/sessions/{session['uid']}")).values
            assert (row["visitor_count"], row["uid"]) == (1, session["uid"])
            assert await items(browser, "/api/v1/visitors?session=999") == []
            server_row = (await browser.get("/api/v1/server")).values
            assert (server_row["sessions"], server_row["visitors"]) == (1, 1)
            assert server_row["whole"]["health"] == {"store": "ok", "redis": None}
            assert (await browser.delete(f"/api/v1/sessions/{session['uid']}")).status == 204
            assert await items(browser, "/api/v1/sessions") == []
            assert (await browser.delete(f"/api/v1/sessions/{session['uid']}")).status == 404


async def test_who_is_no_administrator_sees_his_own(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "server") as server,
        connected(server, folder=tmp_path / "a") as first,
    ):
        admin = await server.browser()
        await add_user(tmp_path / "server", "alice", "secret")
        async with connected(server, "alice", "secret", folder=tmp_path / "b") as port:
            alice = Browser(server.port)
            assert (await alice.log_in("alice", "secret")).status == 200
            both = await wait_for(admin, "/api/v1/sessions", 2)
            (own,) = await items(alice, "/api/v1/sessions")
            assert own["user"] == "alice"
            (theirs,) = (each["uid"] for each in both if each["user"] == "trionat")
            assert (await alice.get(f"/api/v1/sessions/{theirs}")).code == "not_found"
            assert (await alice.delete(f"/api/v1/sessions/{theirs}")).code == "not_found"
            async with await trio.open_tcp_stream("127.0.0.1", first):
                (visitor,) = await wait_for(admin, "/api/v1/visitors", 1)
                assert await items(alice, "/api/v1/visitors") == []
                answer = await alice.delete(f"/api/v1/visitors/{visitor['number']}")
                assert answer.code == "not_found"
            points = await items(alice, "/api/v1/points")
            assert [(each["point"], each["user"]) for each in points] == [(port, "alice")]
            status = (await alice.get("/api/v1/status")).values
            assert [each["user"] for each in status["sessions"]] == ["alice"]
            assert (status["server"]["ports_free"], status["server"]["ports_held"]) == (None, None)
            assert (await admin.get("/api/v1/status")).values["server"]["ports_held"] == 2
            shown = (await alice.get("/api/v1/server")).values
            assert (shown["sessions"], shown["whole"]) == (1, None)
            assert await items(alice, "/api/v1/queue") == []
            for path in (
                *("bans", "certificates", "nodes", "configuration", "log", "history", "drain"),
                "live?topics=log",
            ):
                assert (await alice.get(f"/api/v1/{path}")).code == "forbidden"
            assert (await alice.post("/api/v1/drain")).code == "forbidden"
            assert (await alice.delete("/api/v1/bans/192.0.2.7")).code == "forbidden"
            assert (await alice.delete(f"/api/v1/sessions/{own['uid']}")).status == 204
            await wait_for(admin, "/api/v1/sessions", 1)


async def test_who_waits_is_shown_to_whose_it_is(tmp_path: Path) -> None:
    async def wait_in_queue(*who: str, folder: Path) -> None:
        async with connected(server, *who, folder=folder):
            pass

    async with served(tmp_path / "server", visit_port=(0,)) as server:
        admin, alice = await server.browser(), Browser(server.port)
        await add_user(tmp_path / "server", "alice", "secret")
        assert (await alice.log_in("alice", "secret")).status == 200
        async with (
            connected(server, folder=tmp_path / "a") as port,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(partial(wait_in_queue, folder=tmp_path / "b"))
            nursery.start_soon(partial(wait_in_queue, "alice", "secret", folder=tmp_path / "c"))
            waiting = await wait_for(admin, "/api/v1/queue", 2)
            assert sorted(each["user"] for each in waiting) == ["alice", "trionat"]
            (own,) = await items(alice, "/api/v1/queue")
            assert own in [{**each, "seconds": own["seconds"]} for each in waiting]
            assert own["user"] == "alice"
            nursery.cancel_scope.cancel()
        (kept,) = await wait_for(admin, "/api/v1/reserved", 1)
        assert (kept["user"], kept["ports"]) == ("trionat", [port])
        assert await items(alice, "/api/v1/reserved") == []
        assert await items(alice, "/api/v1/points") == []


async def test_lists_come_in_pages(tmp_path: Path) -> None:
    async with served(tmp_path, visit_port=(0,) * 7) as server:
        browser = await server.browser()
        found: list[int] = []
        after = ""
        while True:
            page = (await browser.get(f"/api/v1/points?limit=3{after}")).values
            found += [each["point"] for each in page["items"]]
            if page["next"] is None:
                break
            after = f"&after={page['next'].replace(' ', '%20')}"
        assert found == sorted(server.ready.visit_ports)
        for wrong in ("limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "colour=red"):
            answer = await browser.get(f"/api/v1/points?{wrong}")
            assert answer.code == "invalid"
            assert answer.values["field"] in {"limit", "colour"}


async def test_the_configuration_shows_no_secret(tmp_path: Path) -> None:
    async with served(tmp_path, ban_after=7) as server:
        browser = await server.browser()
        rows = {each["key"]: each for each in await items(browser, "/api/v1/configuration")}
        assert rows["BanAfter"]["value"] == "7"
        assert (rows["BanAfter"]["source"], rows["BanTime"]["source"]) == ("program", "default")
        assert rows["LogFilename"]["value"].endswith("server.log")


async def test_numbers_of_the_configuration_have_units(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        rows = await items(await server.browser(), "/api/v1/configuration")
    found = {f"{row['section']}.{row['key']}": (row["value"], row["unit"]) for row in rows}
    assert found["Server.BanTime"] == ("300", "s")
    assert found["Server.MaxServices"] == ("16", None)
    assert found["Server.Name"][1] is None
    assert found["Events."] == ("nobody", None)  # the section is a list, and its key has no name


async def test_the_log_is_there_without_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with served(tmp_path) as server:
        browser = await server.browser()
        evil = Browser(server.port)
        await evil.log_in('<script>alert(1)</script>\x1b[31m"\n', "a-password")
        rows = await items(browser, "/api/v1/log")
        assert [each["number"] for each in rows] == sorted(
            (each["number"] for each in rows), reverse=True
        )
        newest = next(row for row in rows if row["event"] == "a login at the console has failed")
        assert newest["keys"]["user"] == '<script>alert(1)</script>\x1b[31m"\n'
        text = (await browser.get("/api/v1/log")).body
        assert b"a-password" not in text
        assert server.password.encode() not in text
        found = await items(browser, "/api/v1/log?contains=SCRIPT&limit=5")
        assert [each["event"] for each in found] == ["a login at the console has failed"]
        assert await items(browser, "/api/v1/log?level=error") == []


async def test_health_is_open(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        answer = await ask(server.port, "GET", "/healthz")
        assert (answer.status, answer.values) == (200, {"status": "ok"})


async def test_the_last_hour_has_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trionat.server.console.sampler.HISTORY_INTERVAL", 0.6)
    async with (
        served(tmp_path / "server") as server,
        connected(server, folder=tmp_path / "c") as port,
    ):
        browser = await server.browser()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(bytes(100_000))
            with trio.fail_after(10):
                while True:
                    points = (await browser.get("/api/v1/history")).values["points"]
                    if any(each["received"] and each["sent"] for each in points):
                        break
                    await trio.sleep(0.2)


async def test_a_bug_in_the_console_ends_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_errors: list[logging.LogRecord],
) -> None:
    monkeypatch.setattr("trionat.server.console.console._FIRST_WAIT", 0.1)
    from trionat.server.console.sampler import Sampler  # noqa: PLC0415

    run = Sampler.run
    broken = trio.Event()

    async def fail(self: Sampler) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, self)
            await broken.wait()
            raise RuntimeError("a bug of the console's")

    monkeypatch.setattr(Sampler, "run", fail)
    async with (
        served(tmp_path / "server") as server,
        connected(server, folder=tmp_path / "client") as port,
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        browser = await server.browser()
        await stream.send_all(b"before")
        assert await stream.receive_some(6) == b"before"
        broken.set()
        monkeypatch.setattr(Sampler, "run", run)
        with trio.fail_after(5):
            while "starts anew" not in caplog.text:  # noqa: ASYNC110 - polls
                await trio.sleep(0.05)
        await stream.send_all(b"after")
        assert await stream.receive_some(5) == b"after"
        with trio.fail_after(10):
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    answer = await browser.get("/api/v1/me")
                    assert answer.status == 200  # the logins are still there
                    break
                await trio.sleep(0.1)
    assert "a bug of the console's" in caplog.text
    assert expected_errors


async def test_a_bug_in_a_handler_costs_its_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_errors: list[logging.LogRecord],
) -> None:
    from trionat.server.console.health import Health  # noqa: PLC0415

    async def fail(_: Health) -> bool:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug of the handler's")

    async with served(tmp_path) as server:
        monkeypatch.setattr(Health, "store_answers", fail)
        answer = await ask(server.port, "GET", "/healthz")
        assert answer.code == "internal"
        assert b"handler" not in answer.body
        assert (await ask(server.port, "GET", "/api/v1/openapi.json")).status == 200
    assert "a bug of the handler's" in caplog.text
    assert expected_errors


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_planned_stop_is_seen_and_waits_for_no_browser(
    tmp_path: Path, workers: int
) -> None:
    keys: dict[str, Any] = {"drain_grace": 20.0, "workers": workers, "open_metrics": True}
    async with (
        served(tmp_path / "server", **keys) as server,
        connected(server, folder=tmp_path / "client") as port,
        await trio.open_tcp_stream("127.0.0.1", server.port) as stream,
    ):
        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            await visitor.send_all(b"here")
            assert await visitor.receive_some(4) == b"here"
            browser = await server.browser()
            head = f"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\nCookie: {browser.cookie}\r\nX-CSRF-Token: {browser.csrf}\r\n\r\n"
            await stream.send_all(head.encode())
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
            server.stopping.set()
            with trio.fail_after(10):
                while not (await browser.get("/api/v1/server")).values["stopping"]:  # noqa: ASYNC110 - samples are a second old
                    await trio.sleep(0.1)
                while b"trionat_draining 1" not in (await browser.get("/metrics")).body:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert (await ask(server.port, "GET", "/healthz")).status == 200
            await visitor.send_all(b"stay")  # who visits may finish
            assert await visitor.receive_some(4) == b"stay"
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while await stream.receive_some(65536):
                pass
        # Streams end before what listens is closed.
        with trio.fail_after(10), suppress(OSError):
            while True:
                late = await trio.open_tcp_stream("127.0.0.1", server.port)
                await late.aclose()
                await trio.sleep(0.05)


async def test_without_accounts_there_is_no_console(tmp_path: Path) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(Exception, match="StartAuth: false"), flatten_subgroups=True
    ):
        async with served(tmp_path, start_auth=False):
            pass


async def test_other_addresses_have_tls(tmp_path: Path) -> None:
    import ssl  # noqa: PLC0415

    from trionat.address import TCPAddress  # noqa: PLC0415

    async with served(tmp_path, console_addr=TCPAddress("0.0.0.0", 0)) as server:
        assert server.ready.console is not None
        assert server.ready.console.startswith("https://")
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        transport = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with trio.SSLStream(
            transport, context, server_hostname="localhost", https_compatible=True
        ) as stream:
            await stream.send_all(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            heard = b""
            while piece := await stream.receive_some(65536):
                heard += piece
            assert heard.startswith(b"HTTP/1.1 200")
        plain = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with plain:
            await plain.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            heard = b""
            try:
                while piece := await plain.receive_some(100):
                    heard += piece
            except trio.BrokenResourceError:
                pass
            assert b"200" not in heard


async def test_what_is_changed_is_told_without_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with served(tmp_path) as server:
        browser = await server.browser()
        added = await browser.post("/api/v1/users", {"name": "alice", "password": "a-secret"})
        assert added.status == 201
        assert (await browser.delete("/api/v1/users/alice")).status == 204
    told = [record.getMessage() for record in caplog.records]
    (line,) = (text for text in told if "what=add_user" in text)
    assert "by=trionat" in line
    assert "alice" in line
    assert any("what=remove_user" in text and "alice" in text for text in told)
    assert "a-secret" not in caplog.text
