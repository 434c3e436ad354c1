"""`/metrics` of real servers, read by a real Prometheus: what it finds is what visitors have done."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.parse
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import running, services
from tests.e2e.running import ask
from tests.failover.test_cluster import starting
from tests.failover.test_workers import clients, status, worker_of
from tests.unit.test_exposition import expressions, samples

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tests.e2e.running import Client
    from tests.e2e.services import Service
    from tests.mariadb import MariaDB

pytestmark = pytest.mark.limit(90)

MONITORING = Path(__file__).parents[2] / "examples/monitoring"


def fetch(url: str, **headers: str) -> str:
    parts = urllib.parse.urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=20)) as connection:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise ConnectionError(text)
        return text


async def get(url: str, **headers: str) -> str:
    return await trio.to_thread.run_sync(partial(fetch, url, **headers))


async def scrape(console: int) -> dict[str, float]:
    """Read the metrics as Prometheus does, once what others were told is old."""
    await trio.sleep(1.1)
    text = await get(f"http://127.0.0.1:{console}/metrics")
    return samples(text_string_to_metric_families(text))


def counts(found: Mapping[str, float]) -> dict[str, float]:
    """Return what may not go down, but for what a process has used itself."""
    endings = ("_total", "_bucket", "_count", "_sum")
    return {
        key: value
        for key, value in found.items()
        if key.partition("{")[0].endswith(endings) and "cpu_seconds" not in key
    }


def gone_down(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    return {
        key: (value, after.get(key)) for key, value in before.items() if after.get(key, -1) < value
    }


def with_console(console: int) -> tuple[str, ...]:
    return "--console-addr", f"127.0.0.1:{console}", "--open-metrics"


async def wait_for(condition: Callable[[], Awaitable[bool]], *, within: float) -> None:
    with trio.fail_after(within):
        while not await condition():  # noqa: ASYNC110 - polls
            await trio.sleep(0.2)


async def visit(client: Client, text: bytes) -> None:
    async with await client.visit() as visitor:
        assert await ask(visitor, text) == text


@attrs.frozen
class Prometheus:
    """One that runs."""

    url: str

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return what it finds: each with its labels and the value."""
        question = urllib.parse.urlencode({"query": expression})
        answer = json.loads(await get(f"{self.url}/api/v1/query?{question}"))
        assert answer["status"] == "success"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def value(self, expression: str) -> float | None:
        """Return the one value that it finds."""
        found = await self.query(expression)
        return float(found[0]["value"][1]) if found else None


@asynccontextmanager
async def prometheus(folder: Path, console: int) -> AsyncIterator[Prometheus]:
    """Run one with the example's configuration, which asks every second here."""
    program = services.find_program("prometheus", package="prometheus")
    shutil.copytree(MONITORING, folder)
    text = (folder / "prometheus.yml").read_text("utf-8")
    text = text.replace("127.0.0.1:8090", f"127.0.0.1:{console}").replace(": 15s", ": 1s")
    (folder / "prometheus.yml").write_text(text, encoding="utf-8")
    (folder / "trionat.token").write_text("trn_nobody-asks-for-it", encoding="utf-8")

    def command(port: int) -> list[str]:
        return [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]

    async def answers(port: int, _: int) -> bool:
        return "Ready" in await get(f"http://127.0.0.1:{port}/-/ready")

    async with services.started(command, answers) as port:
        yield Prometheus(f"http://127.0.0.1:{port}")


async def test_prometheus_finds_what_visitors_have_done(
    echo_server: Service, tmp_path: Path
) -> None:
    console = services.free_low_port()
    async with (
        running.server(tmp_path / "s", *with_console(console), visit="0,0") as server,
        running.client(tmp_path / "c", server.ticket, echo_server) as client,
    ):
        for _ in range(3):
            await visit(client, b"x" * 1000)
        async with (
            await client.visit() as visitor,
            prometheus(tmp_path / "prometheus", console) as found,
        ):
            assert await ask(visitor, b"12345") == b"12345"

            async def sees(expression: str, value: float) -> bool:
                return await found.value(expression) == value

            await wait_for(partial(sees, 'trionat_visitors{state="served"}', 1), within=30)
            for expression, value in {
                'up{job="trionat"}': 1,
                "trionat_sessions": 1,
                'trionat_relayed_bytes_total{direction="received"}': 3005,
                'trionat_user_relayed_bytes_total{user="trionat", direction="sent"}': 3005,
                "trionat_visitor_duration_seconds_count": 3,
                "trionat_time_to_first_byte_seconds_count": 4,
                'trionat_visit_ports{state="free"}': 1,
                "trionat_store_up": 1,
            }.items():
                assert (expression, await found.value(expression)) == (expression, value)
            assert 0 < (await found.value("trionat_time_to_first_byte_seconds_sum") or 0) < 20
            for expression in expressions():
                if "label_values" not in expression:
                    await found.query(expression)  # fails where it does not understand
            rules = json.loads(await get(f"{found.url}/api/v1/rules"))["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            assert not await found.query('ALERTS{alertstate="firing"}')
        text = await get(
            f"http://127.0.0.1:{console}/metrics", Accept="application/openmetrics-text"
        )
        assert text.endswith("# EOF\n")
        assert server.ticket not in text


async def test_no_count_goes_down_when_clients_leave(echo_server: Service, tmp_path: Path) -> None:
    console = services.free_low_port()
    async with running.server(tmp_path / "s", *with_console(console)) as server:
        before = await scrape(console)
        assert before['trionat_refusals_total{reason="no_client"}'] == 0
        for round_ in range(2):
            async with running.client(
                tmp_path / f"c{round_}", server.ticket, echo_server
            ) as client:
                await visit(client, b"x" * 100)
                during = await scrape(console)
                assert gone_down(counts(before), counts(during)) == {}
                assert during["trionat_sessions"] == 1
                before = during
            after = await scrape(console)
            assert gone_down(counts(before), counts(after)) == {}
            assert after["trionat_sessions"] == 0
            before = after
        assert before['trionat_relayed_bytes_total{direction="received"}'] == 200
        assert before["trionat_sessions_started_total"] == 2
        assert before['trionat_handshakes_total{result="done"}'] >= 4  # with their tunnels
        assert before['trionat_handshakes_total{result="failed"}'] == 0
        assert before["trionat_handshakes_pending"] == 0


@pytest.mark.skipif(os.name != "posix", reason="several processes need Unix sockets")
async def test_workers_are_one_and_one_that_is_killed_takes_nothing_with_it(
    echo_server: Service, tmp_path: Path
) -> None:
    console = services.free_low_port()
    async with (
        running.server(
            tmp_path / "s", "--workers", "2", *with_console(console), visit="0,0"
        ) as server,
        clients(server, tmp_path, echo_server, 2) as two,
    ):
        for client in two:
            await visit(client, b"x" * 100)
        before = await scrape(console)
        assert before["trionat_sessions"] == 2
        assert before['trionat_workers{state="up"}'] == 2
        assert before['trionat_relayed_bytes_total{direction="received"}'] == 200
        assert before["trionat_visitor_duration_seconds_count"] == 2
        assert before["trionat_time_to_first_byte_seconds_count"] == 2
        assert before['trionat_worker_resident_memory_bytes{worker="w2"}'] > 2**20
        assert before['trionat_handshakes_total{result="failed"}'] == 0
        worker = await worker_of(server, two[0])
        os.kill(worker["pid"], signal.SIGKILL)

        async def is_back() -> bool:
            found = await status(server)
            return len(found["sessions"]) == 2 and found["workers"][0]["pid"] != worker["pid"]

        during = await scrape(console)
        assert gone_down(counts(before), counts(during)) == {}
        await wait_for(is_back, within=30)
        await visit(two[0], b"x" * 50)
        after = await scrape(console)
        assert gone_down(counts(during), counts(after)) == {}
        assert after['trionat_relayed_bytes_total{direction="received"}'] == 250
        assert after["trionat_sessions_started_total"] == 3
        assert sum(value for key, value in after.items() if "restarts" in key) == 1
        assert after["trionat_sessions"] == 2


@pytest.mark.limit(120)
async def test_each_node_of_a_cluster_shows_its_own(
    mariadb: MariaDB, echo_server: Service, tmp_path: Path
) -> None:
    consoles = {number: services.free_low_port() for number in (1, 2)}

    def extra(number: int) -> str:
        return f"Server:\n  ConsoleAddr: 127.0.0.1:{consoles[number]}\n  OpenMetrics: true\n"

    async with starting(mariadb, tmp_path, extra=extra) as cluster:
        client = await cluster.connect("client", echo_server)
        for number in consoles:
            assert await cluster.visit_at(number, client, b"x" * 100) == b"x" * 100
        first, second = [await scrape(console) for console in consoles.values()]
        assert sorted([first["trionat_sessions"], second["trionat_sessions"]]) == [0, 1]
        received = 'trionat_relayed_bytes_total{direction="received"}'
        assert sorted([first[received], second[received]]) == [0, 200]
        for found in (first, second):
            assert found["trionat_redis_up"] == 1
            assert found['trionat_cluster_nodes{state="up"}'] == 2


def test_nothing_of_it_is_imported_where_there_is_no_console() -> None:
    script = (
        "import sys, trionat.cli, trionat.server.app, trionat.server.single, trionat.server.workers.parent;"
        "print([name for name in sys.modules if 'prometheus' in name or 'exposition' in name])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"
