"""Takes the pictures of docs/console.md, of a running server: `python -m tests.console_pictures`, which takes a quarter of an hour, so that the charts have something to show."""

from __future__ import annotations

import argparse
import random
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio
from playwright.sync_api import expect

from tests.browser.test_console import ADMIN, PASSWORD, Scene, account, rows, show
from tests.browser.window import open_window
from tests.e2e import running, services
from tests.events.receiver import receiving
from trionat.server.state_folder import database_file
from trionat.store.backend import open_store
from trionat.store.base import Flush
from trionat.store.month import month_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).parents[1] / "docs" / "console"
USERS = ("anna", "bert", "chloe", "dmitri")
USED = {"anna": 68_200_000, "bert": 399_700_000, "chloe": 316_200_000, "dmitri": 1_000_300_000}
CLIENTS = {  # user, services, visitors, bytes of a message
    "office-nas": ("anna", 2, 3, 15_000),
    "build-7": ("bert", 1, 8, 60_000),
    "raspberry": ("chloe", 1, 6, 20_000),
    "shop": (ADMIN, 1, 0, 0),
}


async def main(minutes: float) -> None:
    """Run a server with four clients for so long, and take the pictures at the end."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        receiver = await stack.enter_async_context(receiving())
        config = folder / "server.yml"
        config.write_text(
            "Events:\n"
            f"  - {{Url: 'http://127.0.0.1:{receiver.port}/alerts', Template: slack, AllowPrivate: true, Types: [session.*, quota.*]}}\n"
            # Nobody has that name (RFC 6761): how one looks that is not reached.
            "  - {Url: 'https://ntfy.example.invalid/trionat', Template: ntfy}\n"
        )
        flags = ("--config", str(config), "--name", "hub", "--max-tcp-conn-num", "8")
        looks = {"locale": "en-US", "viewport": {"width": 1280, "height": 760}}
        server = await stack.enter_async_context(
            running.server(folder, "--console-addr", "127.0.0.1:0", *flags, visit="61000-61012")
        )
        window = await stack.enter_async_context(open_window(**looks))
        here = Scene(server, window, server.ready["console"])
        await make_accounts(here)
        await here.log_in()
        began = trio.current_time()
        visitors: list[tuple[running.Client, int, int]] = []
        for name, (user, services_of_it, count, size) in CLIENTS.items():
            ticket = await ticket_of(here, user)
            echoes = [
                str(await stack.enter_async_context(services.echo())) for _ in range(services_of_it)
            ]
            client = await stack.enter_async_context(
                running.client(folder / name, ticket, *echoes, "--name", name)
            )
            visitors += [(client, number % services_of_it, size) for number in range(count)]
        echo = str(await stack.enter_async_context(services.echo()))
        async with trio.open_nursery() as nursery:
            for visitor in visitors:
                nursery.start_soon(talk, *visitor)
            ticket = await ticket_of(here, "anna")
            arguments = (ticket, echo, "--name", "laptop")
            while trio.current_time() < began + minutes * 60 - 75:
                async with running.client(folder / "laptop", *arguments):
                    await trio.sleep(random.uniform(20, 60))
            # As when its machine loses its power: it is lost, and its port is kept.
            async with running.client_process(folder / "laptop", *arguments) as lost:
                await lost.wait_connected()
                await trio.sleep(25)
                lost.process.process.kill()
                lost.ended = True
            await account(here.server, "limit", "bert", "--bandwidth", "20M")
            await trio.sleep(10)
            await here.window.do(take_all)
            nursery.cancel_scope.cancel("the pictures are taken")


async def make_accounts(here: Scene) -> None:
    await account(here.server, "add", ADMIN, password=PASSWORD)
    await account(here.server, "admin", ADMIN, "on")
    for name in USERS:
        await account(here.server, "add", name, password="a long password")
    await account(here.server, "limit", "anna", "--sessions", "3", "--quota", "800M")
    limits = ("--visitors", "100", "--bandwidth", "10M", "--quota", "5G")
    await account(here.server, "limit", "bert", *limits)
    await account(here.server, "limit", "chloe", "--visit-ports", "61010-61012")
    await account(here.server, "limit", "dmitri", "--quota", "1G")
    await account(here.server, "expire", "dmitri", "30d")
    async with open_store(None, database_file(here.server.state)) as store:
        month = month_of(datetime.now(UTC))
        await store.add_traffic(Flush(server="a" * 32, number=1, month=month, amounts=USED))


async def ticket_of(here: Scene, user: str) -> str:
    port = here.server.ready["control"].rpartition(":")[2]
    done = await services.run_trionat(
        *("user", "ticket", user, "--public-addr", f"127.0.0.1:{port}"),
        *("--state-dir", here.server.state),
    )
    return done.stdout.decode().split()[-1]


async def talk(client: running.Client, service: int, size: int) -> None:
    """Be one visitor after another, each for some minutes."""
    while True:
        async with await client.visit(service) as stream:
            until = trio.current_time() + random.uniform(30, 240)
            while trio.current_time() < until:
                sent = left = int(size * random.uniform(0.2, 3))
                await stream.send_all(bytes(sent))
                while left:
                    left -= len(await stream.receive_some(65536))
                await trio.sleep(random.uniform(0.5, 3))
        await trio.sleep(random.uniform(1, 10))


def take_all(page: Page) -> None:
    def take(name: str) -> None:
        page.screenshot(path=PICTURES / f"{name}.png")

    show(page, "events")
    expect(page.get_by_role("table", name="Who is told")).to_contain_text("fails")
    take("events")
    for screen in ("overview", "sessions", "visitors", "users"):
        show(page, screen)
        page.wait_for_timeout(3500)  # some looks at the rates
        take(screen)
    page.get_by_role("button", name="Ticket of anna").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Make one that").click()
    dialog.get_by_label("Only these ports").fill("61000-61003")
    dialog.get_by_label("Good until").fill("2027-01-31T12:00")
    dialog.get_by_role("button", name="Show the ticket").click()
    expect(dialog.get_by_label("Ticket", exact=True)).to_be_visible()
    page.wait_for_timeout(300)
    take("ticket")
    page.keyboard.press("Escape")
    page.emulate_media(color_scheme="dark")
    show(page, "overview")
    page.wait_for_timeout(1500)
    take("dark")
    page.emulate_media(color_scheme="light")
    page.get_by_role("banner").get_by_role("combobox").select_option("zh")
    show(page, "sessions")
    page.wait_for_timeout(1500)
    take("chinese")
    page.get_by_role("banner").get_by_role("combobox").select_option("en")
    page.set_viewport_size({"width": 480, "height": 960})
    show(page, "visitors")
    expect(rows(page).first).to_be_visible()
    page.wait_for_timeout(1500)
    take("phone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    trio.run(main, parser.parse_args().minutes)
