"""Several workers beside one process: eight clients, each with its own service: `python -m bench.workers`.

The load, the clients and the server share the machine, so two workers on two processors cannot show a doubling. What is looked at is what several
processes cost: throughput, processor time of the server for a request and for a GiB, how even the load is, and memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from bench.chain import open_site
from bench.load import move_bulk, send_requests
from bench.product import TRIONAT
from bench.program import HOST, Program, find, free_port, output_of, running, wait_listening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from bench.chain import Site

_GIB: Final = 2**30
_MIB: Final = 2**20
_CONNECTIONS: Final = 8
"""Of each client's load, at once."""

_SETTLE: Final = 1.0
_READY: Final = '"event": "ready"'
_CONNECTED: Final = '"event": "connected"'


@attrs.frozen(kw_only=True)
class Figures:
    """One run. `load` is the processor time of each worker, in seconds, and `memory` what each process holds, in bytes, the parent first."""

    gibit_per_second: float
    seconds_per_gib: float
    requests_per_second: float
    seconds_per_request: float
    sessions: tuple[int, ...]
    load: tuple[float, ...]
    memory: tuple[int, ...]


@attrs.frozen
class _Client:
    bulk: int
    requests: int


async def measure(workers: int, clients: int, seconds: int, requests: int) -> Figures:
    """Build a server with so many workers and clients, and put load on all of them at once."""
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(0))
        server, state, found = await _build(site, workers, clients)
        await trio.sleep(_SETTLE)
        before = server.processor_seconds
        moved = await _at_once([partial(_move, client, seconds) for client in found])
        bulk_seconds = server.processor_seconds - before
        before = server.processor_seconds
        asked = await _at_once([partial(_ask, client, requests) for client in found])
        request_seconds = server.processor_seconds - before
        status = json.loads(
            await output_of([*TRIONAT, "status", "--json", "--state-dir", state], within=20)
        )
        parts = [Program(each["name"], each["pid"], server.output) for each in status["workers"]]
        whole = server.resident_bytes
        memory = [part.resident_bytes for part in parts]
        return Figures(
            gibit_per_second=sum(rate for _, rate in moved) / _GIB,
            seconds_per_gib=bulk_seconds / (sum(size for size, _ in moved) / _GIB),
            requests_per_second=sum(rate for _, rate in asked),
            seconds_per_request=request_seconds / sum(size for size, _ in asked),
            sessions=tuple(each["sessions"] for each in status["workers"]),
            load=tuple(part.processor_seconds for part in parts),
            memory=(whole - sum(memory), *memory),
        )


async def _build(site: Site, workers: int, clients: int) -> tuple[Program, Path, Sequence[_Client]]:
    state = site.folder / "state"
    serve: list[object] = [*TRIONAT, "serve", "--json", "--controller-addr", f"{HOST}:0"]
    serve += ["--tunnel-addr", f"{HOST}:0", "--expose-port", ",".join(["0"] * 2 * clients)]
    serve += ["--workers", str(workers), "--state-dir", state]
    async with running("first-start", serve, site.folder) as first:  # makes its key
        await first.wait_words(_READY)
    server = await site.run("serve", *serve)
    ticket = json.loads(await server.wait_words(_READY))["ticket"]
    redis_port = free_port()
    redis = find("redis-server", package="redis-server")
    options = ["--bind", HOST, "--port", redis_port, "--save", "", "--appendonly", "no"]
    await site.run("redis", redis, *options)
    found: list[_Client] = []
    for number in range(clients):
        bulk = free_port()
        await site.run(
            f"iperf3-{number}", find("iperf3", package="iperf3"), "-s", "-B", HOST, "-p", bulk
        )
        await wait_listening(bulk, redis_port)
        command = [*TRIONAT, "connect", "--json", "--state-dir", site.folder / f"client-{number}"]
        name = f"connect-{number}"
        client = await site.run(name, *command, bulk, redis_port, TRIONAT_TICKET=ticket)
        connected = json.loads(await client.wait_words(_CONNECTED))
        ports = [int(each["public"].rpartition(":")[2]) for each in connected["services"]]
        found.append(_Client(*ports))
    return server, state, found


async def _move(client: _Client, seconds: int) -> tuple[float, float]:
    bulk = await move_bulk(client.bulk, streams=1, seconds=seconds)
    return bulk.bytes, bulk.bits_per_second


async def _ask(client: _Client, requests: int) -> tuple[float, float]:
    told = await send_requests(client.requests, connections=_CONNECTIONS, requests=requests)
    return requests, told.per_second


async def _at_once(
    jobs: Sequence[Callable[[], Awaitable[tuple[float, float]]]],
) -> list[tuple[float, float]]:
    results: list[tuple[float, float]] = []

    async def run(job: Callable[[], Awaitable[tuple[float, float]]]) -> None:
        results.append(await job())

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job)
    return results


def _median(runs: Sequence[Figures], name: str) -> float:
    return float(statistics.median(getattr(run, name) for run in runs))


def _tell(one: Sequence[Figures], several: Sequence[Figures]) -> bool:
    """Print the comparison; tell whether all bounds are kept."""
    kept = True
    for name, unit, bound in (
        ("gibit_per_second", "Gibit/s, all clients", 0.9),
        ("requests_per_second", "requests/s, all clients", 0.9),
        ("seconds_per_gib", "s of the server's processors for a GiB", -1.1),
        ("seconds_per_request", "s of the server's processors for a request", -1.1),
    ):
        before, after = _median(one, name), _median(several, name)
        ratio = after / before
        good = ratio >= bound if bound > 0 else ratio <= -bound
        kept = kept and good
        relation = f"at least {bound}" if bound > 0 else f"at most {-bound}"
        words = "kept" if good else "NOT KEPT"
        print(f"{before:.6g} -> {after:.6g} {unit}: {ratio:.2f} times ({relation}: {words})")
    for run in several:
        even = statistics.mean(run.load)
        off = max(abs(load - even) / even for load in run.load)
        kept = kept and off <= 0.2
        words = "kept" if off <= 0.2 else "NOT KEPT"
        shares = ", ".join(f"{load:.1f} s" for load in run.load)
        print(
            f"sessions {run.sessions}, load {shares}: {off:.0%} from even (at most 20 %: {words})"
        )
    memory = ", ".join(f"{size / _MIB:.0f}" for size in several[-1].memory)
    print(
        f"memory: one process {one[-1].memory[0] / _MIB:.0f} MiB; parent and workers {memory} MiB"
    )
    return kept


async def _run(options: argparse.Namespace) -> bool:
    seconds, requests, rounds = (1, 2000, 1) if options.quick else (8, 40_000, options.rounds)
    one: list[Figures] = []
    several: list[Figures] = []
    for number in range(rounds):
        for workers, runs in ((1, one), (options.workers, several)):
            runs.append(await measure(workers, options.clients, seconds, requests))
            print(f"round {number + 1}, {workers} workers: {runs[-1]}", flush=True)
    return _tell(one, several)


def main() -> int:
    """Measure and print; exit with 1 where a bound is not kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a second of each: shows that it works"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    return 0 if trio.run(_run, parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
