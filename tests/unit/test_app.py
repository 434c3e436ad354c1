from __future__ import annotations

import logging
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import attrs
import pytest
import trio
import trio.testing

from tests.mariadb import write_certificates
from trionat.address import TCPAddress
from trionat.cli.serve import banner
from trionat.config.database import DatabaseConfig
from trionat.config.server import ServerConfig
from trionat.config.values import user_state_dir
from trionat.errors import StartupError, StoreUnavailableError
from trionat.events import Ready
from trionat.server.app import _prepare, serve

if TYPE_CHECKING:
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
    words = "\nA user's ticket: trionat user ticket NAME"
    assert f"{words} --state-dir x\n" in banner(ready)
    usual = attrs.evolve(ready, state_dir=str(user_state_dir()))
    assert f"{words}\n" in banner(usual)
    assert f"{words}\n" in banner(usual, Path("server.yml"))
    assert f"{words} --config 'my server.yml'\n" in banner(usual, Path("my server.yml"))


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


def test_the_banner_tells_of_the_cluster() -> None:
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
    )
    assert "cluster" not in banner(ready)
    address = TCPAddress("10.0.0.11", 8009)
    ready = attrs.evolve(ready, node="n1", node_addr=address, other_nodes=2)
    assert "\n  cluster         node n1 at 10.0.0.11:8009, 2 other nodes there\n" in banner(ready)
    away = attrs.evolve(ready, other_nodes=0, redis_away="Connection refused")
    assert "node n1 at 10.0.0.11:8009, Redis is away: Connection refused\n" in banner(away)


def test_the_banner_of_a_server_with_names_has_its_records_and_a_service_with_a_name() -> None:
    here = TCPAddress("203.0.113.7", 1)
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
        ticket="tn1_x",
        domain="tunnel.example.com",
    )
    told = banner(ready)
    assert "\n                  DNS record: *.tunnel.example.com. A 203.0.113.7\n" in told
    assert "\n                  DNS record: tunnel.example.com. A 203.0.113.7\n" in told
    assert "\n  trionat connect tn1_x http:8080\n" in told
    assert "\n  trionat connect tn1_x 8080\n" in banner(attrs.evolve(ready, domain=None))


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


async def test_a_port_of_names_that_is_taken_says_which_flag_moves_it(tmp_path: Path) -> None:
    any_port = TCPAddress("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(
            controller_addr=any_port,
            tunnel_addr=any_port,
            visit_port=(0,),
            domain="tunnel.example.com",
            http_addr=TCPAddress("127.0.0.1", taken.getsockname()[1]),
            https_addr=any_port,
            state_dir=tmp_path,
        )
        with pytest.raises(StartupError, match=r"already in use.*--http-addr"):
            await serve(config)


async def test_a_folder_of_certificates_that_is_not_there(tmp_path: Path) -> None:
    any_port = TCPAddress("127.0.0.1", 0)
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        domain="tunnel.example.com",
        http_addr=any_port,
        https_addr=any_port,
        state_dir=tmp_path,
        certificates_dir=tmp_path / "none",
    )
    with pytest.raises(StartupError, match=r"none: there is no such folder \(CertificatesDir\)"):
        await serve(config)


async def test_a_certificate_that_is_not_for_the_address_that_was_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    any_port = TCPAddress("127.0.0.1", 0)
    write_certificates(tmp_path, "203.0.113.7", "b.example")
    config = ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        certificate=tmp_path / "server.pem",
        certificate_key=tmp_path / "server.key",
        state_dir=tmp_path,
    )
    for public, told in ((None, True), ("b.example", False)):
        caplog.clear()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, attrs.evolve(config, public_addr=public))
            nursery.cancel_scope.cancel()
        assert ("tickets lead to an address that the certificate is not for" in caplog.text) == told
