from __future__ import annotations

import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, cast

import attrs
import pytest
import trio
import trio.testing

from trionat.address import TCPAddress
from trionat.cli.serve import banner
from trionat.config.database import DatabaseConfig
from trionat.config.server import ServerConfig
from trionat.errors import StartupError, StoreUnavailableError
from trionat.events import Ready
from trionat.server.app import _prepare, serve

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.store.base import Store


@attrs.define(eq=False)
class Awaited:
    """As much of a store as is asked: it cannot be used for these reasons, one after another, and then it can."""

    reasons: list[str]
    asked: int = 0

    async def prepare(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.reasons:
            raise StoreUnavailableError(self.reasons.pop(0))


async def test_a_store_is_waited_for_and_every_reason_told_once(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Awaited(["refused", "refused", "refused", "no table", "no table"])
    caplog.set_level(logging.INFO, logger="trionat")
    start = trio.current_time()
    assert await _prepare(cast("Store", store), wait=True, stopping=trio.Event())
    assert trio.current_time() - start == 5 * 2.0
    assert store.asked == 6
    told = [record.getMessage() for record in caplog.records]
    assert [("refused" in text, "no table" in text) for text in told[:-1]] == [
        (True, False),
        (False, True),
    ]
    assert "the store is there" in told[-1]


async def test_without_waiting_the_first_reason_is_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Awaited(["refused"])
    with pytest.raises(StoreUnavailableError, match="refused"):
        await _prepare(cast("Store", store), wait=False, stopping=trio.Event())
    assert await _prepare(cast("Store", store), wait=False, stopping=trio.Event())
    assert caplog.records == []


@pytest.mark.parametrize("how", ["called", "started"])
async def test_a_planned_stop_is_heard_while_the_store_is_waited_for(
    nothing_left: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    nowhere = DatabaseConfig(username="u", host="127.0.0.1:1", db_name="d", wait=True)
    any_port = TCPAddress("127.0.0.1", 0)
    config = ServerConfig(
        controller_addr=any_port, tunnel_addr=any_port, visit_port=(0,), state_dir=tmp_path
    )
    stopping = trio.Event()

    async def stop() -> None:
        while "waiting for the store" not in caplog.text:  # noqa: ASYNC110 - polls
            await trio.sleep(0.01)
        stopping.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            job = partial(serve, config, database=nowhere, stopping=stopping)
            if how == "called":
                await job()
            else:
                with pytest.raises(StartupError, match="told to stop before it was up"):
                    await nursery.start(job)


async def test_where_nobody_logs_in_a_database_that_is_down_holds_nothing_up(
    nothing_left: None, tmp_path: Path
) -> None:
    nowhere = DatabaseConfig(username="u", host="127.0.0.1:1", db_name="d")
    any_port = TCPAddress("127.0.0.1", 0)
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        start_auth=False,
        state_dir=tmp_path,
    )
    async with trio.open_nursery() as nursery:
        ready: Ready = await nursery.start(partial(serve, config, database=nowhere))
        assert ready.ticket is not None
        assert "users" not in banner(ready)
        nursery.cancel_scope.cancel()
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        await serve(attrs.evolve(config, start_auth=True), database=nowhere)


def test_the_banner_tells_where_the_users_are() -> None:
    nowhere = TCPAddress("127.0.0.1", 1)
    ready = Ready(
        name="x",
        control=nowhere,
        tunnel=nowhere,
        public=nowhere,
        visit_ports=(1,),
        sessions=1,
        authentication=True,
        fingerprint="x",
        state_dir="x",
        database="nat at db.example:3306",
    )
    assert "\n  users           in the database nat at db.example:3306\n" in banner(ready)
    assert "\nA user's ticket: trionat user ticket NAME\n" in banner(ready)


def test_the_banner_tells_where_proxies_come_to() -> None:
    here = TCPAddress("127.0.0.1", 1)
    ready = Ready(
        name="x",
        control=here,
        tunnel=here,
        public=here,
        visit_ports=(1,),
        sessions=1,
        authentication=True,
        fingerprint="x",
        state_dir="x",
        proxy_visit=TCPAddress("10.0.0.11", 7000),
    )
    assert "\n  from proxies    visitors at 10.0.0.11:7000\n" in banner(ready)
    ready = attrs.evolve(ready, proxy_control=TCPAddress("10.0.0.11", 7007))
    told = "\n  from proxies    clients at 10.0.0.11:7007, visitors at 10.0.0.11:7000\n"
    assert told in banner(ready)
    assert "from proxies" not in banner(attrs.evolve(ready, proxy_control=None, proxy_visit=None))


async def test_legacy_clients_are_told_of_at_the_start(
    nothing_left: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    any_port = TCPAddress("127.0.0.1", 0)
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        start_auth=False,
        legacy_clients=True,
        state_dir=tmp_path,
    )
    async with trio.open_nursery() as nursery:
        ready: Ready = await nursery.start(partial(serve, config))
        nursery.cancel_scope.cancel()
    words = "let in: their traffic can be read on the way"
    assert [record.levelname for record in caplog.records if words in record.getMessage()] == [
        "WARNING"
    ]
    assert f"\n  NAT clients     {words}\n" in banner(ready)
    assert words not in banner(attrs.evolve(ready, legacy_clients=False))


async def test_a_visit_port_that_is_taken_does_not_prevent_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig(
            controller_addr=TCPAddress("127.0.0.1", 0),
            tunnel_addr=TCPAddress("127.0.0.1", 0),
            visit_port=(port, 0),
            state_dir=tmp_path,
        )
        async with trio.open_nursery() as nursery:
            ready = await nursery.start(serve, config)
            assert len(ready.visit_ports) == 1
            assert port not in ready.visit_ports
            nursery.cancel_scope.cancel()
        assert f"visit ports are left out (VisitPortPolicy) ports={port}" in caplog.text
        for other in (
            attrs.evolve(config, visit_port_policy="require"),
            attrs.evolve(config, visit_port=(port,)),
        ):
            with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}"):
                await serve(other)
