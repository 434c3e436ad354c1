"""The console in a real browser, at a real server: what people do there, what they see, and what must not happen to them."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from tests.browser.neighbour import ATTACK, neighbour
from tests.browser.window import Window, open_window
from tests.e2e import running, services
from tests.events.receiver import receiving, status
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import Flush
from trionat.store.month import month_of

pytest.importorskip("playwright")
pytest.importorskip("anycorn")

from playwright.sync_api import Dialog, Locator, Page, Route, expect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.e2e.running import Server

pytestmark = [pytest.mark.slow, pytest.mark.limit(180)]

FOR_EVERYBODY = ["overview", "sessions", "visitors", "points", "traffic", "tokens", "account"]
FOR_ADMINS = [
    "users",
    "bans",
    "events",
    "audit",
    "certificates",
    "nodes",
    "configuration",
    "log",
]
SCREENS = FOR_EVERYBODY + FOR_ADMINS
ADMIN, PASSWORD = "boss", "a long password of the administrator"

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TURNED = "a\u202eb\x1b[31mc\u200bd"
SHOWN = "a⟪U+202E⟫b␛[31mc⟪U+200B⟫d"
MANY = 5000


@attrs.frozen
class Scene:
    """A server with a console, and a window that shows it."""

    server: Server
    window: Window
    url: str

    async def log_in(self, name: str = ADMIN, password: str = PASSWORD) -> None:
        await self.window.do(partial(log_in, url=self.url, name=name, password=password))


@asynccontextmanager
async def scene(folder: Path, *flags: str, **options: Any) -> AsyncIterator[Scene]:
    async with console_server(folder, *flags) as (server, url), open_window(**options) as window:
        yield Scene(server, window, url)


@asynccontextmanager
async def console_server(
    folder: Path, *flags: str, address: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Server, str]]:
    async with running.server(folder, "--console-addr", address, *flags) as server:
        if address.endswith(":0"):
            await account(server, "add", ADMIN, password=PASSWORD)
            await account(server, "admin", ADMIN, "on")
        yield server, server.ready["console"]


async def account(server: Server, *command: str, password: str = "") -> None:
    await trio.run_process(
        [sys.executable, "-m", "trionat", "user", *command, "--state-dir", str(server.state)],
        stdin=f"{password}\n".encode(),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )


def log_in(page: Page, *, url: str, name: str, password: str) -> None:
    page.goto(url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()


def show(page: Page, screen: str) -> None:
    page.evaluate("screen => { location.hash = `#/${screen}` }", screen)
    expect(page.locator(f".menu a[href='#/{screen}'][aria-current]")).to_be_attached()
    expect(page.locator("main .waiting")).to_have_count(0)


def show_all(page: Page) -> None:
    """Ask for older ones until there are none."""
    older = page.get_by_role("button", name="Show older ones")
    for shown in range(1000, MANY, 1000):
        expect(page.locator(".count")).to_have_text(f"Rows: {shown:,}")
        older.click()
    expect(older).to_have_count(0)


def rows(page: Page | Locator) -> Any:
    return page.locator("tr[data-row]")


async def test_who_may_log_in_does_and_nobody_else(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:

        def attempt(page: Page) -> None:
            page.goto(here.url)
            expect(page.get_by_label("Name")).to_be_focused()
            page.get_by_label("Name").fill(ADMIN)
            page.get_by_label("Password").fill("wrong")
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()

        def log_out(page: Page) -> None:
            assert page.title() == "Overview · trionat"
            page.reload()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            page.get_by_role("button", name="Log out").first.click()
            expect(page.get_by_label("Password")).to_be_visible()
            expect(page.get_by_text("You have logged out.")).to_be_visible()
            expect(page.get_by_text("Your login has ended.")).to_have_count(0)
            page.goto(f"{here.url}#/users")
            expect(page.get_by_label("Password")).to_be_visible()
            assert page.evaluate("document.cookie") == ""

        await here.window.do(attempt)
        await here.log_in()
        await here.window.do(log_out)


async def test_another_port_of_this_machine_is_nobody(tmp_path: Path) -> None:
    """It gets the cookie, as all ports of a host do, and that is not enough."""
    async with neighbour() as other, scene(tmp_path) as here:
        await here.log_in()

        def act(page: Page) -> list[str]:
            stranger = page.context.new_page()
            stranger.goto(f"http://127.0.0.1:{other.port}/")
            assert stranger.evaluate("document.cookie") == ""
            assert stranger.evaluate("Object.keys(localStorage).length") == 0
            paths = ("api/v1/me", "api/v1/drain", "api/v1/live?topics=server", "api/v1/users/boss")
            return [each for path in paths for each in stranger.evaluate(ATTACK, [here.url, path])]

        assert await here.window.do(act) == []
        found = re.search(r"(?im)^cookie: *(__Host-trionat=[^;\r\n]+)", other.heard.decode())
        assert found is not None, "then the proof besides it is of no use any more"
        cookie = found[1]

        def use(page: Page) -> list[int]:
            ask = page.context.request
            headers = {"Cookie": cookie}
            paths = ("api/v1/me", "api/v1/users", "metrics")
            return [ask.get(here.url + path, headers=headers).status for path in paths]

        assert await here.window.do(use) == [401, 401, 401]
        here.window.complaints.clear()  # of what was refused to the other page
        await here.window.do(lambda page: page.reload())
        await here.window.do(
            lambda page: expect(
                page.get_by_role("heading", name="Overview", level=1)
            ).to_be_visible()
        )


async def test_each_screen_where_there_is_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.log_in()

        def look(page: Page) -> None:
            for screen in SCREENS:
                show(page, screen)
                expect(page.locator("main h1")).to_have_count(1)
                expect(page.get_by_text("This could not be fetched")).to_have_count(0)
            for screen, words in (
                ("sessions", "No client is connected"),
                ("visitors", "Nobody is visiting"),
                ("tokens", "There are no tokens"),
                ("traffic", "There is no traffic yet"),
                ("bans", "Nobody is banned"),
                ("nodes", "This server is alone"),
            ):
                show(page, screen)
                expect(page.locator("main")).to_contain_text(words)
            # What to do next is said with the very command.
            show(page, "sessions")
            expect(page.locator("main code")).to_have_text("trionat connect TICKET 8080")
            show(page, "points")
            for words in ("No client waits", "Nothing is kept for a lost client"):
                expect(page.get_by_text(words)).to_be_visible()
            # Of these there is always something at a server that somebody has logged in to.
            fill(here.window, 0, "")
            for screen, words in (
                ("events", "Nothing has happened yet"),
                ("audit", "trionat user add NAME"),
            ):
                show(page, screen)
                expect(page.locator("main")).to_contain_text(words)

        await here.window.do(look)


def see_bytes(page: Page, *, amount: str) -> None:
    expect(page.locator("td[data-title=Bytes]")).to_have_text(amount)


async def test_bytes_rise_and_a_client_is_kicked(tmp_path: Path) -> None:
    async with (
        scene(tmp_path) as here,
        services.echo() as echo,
        running.client(tmp_path / "client", here.server.ticket, str(echo)) as client,
    ):
        await here.log_in()
        visitor = await client.visit()

        def watch(page: Page) -> None:
            show(page, "visitors")
            expect(rows(page)).to_have_count(1)
            expect(rows(page)).to_contain_text("served")
            show(page, "sessions")
            expect(rows(page)).to_have_count(1)

        await here.window.do(watch)
        for shown in ("1.0 MB", "2.0 MB", "3.0 MB"):
            await visitor.send_all(bytes(500_000))
            left = 500_000
            while left:
                left -= len(await visitor.receive_some(65536))
            await here.window.do(partial(see_bytes, amount=shown))

        def end_visit(page: Page) -> None:
            page.locator("td[data-title=Visitors] a").click()
            expect(rows(page)).to_have_count(1)
            page.get_by_role("button", name="End the visit").click()
            page.get_by_role("dialog").get_by_role("button", name="End", exact=True).click()
            expect(page.get_by_text("Nobody is visiting")).to_be_visible()

        await here.window.do(end_visit)
        with pytest.raises(trio.BrokenResourceError):
            await visitor.receive_some(1)
        await visitor.aclose()

        def kick(page: Page) -> None:
            show(page, "sessions")
            page.get_by_role("button", name="Kick").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text("somebody has to start it again")
            dialog.get_by_role("button", name="Kick", exact=True).click()
            expect(page.get_by_text("No client is connected")).to_be_visible()

        await here.window.do(kick)
        assert await client.wait() != 0


async def test_an_account_from_its_first_day_to_its_last(tmp_path: Path) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    async with scene(tmp_path, permissions=permissions) as here:
        await here.log_in()

        def add(page: Page) -> str:
            show(page, "users")
            page.get_by_role("button", name="Add a user").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Name").fill("anna")
            for password, again, reason in (
                ("short", "short", "too short: at least 8 characters"),
                ("a long password of hers", "another one", "not the same"),
            ):
                dialog.get_by_label("Password", exact=True).fill(password)
                dialog.get_by_label("New password again").fill(again)
                dialog.get_by_role("button", name="Add").click()
                expect(dialog.get_by_role("alert")).to_contain_text(reason)
            dialog.get_by_label("New password again").fill("a long password of hers")
            dialog.get_by_role("button", name="Add").click()
            # Its ticket is what one wants next.
            expect(dialog).to_contain_text("Ticket of anna")
            dialog.get_by_role("button", name="Show the ticket").click()
            expect(dialog.get_by_role("img", name="QR code of the ticket")).to_be_visible()
            dialog.get_by_role("button", name="Copy the ticket").click()
            expect(dialog.get_by_text("Copied")).to_be_visible()
            ticket = page.evaluate("navigator.clipboard.readText()")
            assert ticket == dialog.get_by_label("Ticket", exact=True).input_value()
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
            return str(ticket)

        def add_without_password(page: Page) -> None:
            page.get_by_role("button", name="Add a user").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Name").fill("camera")
            dialog.get_by_label("No password").check()
            expect(dialog.get_by_label("Password", exact=True)).to_have_count(0)
            dialog.get_by_role("button", name="Add").click()
            expect(dialog).to_contain_text("Ticket of camera")
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
            marked = rows(page).filter(has_text="no password")
            expect(marked).to_have_count(1)
            expect(marked).to_contain_text("camera")

        def narrow(page: Page) -> str:
            page.get_by_role("button", name="Ticket of anna").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_text("Make one that is good for less").click()
            dialog.get_by_label("Only these ports").fill("nonsense")
            dialog.get_by_role("button", name="Show the ticket").click()
            expect(dialog.get_by_role("alert")).to_contain_text("60000-60009,60020")
            dialog.get_by_label("Only these ports").fill("60000-60003")
            dialog.get_by_role("button", name="Show the ticket").click()
            expect(dialog).to_contain_text("good for this alone")
            expect(dialog).to_contain_text("No names · Only the ports 60000-60003")
            narrowed = dialog.get_by_label("Ticket", exact=True).input_value()
            dialog.get_by_role("button", name="Done").click()
            return str(narrowed)

        def limit(page: Page) -> None:
            page.get_by_role("button", name="anna", exact=True).click()
            page.get_by_role("dialog").get_by_role("button", name="Limits and expiry").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Monthly quota").fill("many")
            dialog.get_by_role("button", name="Save").click()
            expect(dialog.get_by_role("alert")).to_contain_text("“many” is no amount")
            dialog.get_by_label("Monthly quota").fill("100G")
            dialog.get_by_label("Sessions at once").fill("2")
            dialog.get_by_label("Account ends").fill("2999-01-31T12:00")
            dialog.get_by_role("button", name="Save").click()
            row = rows(page).filter(has_text="anna")
            expect(row).to_contain_text("2 sessions")
            expect(row).to_contain_text("100.0 GB a month")
            expect(row).to_contain_text("2999")
            expect(row.get_by_role("meter")).to_have_attribute("aria-valuetext", "0 B / 100.0 GB")

        def disable(page: Page) -> None:
            page.get_by_role("button", name="Disable anna").click()
            expect(rows(page).filter(has_text="anna")).to_contain_text("disabled")
            page.get_by_role("button", name="Enable anna").click()
            expect(rows(page).filter(has_text="anna")).to_contain_text("active")

        def remove(page: Page) -> None:
            page.get_by_role("button", name="anna", exact=True).click()
            page.get_by_role("dialog").get_by_role("button", name="Remove").click()
            page.get_by_role("dialog").get_by_role("button", name="Remove").click()
            expect(rows(page)).to_have_count(2)

        def see_client_of_anna(page: Page) -> None:
            show(page, "sessions")
            expect(rows(page)).to_contain_text("anna")
            show(page, "users")

        ticket = await here.window.do(add)
        narrowed = await here.window.do(narrow)
        assert narrowed != ticket
        async with (
            services.echo() as echo,
            running.client(tmp_path / "client", ticket, str(echo)),
        ):
            await here.window.do(see_client_of_anna)
        await here.window.do(limit)
        await here.window.do(disable)
        await here.window.do(remove)
        await here.window.do(add_without_password)


async def test_what_is_changed_elsewhere_is_seen_soon(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.log_in()

        def open_users(page: Page) -> None:
            show(page, "users")
            expect(rows(page)).to_have_count(2)
            # Nobody takes his own rights away.
            expect(page.get_by_role("button", name="Disable trionat")).to_have_count(1)
            expect(page.get_by_role("button", name=f"Disable {ADMIN}")).to_have_count(0)
            page.get_by_role("button", name=ADMIN, exact=True).click()
            dialog = page.get_by_role("dialog")
            for name in ("Disable", "Remove"):
                expect(dialog.get_by_role("button", name=name)).to_have_count(0)
            dialog.get_by_role("button", name="Limits and expiry").click()
            expect(dialog.get_by_label("Administrator")).to_have_count(0)
            page.keyboard.press("Escape")

        def see_anna(page: Page) -> None:
            row = rows(page).filter(has_text="anna")
            expect(row).to_contain_text("active", timeout=6000)
            page.get_by_role("button", name="anna", exact=True).click()
            page.get_by_role("dialog").get_by_role("button", name="Limits and expiry").click()
            page.get_by_role("dialog").get_by_label("Sessions at once").fill("3")

        def see_what_was_typed(page: Page) -> None:
            row = rows(page).filter(has_text="anna")
            expect(row).to_contain_text("1.0 kB a month", timeout=6000)
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_label("Sessions at once")).to_have_value("3")
            dialog.get_by_role("button", name="Save").click()
            expect(row).to_contain_text("3 sessions")
            expect(row).to_contain_text("1.0 kB a month")  # which this form has not seen

        def see_that_it_is_used_up(page: Page) -> None:
            row = rows(page).filter(has_text="anna")
            expect(row).to_contain_text("quota used up", timeout=6000)
            expect(row.get_by_role("meter")).to_have_attribute("aria-valuetext", "2.0 kB / 1.0 kB")

        await here.window.do(open_users)
        await account(here.server, "add", "anna", password="a long password of hers")
        await here.window.do(see_anna)
        await account(here.server, "limit", "anna", "--quota", "1k")
        await here.window.do(see_what_was_typed)
        async with open_store(None, database_file(here.server.state)) as store:
            month = month_of(datetime.now(UTC))
            await store.add_traffic(
                Flush(server="a" * 32, number=1, month=month, amounts={"anna": 2000})
            )
        await here.window.do(see_that_it_is_used_up)
        audit = (here.server.state / "audit.log").read_text()
        assert '"details":{"what":"limits","limits":{"sessions":3}}' in audit


async def test_where_a_service_is_reached(tmp_path: Path) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    async with (
        scene(tmp_path, permissions=permissions) as here,
        services.echo() as echo,
        running.client(tmp_path / "client", here.server.ticket, str(echo)) as client,
        await client.visit(),
    ):
        await here.log_in()
        host = here.server.ready["public"].rpartition(":")[0]
        address = f"{host}:{client.port()}"

        def look(page: Page) -> None:
            show(page, "points")
            row = rows(page).filter(has_text="in use")
            expect(row).to_contain_text(address)
            row.get_by_role("button", name=f"Copy {address}").click()
            expect(row.get_by_text("Copied")).to_be_visible()
            assert page.evaluate("navigator.clipboard.readText()") == address
            show(page, "sessions")
            expect(page.locator("td[data-title=UID]")).to_have_text("1")
            rows(page).locator("button.link").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text(address)
            expect(dialog.get_by_role("button", name=f"Copy {address}")).to_be_visible()
            page.keyboard.press("Escape")
            # A visitor that says nothing is there for longer and longer all the same.
            show(page, "visitors")
            shown = page.locator("td[data-title=For]").inner_text()
            expect(page.locator("td[data-title=For]")).not_to_have_text(shown, timeout=2500)

        await here.window.do(look)


async def test_an_administrator_makes_a_token_for_somebody_else(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await account(here.server, "add", "anna", password="a long password of hers")
        await here.log_in()

        def make(page: Page) -> None:
            show(page, "tokens")
            page.get_by_role("button", name="Make a token").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Name").fill("backup")
            expect(dialog.get_by_label("For the user")).to_have_value(ADMIN)
            dialog.get_by_label("For the user").fill("anna")
            dialog.get_by_role("button", name="Make").click()
            expect(dialog).to_contain_text("The new token")
            page.keyboard.press("Escape")
            expect(rows(page)).to_contain_text("anna")

        await here.window.do(make)


async def test_a_token_is_shown_once(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.log_in()

        def make(page: Page) -> None:
            show(page, "tokens")
            page.get_by_role("button", name="Make a token").click()
            page.get_by_role("dialog").get_by_label("Name").fill("grafana")
            page.get_by_role("dialog").get_by_role("button", name="Make").click()
            dialog = page.get_by_role("dialog")
            token = dialog.get_by_label("Token", exact=True).input_value()
            assert re.fullmatch(r"trn_\S{20,}", token)
            answer = page.context.request.get(
                f"{here.url}api/v1/sessions", headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status == 200
            dialog.get_by_role("button", name="Done").click()
            expect(rows(page)).to_contain_text("grafana")
            assert token not in page.content()
            page.get_by_role("button", name="Revoke grafana").click()
            page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
            expect(page.get_by_text("There are no tokens")).to_be_visible()

        await here.window.do(make)


async def test_events_as_they_happen(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, services.echo() as echo:
        await here.log_in()

        def open_events(page: Page) -> None:
            show(page, "events")
            expect(rows(page).last).to_contain_text("takes clients at 127.0.0.1")

        def see_client(page: Page) -> None:
            row = rows(page).filter(has_text="Client is up")
            expect(row).to_have_count(1)
            expect(row).to_contain_text(f"{HOSTILE} of trionat is up at ")
            assert page.locator("main img, main script").count() == 0
            row.get_by_role("button", name="Client is up").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text("session.up")
            page.keyboard.press("Escape")

        def see_change(page: Page) -> None:
            kind = page.get_by_label("Event", exact=True)
            kind.select_option("Account added")
            expect(rows(page)).to_have_count(2)
            expect(rows(page).first).to_contain_text("carla was added by ")
            kind.select_option("Bans: all")
            expect(page.get_by_text("Nothing matches the filter.")).to_be_visible()
            page.get_by_role("button", name="All events").click()
            expect(rows(page).first).to_contain_text("carla")
            page.get_by_label("Language").first.select_option("zh")
            expect(rows(page).first).to_contain_text("添加了 carla")
            page.get_by_label("语言").first.select_option("en")
            expect(rows(page).first).to_contain_text("carla was added by ")

        def see_another(page: Page) -> None:
            expect(rows(page).first).to_contain_text("dora was added by ")

        def see_only_changes(page: Page) -> None:
            page.get_by_label("Event", exact=True).select_option("Account added")
            expect(rows(page)).to_have_count(3)

        def see_only_a_change(page: Page) -> None:
            expect(rows(page).first).to_contain_text("emma was added by ")
            expect(rows(page)).to_have_count(4)

        await here.window.do(open_events)
        arguments = (here.server.ticket, str(echo), "--name", HOSTILE)
        async with running.client(tmp_path / "client", *arguments):
            await here.window.do(see_client)
        await account(here.server, "add", "carla", password=PASSWORD)
        await here.window.do(see_change)
        await account(here.server, "add", "dora", password=PASSWORD)
        await here.window.do(see_another)
        # What comes is filtered as well.
        await here.window.do(see_only_changes)
        await account(here.server, "passwd", "dora", password=PASSWORD)
        await account(here.server, "add", "emma", password=PASSWORD)
        await here.window.do(see_only_a_change)


async def test_who_is_told_of_events(tmp_path: Path) -> None:
    async with receiving() as well, receiving(status(500)) as ill:
        entries = "".join(
            f"  - {{Url: '{each.url}?for-nobody', Secret: s, AllowPrivate: true, Types: [server.*]}}\n"
            for each in (well, ill)
        )
        config = tmp_path / "server.yml"
        config.write_text(f"Events:\n{entries}")
        async with scene(tmp_path, "--config", str(config)) as here:
            await here.log_in()
            await ill.wait(1)
            await well.wait(1)

            def look(page: Page) -> None:
                show(page, "events")
                table = page.get_by_role("table", name="Who is told")
                expect(rows(table)).to_have_count(2)
                row = rows(table).filter(has_text=f":{well.port}/")
                expect(row).to_contain_text("takes them")
                row = rows(table).filter(has_text=f":{ill.port}/")
                expect(row).to_contain_text("fails")
                expect(row).to_contain_text("status 500")
                assert "for-nobody" not in page.content()
                page.get_by_role("button", name="Send a test").click()
                dialog = page.get_by_role("dialog")
                expect(dialog).to_contain_text("has taken it")
                expect(dialog).to_contain_text("has not taken it")
                expect(dialog).to_contain_text("status 500")
                page.keyboard.press("Escape")
                expect(page.get_by_role("dialog")).to_have_count(0)
                expect(page.get_by_role("button", name="Send a test")).to_be_focused()

            await here.window.do(look)
            await well.wait_type("test")
    async with scene(tmp_path / "nobody") as here:
        await here.log_in()

        def learn_how(page: Page) -> None:
            show(page, "events")
            page.get_by_role("button", name="Be told elsewhere").click()
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_label("Lines of the configuration")).to_have_value(
                re.compile("Events:\n  - Url: https://hooks.slack.com/")
            )

        await here.window.do(learn_how)


async def test_who_has_changed_what(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.log_in()

        def change(page: Page) -> None:
            show(page, "users")
            page.get_by_role("button", name="Add a user").click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_label("Name").fill("anna")
            for label in ("Password", "New password again"):
                dialog.get_by_label(label, exact=True).fill("a long password of hers")
            dialog.get_by_role("button", name="Add").click()
            expect(page.get_by_role("dialog")).to_contain_text("Ticket of anna")
            page.keyboard.press("Escape")
            expect(rows(page)).to_have_count(3)

        def look(page: Page) -> None:
            show(page, "audit")
            row = rows(page).filter(has_text="anna")
            expect(row).to_have_count(1)
            for words in (ADMIN, "console", "added an account", "127.0.0.1"):
                expect(row).to_contain_text(words)
            expect(rows(page).filter(has_text="command line")).to_have_count(2)
            assert "a long password of hers" not in page.content()
            page.keyboard.press("/")
            page.keyboard.type("command line")
            expect(rows(page)).to_have_count(2)

        await here.window.do(change)
        with trio.fail_after(10):
            while "anna" not in (here.server.state / "audit.log").read_text():  # noqa: ASYNC110
                await trio.sleep(0.1)
        await here.window.do(look)


async def test_who_waits_and_what_is_kept(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, services.echo() as echo:
        await here.log_in()
        first, second = (here.server.ticket, str(echo), "--name"), tmp_path / "second"

        def see_queue(page: Page) -> None:
            show(page, "overview")
            page.locator(".tiles").get_by_role("link", name="Waiting clients").click()
            queue = page.get_by_role("table", name="Waiting clients")
            expect(rows(queue)).to_have_count(1)
            expect(rows(queue)).to_contain_text(HOSTILE)

        def see_reserved(page: Page) -> None:
            kept = page.get_by_role("table", name="Kept for lost clients")
            expect(rows(kept)).to_have_count(1)
            expect(rows(kept)).to_contain_text(str(port))
            expect(rows(kept)).to_contain_text(re.compile(r"\d s"))

        async with running.client(tmp_path / "first", *first, "holder") as client:
            port = client.port()
            async with running.client_process(second, *first, HOSTILE) as waiting:
                await here.window.do(see_queue)
                waiting.terminate()
                await waiting.wait()
            client.kill()
        await here.window.do(see_reserved)


async def test_who_is_no_administrator_sees_his_own(tmp_path: Path) -> None:
    async with (
        scene(tmp_path) as here,
        services.echo() as echo,
        running.client(tmp_path / "client", here.server.ticket, str(echo)),
    ):
        await account(here.server, "add", "bert", password="a long password of his")
        await here.log_in("bert", "a long password of his")

        def look(page: Page) -> None:
            menu = page.get_by_role("navigation")
            for screen in FOR_EVERYBODY:
                expect(menu.locator(f"a[href='#/{screen}']")).to_have_count(1)
                show(page, screen)
                expect(page.get_by_text("This could not be fetched")).to_have_count(0)
            for screen in FOR_ADMINS:
                expect(menu.locator(f"a[href='#/{screen}']")).to_have_count(0)
            page.evaluate("location.hash = '#/users'")
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            expect(page.get_by_text("Show your ticket, and run this")).to_be_visible()
            expect(page.get_by_text("Show a user's ticket")).to_have_count(0)
            show(page, "sessions")
            expect(page.get_by_text("No client is connected")).to_be_visible()

        def change_password(page: Page) -> None:
            show(page, "account")
            page.get_by_label("Present password").fill("a long password of his")
            page.get_by_label("New password", exact=True).fill("another long password")
            page.get_by_label("New password again").fill("something else")
            page.get_by_role("button", name="Change it").click()
            expect(page.get_by_role("alert")).to_contain_text("not the same")
            page.get_by_label("New password again").fill("another long password")
            page.get_by_role("button", name="Change it").click()
            expect(page.get_by_text("The password is changed.")).to_be_visible()

        await here.window.do(look)
        await here.window.do(change_password)
        await here.log_in("bert", "another long password")


async def test_the_server_is_lost_and_comes_back(tmp_path: Path) -> None:
    async with open_window() as window:
        async with console_server(tmp_path) as (first, url):
            await window.do(partial(log_in, url=url, name=ADMIN, password=PASSWORD))
            banner = "The server does not answer."

            def go_away(page: Page) -> None:
                show(page, "sessions")
                expect(page.get_by_text("No client is connected")).to_be_visible()

            def see_banner(page: Page) -> None:
                expect(page.get_by_text(banner)).to_be_visible(timeout=30_000)

            def come_back(page: Page) -> None:
                expect(page.get_by_text(banner)).to_have_count(0, timeout=30_000)
                expect(page.get_by_role("heading", name="Sessions")).to_be_visible()

            await window.do(go_away)
            process = first.process.process
            async with (
                services.echo() as echo,
                running.client(tmp_path / "client", first.ticket, str(echo)),
            ):
                await window.do(lambda page: expect(rows(page)).to_have_count(1))
                # A server that says nothing, and does not even close a connection.
                process.send_signal(signal.SIGSTOP)
                await window.do(see_banner)
                process.send_signal(signal.SIGCONT)
                await window.do(come_back)
            # What happens afterwards is seen without a click.
            await window.do(lambda page: expect(rows(page)).to_have_count(0))
            first.kill()
            await window.do(see_banner)
        # Logins are in memory only: after a new start of the server one has to log in again, and lands where one was.
        address = urlsplit(url).netloc
        async with console_server(tmp_path, address=address):

            def again(page: Page) -> None:
                expect(page.get_by_text("Your login has ended")).to_be_visible(timeout=30_000)
                page.get_by_label("Name").fill(ADMIN)
                page.get_by_label("Password").fill(PASSWORD)
                page.get_by_role("button", name="Log in").click()
                expect(page.get_by_role("heading", name="Sessions")).to_be_visible()

            await window.do(again)


def fill(window: Window, count: int, text: str, *others: str) -> None:
    """Have the lists, and others, answer with so many rows, whose texts are this one; the server's own answers have their form."""

    @functools.cache
    def items(kind: str) -> list[dict[str, Any]]:
        since = "2026-01-31T12:00:00+00:00"
        session = {
            "user": text,
            "client": text,
            "dialect": "native",
            "address": "192.0.2.1:4000",
            "since": since,
            "seconds": 1.0,
            "round_trip": 0.01,
            "visitor_count": 1,
            "rate": 2.0,
            "tunnels_idle": 1,
            "tunnels_busy": 1,
            "received": 5,
            "sent": 6,
            "group": text,
            "restrictions": [text],
            "services": [{"name": text, "local": text, "port": 0, "down": True, "url": text}],
        }
        visitor = {
            "address": "192.0.2.2:5000",
            "port": 60000,
            "name": text,
            "since": since,
            "seconds": 1.0,
            "received": 1,
            "sent": 2,
            "rate": 3.0,
            "waiting": False,
            "session": 1,
            "user": text,
            "client": text,
        }
        account = {
            "admin": False,
            "disabled": False,
            "created_at": since,
            "expires_at": None,
            "expired": False,
            "damage": text,
            "used_this_month": 50,
            "limits": {"monthly_quota": 100, "names": [text], "visit_ports": [60000]},
        }
        point = {"state": "held", "user": text, "client": text, "service": text, "url": text}
        usage = {"bytes": 9, "month": "2026-11", "month_bytes": 5, "monthly_quota": 7, "waiting": 0}
        token = {
            "name": text,
            "user": text,
            "scope": "read",
            "created_at": since,
            "expires_at": None,
            "expired": False,
            "last_used": None,
        }
        session_lost = {
            "uid": 1,
            "user": text,
            "client": text,
            "address": "192.0.2.1:4000",
            "points": [60000, text],
            "code": text,
            "reason": text,
            "seconds": 5.0,
            "relayed": 9,
        }
        made: dict[str, tuple[str, dict[str, Any]]] = {
            "sessions": ("uid", session),
            "visitors": ("number", visitor),
            "users": ("name", account),
            "points": ("point", point),
            "traffic": ("user", usage),
            "tokens": ("id", token),
            "bans": ("network", {"remaining": 9.0}),
            "certificates": ("name", {"state": text, "ends": since, "reason": text, "retry": None}),
            "nodes": (
                "name",
                {
                    "address": text,
                    "silent": 1.0,
                    "sessions": 1,
                    "visitors": 1,
                    "public": text,
                    "drained": False,
                },
            ),
            "events": (
                "number",
                {
                    "time": since,
                    "type": "session.lost",
                    "server": text,
                    "data": session_lost,
                    "text": text,
                },
            ),
            "webhooks": (
                "url",
                {
                    "template": "json",
                    "types": [text],
                    "state": "failing",
                    "behind": 7,
                    "failures": 3,
                    "reason": text,
                    "next_try": since,
                },
            ),
            "audit": (
                "number",
                {
                    "time": since,
                    "by": "token",
                    "user": text,
                    "token": text,
                    "host": "192.0.2.3",
                    "what": "account.changed",
                    "target": text,
                    "detail": text,
                },
            ),
            "queue": (
                "position",
                {
                    "user": text,
                    "client": text,
                    "address": "192.0.2.4:4000",
                    "since": since,
                    "seconds": 1.0,
                },
            ),
            "reserved": (
                "number",
                {
                    "user": text,
                    "ports": [60000, 60001],
                    "names": [text],
                    "since": since,
                    "seconds": 1.0,
                    "remaining": 20.0,
                    "waiting": 2,
                    "visitors": [],
                    "group": text,
                },
            ),
            "log": (
                "number",
                {
                    "time": since,
                    "level": "info",
                    "logger": text,
                    "event": text,
                    "keys": {text: text},
                    "exception": text,
                },
            ),
        }
        key, values = made[kind]
        numbered = key in ("uid", "number", "position")
        return [
            {**values, key: number if numbered else f"{text}{number}"}
            for number in range(1, count + 1)
        ]

    def answer(route: Route) -> None:
        parts = urlsplit(route.request.url)
        kind = parts.path.rpartition("/")[2]
        query = dict(each.split("=") for each in parts.query.split("&") if each)
        after, limit = int(query.get("after", 0)), int(query.get("limit", 100))
        page = items(kind)[after : after + limit]
        left = after + limit < count and kind != "log"
        route.fulfill(json={"items": page, "next": str(after + limit) if left else None})

    kinds = "|".join((*LISTS, "log", *others))
    window.page.route(re.compile(rf"/api/v1/({kinds})(\?|$)"), answer)


LISTS = [
    "sessions",
    "visitors",
    "users",
    "points",
    "traffic",
    "tokens",
    "bans",
    "events",
    "audit",
    "certificates",
    "nodes",
]
PAGED = ("events", "audit")
PARTS = {"queue": "Waiting clients", "reserved": "Kept for lost clients"}
"""What else the screen of names and ports has."""


async def test_what_peers_say_is_text(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, services.echo() as echo:
        await here.log_in()

        def look_at_client(page: Page) -> None:
            for screen in ("sessions", "points", "log"):
                show(page, screen)
                expect(page.locator("main")).to_contain_text(HOSTILE)
                assert page.locator("main img, main script").count() == 0

        def see_client_gone(page: Page) -> None:
            show(page, "sessions")
            expect(rows(page)).to_have_count(0)
            show(page, "overview")

        def look(page: Page, text: str) -> None:
            dialogs: list[str] = []

            def note(dialog: Dialog) -> None:
                dialogs.append(dialog.message)
                dialog.dismiss()

            page.on("dialog", note)
            page.unroute_all()
            fill(here.window, 3, text)
            shown = SHOWN if text == TURNED else text
            for screen in (*LISTS, "log"):
                show(page, screen)
                if screen == "log":
                    expect(page.locator(".log-line")).to_have_count(3)
                else:
                    expect(rows(page)).to_have_count(3)
                expect(page.locator("main")).to_contain_text(shown)
                assert page.locator("main img, main script").count() == 0
                hidden = page.evaluate("document.body.innerText.match(/[\\u202e\\u001b\\u200b]/)")
                assert hidden is None
            for screen in ("events", "sessions"):
                show(page, screen)
                page.locator("button.link").first.click()
                expect(page.get_by_role("dialog")).to_contain_text(shown)
                assert page.locator("dialog img, dialog script").count() == 0
                page.keyboard.press("Escape")
            fill(here.window, 3, text, "events/webhooks", *PARTS)
            show(page, "events")
            expect(page.get_by_role("table", name="Who is told")).to_contain_text(shown)
            show(page, "points")
            for title in PARTS.values():
                expect(page.get_by_role("table", name=title)).to_contain_text(shown)
            assert page.locator("main img, main script").count() == 0
            show(page, "sessions")
            page.locator("button.link").first.click()
            assert not page.locator("a[href^='javascript'], a[href*='script>']").count()
            page.keyboard.press("Escape")
            show(page, "overview")
            assert not dialogs

        ticket, name = here.server.ticket, HOSTILE
        async with running.client(tmp_path / "client", ticket, str(echo), "--name", name):
            await here.window.do(look_at_client)
        # The live stream would put it among the rows that are made up, above them.
        await here.window.do(see_client_gone)
        for text in (HOSTILE, TURNED):
            await here.window.do(partial(look, text=text))


async def test_thousands_of_rows(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.log_in()

        def look(page: Page) -> None:
            fill(here.window, MANY, "row-")
            for screen in LISTS:
                show(page, screen)
                if screen in PAGED:
                    show_all(page)
                expect(page.locator(".count")).to_have_text(f"Rows: {MANY:,}")
                assert rows(page).count() < 100, "all of them are drawn"
                scroll = "box => { box.scrollTop = box.scrollHeight }"
                page.locator(".scroll.long").evaluate(scroll)
                expect(page.locator("table")).to_have_attribute("aria-rowcount", str(MANY + 1))
                if screen in ("users", "points", "certificates"):
                    expect(rows(page).last).to_contain_text(f"row-{MANY}")
                    page.keyboard.press("/")
                    expect(page.get_by_role("searchbox")).to_be_focused()
                    page.keyboard.type("row-4711")
                    expect(rows(page)).to_have_count(1)
            show(page, "log")
            expect(page.locator(".log-line").first).to_be_attached()
            fill(here.window, MANY, "row-", *PARTS)
            show(page, "points")
            for title in PARTS.values():
                part = page.get_by_role("region", name=title, exact=True).first
                expect(part.locator(".count")).to_have_text(f"Rows: {MANY:,}")
                assert rows(part).count() < 100, "all of them are drawn"

        await here.window.do(look)


async def test_without_a_mouse(tmp_path: Path) -> None:
    async with (
        scene(tmp_path) as here,
        services.echo() as echo,
        running.client(tmp_path / "client", here.server.ticket, str(echo)),
    ):
        await here.log_in()

        def work(page: Page) -> None:
            page.reload()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible()
            page.keyboard.press("Tab")
            expect(page.get_by_text("Skip to the content")).to_be_focused()
            page.keyboard.press("Enter")
            expect(page.locator("main")).to_be_focused()
            show(page, "sessions")
            page.keyboard.press("/")
            expect(page.get_by_role("searchbox")).to_be_focused()
            kick = page.get_by_role("button", name="Kick")
            kick.focus()
            page.keyboard.press("Enter")
            expect(page.get_by_role("dialog")).to_be_visible()
            for _ in range(8):
                page.keyboard.press("Tab")
                inside = "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
                assert page.evaluate(inside), "the focus has left the dialog"
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
            expect(kick).to_be_focused()
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"

        await here.window.do(work)


async def test_a_phone(tmp_path: Path) -> None:
    phone = {"viewport": {"width": 320, "height": 640}, "has_touch": True}
    async with scene(tmp_path, **phone) as here:
        await here.log_in()

        def look(page: Page) -> None:
            others = ("events/webhooks", *PARTS)
            fill(here.window, 3, "a-long-name-without-any-blank-in-it-whatsoever", *others)
            for screen in SCREENS:
                show(page, screen)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= 320, f"{screen} has to be pushed sideways"
            show(page, "users")
            page.get_by_role("button", name="Menu").click()
            page.get_by_role("navigation").get_by_text("Sessions").click()
            expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
            expect(page.get_by_role("navigation")).to_have_count(0)

        await here.window.do(look)


async def test_chinese(tmp_path: Path) -> None:
    async with scene(tmp_path, locale="zh-CN") as here:

        def switch(page: Page) -> None:
            page.goto(here.url)
            expect(page.get_by_role("heading", name="登录")).to_be_visible()
            assert page.evaluate("document.documentElement.lang") == "zh-Hans"
            page.get_by_label("语言").select_option("en")
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()
            page.reload()
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()

        await here.window.do(switch)
        await here.log_in()

        def look(page: Page) -> None:
            page.get_by_label("Language").first.select_option("zh")
            expect(page.get_by_role("heading", name="概览")).to_be_visible()
            for screen in SCREENS:
                show(page, screen)
                menu = page.get_by_role("navigation")
                assert re.search("[\u4e00-\u9fff]", menu.locator("[aria-current]").inner_text())

        await here.window.do(look)


def axe_source(folder: Path) -> str:
    """Return axe-core, which looks for what people who cannot see, or use no mouse, would stumble over; skip where it cannot be had."""
    try:
        subprocess.run(
            ["npm", "pack", "--silent", "axe-core@4.14.1"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=60,
        )
        subprocess.run(["tar", "xf", "axe-core-4.14.1.tgz"], cwd=folder, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"axe-core cannot be had: {error}")
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


AXE = """async options => (await axe.run(document, {resultTypes: ["violations"], ...options})).violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => [each.id, each.nodes.map(node => node.html.slice(0, 200))])"""
CONTRAST = {"runOnly": ["color-contrast"]}


async def test_nobody_is_shut_out(tmp_path: Path) -> None:
    axe = await trio.to_thread.run_sync(axe_source, tmp_path)
    async with scene(tmp_path, reduced_motion="reduce") as here:

        def check(page: Page, what: str, options: dict[str, Any]) -> None:
            faults = page.evaluate(AXE, options)
            assert not faults, f"{what}: {faults}"

        def look(page: Page) -> None:
            page.evaluate(axe)
            for screen in SCREENS:
                show(page, screen)
                check(page, screen, {})
            fill(here.window, 3, "row-")
            for screen in (*LISTS, "log"):
                page.emulate_media(color_scheme="light")
                show(page, screen)
                check(page, f"{screen} with rows", {})
                page.emulate_media(color_scheme="dark")
                check(page, f"{screen} in the dark", CONTRAST)
            show(page, "events")
            for label in ("Be told elsewhere", "Client is lost"):
                page.get_by_role("button", name=label).first.click()
                check(page, label, {})
                page.keyboard.press("Escape")
            fill(here.window, 3, "row-", "events/webhooks", *PARTS)
            for screen in ("points", "events"):
                page.emulate_media(color_scheme="light")
                show(page, screen)
                expect(rows(page)).to_have_count(6 if screen == "events" else 9)
                check(page, f"all of {screen}", {})
                page.emulate_media(color_scheme="dark")
                check(page, f"all of {screen} in the dark", CONTRAST)
            show(page, "users")
            for label in ("Add a user", "Ticket of row-1"):
                page.get_by_role("button", name=label, exact=True).click()
                check(page, label, {})
                page.keyboard.press("Escape")
            page.locator("button.link").first.click()
            page.get_by_role("dialog").get_by_role("button", name="Limits and expiry").click()
            check(page, "limits", {})
            page.keyboard.press("Escape")
            page.set_viewport_size({"width": 320, "height": 640})
            for screen in ("users", "sessions", "overview", "events", "audit", "points"):
                show(page, screen)
                check(page, f"{screen} on a phone", {})

        def look_at_login(page: Page) -> None:
            page.goto(here.url)
            page.wait_for_selector("input")
            page.evaluate(axe)
            check(page, "login", {})

        await here.window.do(look_at_login)
        await here.log_in()
        await here.window.do(look)
