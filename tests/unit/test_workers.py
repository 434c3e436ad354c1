"""Several processes, as far as it takes no process to see it; `tests/failover/test_workers.py` has the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.errors import StartupError
from trionat.events import Ready
from trionat.protocol.client_hello import ROUTE, alpn_names
from trionat.protocol.messages import ServiceRequest
from trionat.server.accounts.limits import Share
from trionat.server.admission.bans import Bans
from trionat.server.app import serve
from trionat.server.cluster.node import route_of
from trionat.server.events.hub import Hub
from trionat.server.registry.claim import Wish
from trionat.server.registry.table import ClaimTable
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.workers import process
from trionat.server.workers.log_relay import relay_log
from trionat.server.workers.lost_sessions import LostSessions
from trionat.server.workers.process import State, WorkerProcess
from trionat.server.workers.shared_limits import LimitTable, SharedLimits
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trio.testing import MockClock


def config(folder: Path, **settings: object) -> ServerConfig:
    nowhere = TCPAddress("127.0.0.1", 0)
    return ServerConfig(
        controller_addr=nowhere,
        tunnel_addr=nowhere,
        visit_port=(0,),
        state_dir=folder,
        **settings,  # type: ignore[arg-type]
    )


def test_one_process_needs_none_of_it() -> None:
    script = "import sys, trionat.cli.serve; print([m for m in sys.modules if 'workers' in m])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"


def test_as_many_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServerConfig().worker_count == 1
    assert ServerConfig(workers=3).worker_count == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert ServerConfig(workers=0).worker_count == 3


async def test_a_system_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("socket.AF_UNIX")
    with pytest.raises(StartupError, match=r"Server\.Workers.*Windows.*write 1"):
        await serve(config(tmp_path / "state", workers=2))
    assert not (tmp_path / "state").exists()


async def test_a_worker_gets_no_secret(tmp_path: Path) -> None:
    ready = Ready(
        name="test",
        control=TCPAddress("127.0.0.1", 1),
        tunnel=TCPAddress("127.0.0.1", 2),
        public=TCPAddress("127.0.0.1", 1),
        visit_ports=(3,),
        sessions=1,
        authentication=True,
        legacy_clients=False,
        fingerprint="",
        state_dir=str(tmp_path),
        ticket="tn1_a-ticket",
        first_user="trionat",
        first_password="a-password",
    )
    pool = PortPool([VisitPort(3)])
    parent = SimpleNamespace(
        table=ClaimTable(1, pool),
        ports=pool,
        ready=ready,
        worker_config=config(tmp_path),
        workers=[1, 2],
        node=None,
        events=Hub(),
        visitor_step=3,
        is_held=False,
        certificate=tmp_path / "server.crt",
        key=tmp_path / "server.key",
    )
    worker = WorkerProcess(parent, 0)  # type: ignore[arg-type]
    worker.claims = SimpleNamespace(room={"slots": 1, "ports": 1})  # type: ignore[assignment]
    passed = worker._start()
    said = json.dumps(passed).encode() + bytes.fromhex(passed["config"])
    assert b"server.key" in said
    assert b"tn1_" not in said
    assert b"a-password" not in said
    names = [field.name for field in attrs.fields(ServerConfig)]
    assert not [name for name in names if "password" in name or "secret" in name]


async def test_workers_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    monkeypatch.setattr(process, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit"])
    monkeypatch.setattr(process, "_STABLE_AFTER", 60.0)
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupError, match="no worker could be started"), flatten_subgroups=True
    ):
        with trio.fail_after(8):
            await serve(config(tmp_path / "state", workers=2, start_auth=False))


async def test_told_to_stop_while_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """It was seen when they were up, or after half a minute."""
    monkeypatch.setattr(
        process, "_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(20)"]
    )
    stopping = trio.Event()
    settings = config(tmp_path / "state", workers=2, start_auth=False)
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, settings, stopping=stopping))
            await trio.sleep(1)
            stopping.set()


_ENDS = "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(float(sys.argv[2]))"


@pytest.mark.parametrize(("takes", "hangs"), [(1.2, False), (20, True)])
async def test_a_worker_that_has_nothing_more_to_say_may_take_a_moment_to_end(
    takes: float,
    *,
    hangs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    nothing_left: None,
) -> None:
    """One that was told to stop was killed where its end fell on a look at it."""
    monkeypatch.setattr(
        process,
        "_command",
        lambda messages, *_: [sys.executable, "-c", _ENDS, str(messages), str(takes)],
    )
    monkeypatch.setattr(process, "BEAT", 0.8)
    with pytest.RaisesGroup(StartupError, flatten_subgroups=True):
        with trio.fail_after(12):
            await serve(config(tmp_path / "state", workers=2, start_auth=False))
    assert ("a worker hangs" in caplog.text) == hangs


async def test_a_program_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    monkeypatch.setattr(process, "_command", lambda *_: [str(tmp_path / "nothing")])
    with pytest.RaisesGroup(StartupError, flatten_subgroups=True):
        with trio.fail_after(8):
            await serve(config(tmp_path / "state", workers=2, start_auth=False))


async def test_pauses_grow_while_starts_fail(autojump_clock: MockClock) -> None:
    parent = SimpleNamespace(bans=Bans(0, 1), node=None)
    worker = WorkerProcess(parent, 0)  # type: ignore[arg-type]
    assert [worker._pause(1) for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert worker._pause(3600) == 0
    assert worker._pause(1) == 1


def test_a_worker_of_a_node_is_found_behind_a_proxy() -> None:
    """By the configurations of nginx and HAProxy that come along: all workers of all nodes were `w1`, `w2`."""
    examples = Path(__file__).parents[2] / "examples" / "cluster"
    patterns = [
        next(line for line in (examples / file).read_text().splitlines() if "trionat-n2(" in line)
        for file in ("nginx.conf", "haproxy.cfg")
    ]
    for name in ("n1", "n2", "a-long_Name" * 8):
        parent = SimpleNamespace(node=SimpleNamespace(route=route_of(name)))
        words = [WorkerProcess(parent, number).word for number in (0, 11)]  # type: ignore[arg-type]
        assert len(set(words)) == 2
        for word in words:
            assert ROUTE.fullmatch(word)
            for line in patterns:
                (pattern,) = re.findall(r"[(]\^\|,[)]\S*[(],\|\$[)]", line)
                found = re.search(pattern, ",".join(alpn_names(word)))
                assert bool(found) == (name == "n2"), (word, line)


async def test_a_session_whose_client_is_at_another_node_has_its_share() -> None:
    """It has no claim any more, and visitors that finish: the others of its user were dealt all of the limits besides."""
    limits = Limits(bandwidth=1000, visitors=4)
    table = ClaimTable(2, PortPool([VisitPort(1), VisitPort(2)]))
    shared, told = SharedLimits("ann", limits), list[Any]()
    parent: Any = SimpleNamespace(
        node=None,
        table=table,
        sessions={},
        bans=Bans(0, 1),
        traffic=SimpleNamespace(metered=lambda *_: nullcontext()),
        lost=LostSessions(table, Hub()),
    )
    parent.workers = one, two = WorkerProcess(parent, 0), WorkerProcess(parent, 1)
    parent.limits = LimitTable(table, parent.workers)
    parent.limits.by_user["ann"] = shared
    for worker in (one, two):
        worker.state, worker.link = State.UP, SimpleNamespace(post=told.append)  # type: ignore[assignment]
    wishes = [Wish(key=("ann", each), services=(ServiceRequest(),), limits=limits) for each in "ab"]
    claims = [table.claim(*each) for each in zip(wishes, ("w1", "w2"), strict=True)]
    up = {
        "uid": 1,
        "username": "ann",
        "account_id": 1,
        "credential": None,
        "host": "192.0.2.1",
        "key": ("ann", "a"),
    }
    one.sessions.begin(up, one.link)
    parent.limits.deal_all()
    assert shared.shares.keys() == {"w1", "w2"}
    assert claims[0] is not None
    table.release(claims[0])
    parent.limits.deal_all()
    assert shared.shares.keys() == {"w1", "w2"}
    told.clear()
    shared.change(Limits(bandwidth=500, visitors=4))  # holds for it as well
    parent.limits.deal_all()
    assert len(told) == 2
    one.sessions.end(1)
    parent.limits.deal_all()
    assert shared.shares == {"w2": Share(visitors=4, bandwidth=500)}
    assert claims[1] is not None
    table.release(claims[1])
    parent.limits.deal_all()
    assert parent.limits.by_user == {}


async def test_load_counts_who_was_sent_there(autojump_clock: MockClock) -> None:
    worker = WorkerProcess(SimpleNamespace(node=None), 1)  # type: ignore[arg-type]
    assert worker.word == "w2"
    worker.expect_session()
    await trio.sleep(5)
    worker.expect_session()
    assert worker.load == 2
    await trio.sleep(6)
    assert worker.load == 1
    await trio.sleep(6)
    assert worker.load == 0


async def test_a_worker_that_cannot_be_started_is_away_all_the_while(
    autojump_clock: MockClock,
) -> None:
    """Its ports are free again after `PortReservation`; each start that failed put that off."""
    worker = WorkerProcess(SimpleNamespace(node=None), 0)  # type: ignore[arg-type]
    worker._go_away()
    since = worker.away_since
    for _ in range(3):
        await trio.sleep(30)
        worker.state = State.STARTING
        worker._go_away()
    assert worker.away_since == since


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"1", b"null", b'{"time": 5}', b'{"time": "0001-01-01T00:00:00", "level": "info", "logger": "trionat"}', b'{"time": "2026-01-01T00:00:00", "level": [], "logger": 3}'],
)  # fmt: skip
async def test_a_line_that_is_no_record_is_passed_over(line: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, line + b"\n")
    os.close(writing)
    async with trio.lowlevel.FdStream(reading) as pipe:
        await relay_log(pipe, "w1")
