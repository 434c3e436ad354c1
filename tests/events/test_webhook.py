"""Telling a receiver, again and again, in order; with a real journal and a real receiver."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from tests.e2e.running import wait_until
from tests.events.receiver import Received, Receiver, receiving, status
from trionat.config.events import NTFY, EventsConfig, WebhookConfig
from trionat.server.events import delivery as delivery_module
from trionat.server.events import hub as hub_module
from trionat.server.events import template
from trionat.server.events import webhook as webhook_module
from trionat.server.events.delivery import Delivery, open_delivery
from trionat.server.events.event import ban, ban_lifted
from trionat.server.events.hub import Hub
from trionat.server.events.journal import Journal
from trionat.server.events.post import receiver_context
from trionat.server.events.webhook import key_of, send_test

if TYPE_CHECKING:
    import logging
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = "s3cret of the receiver"


def to(receiver: Receiver, **more: Any) -> WebhookConfig:
    values: dict[str, Any] = {"url": receiver.url, "allow_private": True, "secret": SECRET}
    return WebhookConfig(**values | more)


@asynccontextmanager
async def delivering(folder: Path, *webhooks: WebhookConfig) -> AsyncIterator[tuple[Hub, Delivery]]:
    hub = Hub("here")
    async with open_delivery(hub, EventsConfig(webhooks=webhooks), folder) as delivery:
        yield hub, delivery


class ShortJournal(Journal):
    @classmethod
    def open(cls, folder: Path, webhooks: Any = (), **_: Any) -> Any:
        return Journal.open(folder, webhooks, most=10)


def publish(hub: Hub, *hosts: int) -> None:
    for host in hosts:
        hub.publish(ban_lifted(network=f"192.0.2.{host}", reason="its time is over"))


def hosts(receiver: Receiver) -> list[int]:
    return [int(event["data"]["network"].rpartition(".")[2]) for event in receiver.events]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second between two tries, at most."""
    monkeypatch.setattr(webhook_module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(webhook_module, "_LONGEST_PAUSE", 0.1)


async def test_all_are_told_in_order_and_signed(tmp_path: Path) -> None:
    async with receiving() as receiver, delivering(tmp_path, to(receiver)) as (hub, _):
        publish(hub, 1, 2, 3)
        await receiver.wait(3)
    assert receiver.numbers == [1, 2, 3]
    for number, got in enumerate(receiver.got, 1):
        assert got.event["type"] == got.headers["trionat-event"] == "ban.lifted"
        assert got.event["server"] == "here"
        assert got.headers["trionat-delivery"].endswith(f"-{number}")
        moment, mac = (
            part.partition("=")[2] for part in got.headers["trionat-signature"].split(",")
        )
        # Another program's word for it.
        openssl = await trio.run_process(
            ["openssl", "dgst", "-sha256", "-hmac", SECRET],
            stdin=moment.encode() + b"." + got.body,
            capture_stdout=True,
        )
        assert openssl.stdout.decode().split()[-1] == mac
        assert (
            hmac.new(SECRET.encode(), moment.encode() + b"." + got.body, hashlib.sha256).hexdigest()
            == mac
        )


async def test_only_wanted_types_are_told(tmp_path: Path) -> None:
    async with receiving() as receiver, receiving() as other:
        webhooks = to(receiver, types=("ban",)), to(other, types=("session.*", "ban.lifted"))
        async with delivering(tmp_path, *webhooks) as (hub, delivery):
            publish(hub, 1)
            hub.publish(ban(network="192.0.2.9", failures=10, seconds=300))
            publish(hub, 2)
            await receiver.wait(1)
            await other.wait(2)
            await delivery.wait_through()
            assert [each.behind for each in delivery.webhooks] == [0, 0]
    assert (receiver.numbers, other.numbers) == ([2], [1, 3])
    journal = Journal.open(tmp_path / "events", [key_of(webhooks[0])])
    assert list(journal.positions.values()) == [3]
    journal.file.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", [500, 503, 302, 404, 429, 401])
async def test_what_is_not_taken_is_told_again_and_nothing_before_it(
    tmp_path: Path, code: int
) -> None:
    async with receiving(status(code, code, code, 200)) as receiver:
        async with delivering(tmp_path, to(receiver)) as (hub, delivery):
            publish(hub, 1, 2)
            webhook = delivery.webhooks[0]
            await wait_until(lambda: webhook.failures == 3)
            assert not webhook.stopped
            await receiver.wait(5)
    assert receiver.numbers == [1, 1, 1, 1, 2]
    assert len({got.headers["trionat-delivery"] for got in receiver.got[:4]}) == 1


@pytest.mark.usefixtures("impatient")
async def test_one_that_hangs_or_breaks_off_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: trio.abc.Stream, __: Received) -> None:
        await trio.sleep_forever()

    async def break_off(stream: trio.abc.Stream, _: Received) -> None:
        await stream.send_all(b"HTTP/1.1 200")

    async with receiving(hang) as slow, receiving(break_off) as broken, receiving() as receiver:
        async with delivering(tmp_path, to(slow), to(broken), to(receiver)) as (hub, delivery):
            publish(hub, 1, 2, 3)
            await receiver.wait(3)
            await broken.wait(3)
            assert set(broken.numbers) == {1}
            assert slow.numbers == [1]
            began = trio.current_time()
        assert (
            trio.current_time() - began < 4
        )  # a stop waits for nobody who is ill, and for two seconds for the rest
    assert delivery.webhooks[1].reason == "it has closed the connection before it has answered"


@pytest.mark.usefixtures("impatient")
async def test_one_that_wants_nothing_any_more_gets_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(status(410)) as receiver:
        async with delivering(tmp_path, to(receiver)) as (hub, delivery):
            publish(hub, 1, 2)
            await receiver.wait(1)
            await trio.sleep(0.5)
            assert delivery.webhooks[0].stopped
    assert receiver.numbers == [1]
    assert "wants no events any more" in caplog.text
    assert "/hook" not in caplog.text


@pytest.mark.usefixtures("impatient")
async def test_nothing_is_lost_over_a_restart_and_nothing_told_twice(tmp_path: Path) -> None:
    async with receiving(status(500)) as receiver:
        async with delivering(tmp_path, to(receiver)) as (hub, _):
            publish(hub, 1, 2)
            await receiver.wait(1)
        async with delivering(tmp_path, to(receiver)) as (hub, _):
            publish(hub, 3)
            await trio.sleep(0.2)
            receiver.got.clear()
            receiver.answer = status(200)
            await receiver.wait(3)
            await trio.sleep(0.2)
        assert hosts(receiver) == [1, 2, 3]
        async with delivering(tmp_path, to(receiver)) as (hub, _):
            publish(hub, 4)
            await receiver.wait(4)
    assert hosts(receiver) == [1, 2, 3, 4]
    assert receiver.numbers == [1, 2, 3, 4]
    assert len({got.headers["trionat-delivery"] for got in receiver.got}) == 4


async def test_a_planned_stop_lets_receivers_hear_the_last(tmp_path: Path) -> None:
    async def slowly(stream: trio.abc.Stream, received: Received) -> None:
        await trio.sleep(0.1)
        await status(200)(stream, received)

    async with receiving(slowly) as receiver:
        async with delivering(tmp_path, to(receiver)) as (hub, _):
            publish(hub, 1, 2, 3)
        assert receiver.numbers == [1, 2, 3]


@pytest.mark.usefixtures("impatient")
async def test_a_gap_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "Journal", ShortJournal)
    hold = trio.Event()

    async def wait(stream: trio.abc.Stream, received: Received) -> None:
        await hold.wait()
        await status(200)(stream, received)

    async with receiving(wait) as receiver:
        async with delivering(tmp_path, to(receiver)) as (hub, delivery):
            publish(hub, 1)
            await receiver.wait(1)
            publish(hub, *range(2, 41))
            await delivery.journal.flush()
            hold.set()
            await receiver.wait(12)
    assert receiver.events[1]["type"] == "events.dropped"
    assert receiver.events[1]["data"] == {"count": 29}
    assert receiver.numbers == [1, 30, *range(31, 41)]


async def test_who_wants_events_hears_that_some_were_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the server at the latest, so nothing of it is lost."""
    monkeypatch.setattr(hub_module, "AT_ONCE", 3)
    async with receiving() as receiver, receiving() as other:
        webhooks = to(receiver, types=("ban.lifted",)), to(other, types=("session.*",))
        async with delivering(tmp_path, *webhooks) as (hub, delivery):
            publish(hub, *range(1, 8))
            await receiver.wait(3)
            await delivery.wait_through()
    assert receiver.numbers == [1, 2, 3, 4]
    last = receiver.events[-1]
    assert last["type"] == "events.left_out"
    assert (last["data"]["count"], last["data"]["types"]) == (4, {"ban.lifted": 4})
    assert other.numbers == []


async def test_that_some_were_left_out_waits_for_it_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "AT_ONCE", 3)
    hold = trio.Event()

    async def wait(stream: trio.abc.Stream, received: Received) -> None:
        await hold.wait()
        await status(200)(stream, received)

    async with receiving(wait) as receiver:
        async with delivering(tmp_path, to(receiver, types=("ban.lifted",))) as (hub, delivery):
            publish(hub, *range(1, 8))
            hub.tell_left_out(at_once=True)
            await delivery.journal.flush()
            assert delivery.journal.last == 4
            assert [each.behind for each in delivery.webhooks] == [4]
            hold.set()


async def test_a_chat_gets_several_in_one_message(tmp_path: Path) -> None:
    hold = trio.Event()

    async def wait(stream: trio.abc.Stream, received: Received) -> None:
        await hold.wait()
        await status(200)(stream, received)

    async with receiving(wait) as receiver:
        webhook = to(receiver, template="slack", secret="")
        async with delivering(tmp_path, webhook) as (hub, delivery):
            publish(hub, 1)
            await receiver.wait(1)
            publish(hub, *range(2, 32))
            await delivery.journal.flush()
            hold.set()
            await receiver.wait(3)
    assert [got.event["text"].count("\n") + 1 for got in receiver.got] == [1, 20, 10]
    assert "trionat-event" not in receiver.got[0].headers


async def test_pauses_grow_to_ten_minutes_and_keep_to_what_is_asked_for() -> None:
    webhook = webhook_module.Webhook(
        config=WebhookConfig(url="http://192.0.2.1/"),
        server="",
        journal=cast("Journal", None),
        tls=cast("ssl.SSLContext", None),
    )
    pauses = [webhook._fail(webhook_module.Outcome("x")) for _ in range(40)]
    for number, pause in enumerate(pauses):
        longest = min(600.0, 2.0**number)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses[20:])) > 10
    webhook.failures = 0
    assert webhook._fail(webhook_module.Outcome("x", 429, 30.0)) == 30
    assert webhook._fail(webhook_module.Outcome("x", 429, 1e8)) == 600


@pytest.mark.limit(20)
async def test_a_test_event_goes_to_all(tmp_path: Path) -> None:
    async with receiving() as receiver, receiving(status(500)) as broken:
        webhooks = to(receiver, types=("ban",)), to(broken)
        async with delivering(tmp_path, *webhooks) as (_, delivery):
            outcomes = await delivery.test()
            await delivery.test()
    assert [(each.shown, outcome.reason) for each, outcome in outcomes] == [
        (webhooks[0].shown, None),
        (webhooks[1].shown, "status 500"),
    ]
    assert [each["type"] for each in receiver.events] == ["test", "test"]
    names = [each.headers["trionat-delivery"] for each in receiver.got]
    assert len(set(names)) == 2
    assert all(name.startswith("test-") for name in names)


async def test_a_bug_in_one_webhook_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_errors: list[logging.LogRecord]
) -> None:
    real = template.compose

    def compose(config: WebhookConfig, *more: Any) -> Any:
        if config.types:
            raise ZeroDivisionError
        return real(config, *more)

    monkeypatch.setattr(webhook_module, "compose", compose)
    async with receiving() as receiver, receiving() as other:
        async with delivering(tmp_path, to(other, types=("ban.*",)), to(receiver)) as (hub, _):
            publish(hub, 1, 2)
            await receiver.wait(2)
    assert other.got == []
    assert len(expected_errors) == 1


@pytest.mark.parametrize(
    "secret", ["tk_hidden ", "tk_hidden\n", "tk_hidden\u00e4", "tk_hidden\udc00"]
)
async def test_a_secret_that_is_no_header_is_not_told(secret: str) -> None:
    """It stood in a traceback, and so in the log."""
    async with receiving() as receiver:
        webhook = to(receiver, template=NTFY, secret=secret)
        outcome = await send_test(webhook, "here", receiver_context())
    assert outcome.reason is not None
    assert "no HTTP header" in outcome.reason
    assert "hidden" not in outcome.reason


async def test_webhooks_come_and_go_and_one_that_stays_goes_on(tmp_path: Path) -> None:
    async with receiving() as stays, receiving() as goes, receiving() as comes:
        async with delivering(tmp_path, to(stays), to(goes)) as (hub, delivery):
            publish(hub, 1)
            await wait_until(lambda: hosts(stays) == [1] and hosts(goes) == [1])
            delivery.take_config(EventsConfig(webhooks=(to(comes), to(stays))), None)
            publish(hub, 2)
            await wait_until(lambda: hosts(stays) == [1, 2] and hosts(comes) == [2])
            delivery.take_config(EventsConfig(), None)
            publish(hub, 3)
            delivery.take_config(EventsConfig(webhooks=(to(goes),)), None)
            publish(hub, 4)
            await wait_until(lambda: hosts(goes) == [1, 4])
        assert (hosts(stays), hosts(comes)) == ([1, 2], [2])


async def test_the_first_webhook_comes_later(tmp_path: Path) -> None:
    async with receiving() as receiver, delivering(tmp_path) as (hub, delivery):
        assert delivery.tls is None
        delivery.take_config(EventsConfig(webhooks=(to(receiver),)), delivery.open_context())
        publish(hub, 1)
        await wait_until(lambda: hosts(receiver) == [1])
