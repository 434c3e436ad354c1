"""The load generators: what they are told, and what they tell."""

from __future__ import annotations

import csv
import json
from typing import Final

import attrs
import trio

from bench.program import HOST, FailedError, find, output_of

_PATIENCE: Final = 120.0
"""Seconds for a generator to end, besides what it was asked for; the slowest chain needs a small part of it."""
_TRIES_WHILE_BUSY: Final = 20
"""What is still under way from the last transfer keeps iperf3's server busy; it serves one at a time."""


@attrs.frozen(kw_only=True)
class Bulk:
    """What iperf3 has moved."""

    bytes: int
    bits_per_second: float


async def move_bulk(port: int, *, streams: int, seconds: int, outward: bool = False) -> Bulk:
    """Move bytes to the service, or `outward`, from it, as fast as they go.

    Raises:
        FailedError: iperf3 says why.
    """
    program = find("iperf3", package="iperf3")
    command = [program, "-c", HOST, "-p", port, "-t", seconds, "-P", streams, "-J"]
    command += ["-R"] if outward else []
    error = ""
    for _ in range(_TRIES_WHILE_BUSY):
        told = json.loads(await output_of(command, within=seconds + _PATIENCE))
        error = told.get("error", "")
        if not error:
            received = told["end"]["sum_received"]
            return Bulk(bytes=received["bytes"], bits_per_second=received["bits_per_second"])
        if "busy" not in error:
            break
        await trio.sleep(1)
    raise FailedError(f"iperf3: {error}")


@attrs.frozen(kw_only=True)
class Requests:
    """What redis-benchmark has seen: a rate, and times in milliseconds from a request to its answer."""

    per_second: float
    p50: float
    p99: float


async def send_requests(
    port: int, *, connections: int, requests: int, keep: bool = True
) -> Requests:
    """Send that many requests over so many connections at once; without `keep`, each over one of its own."""
    program = find("redis-benchmark", package="redis-tools")
    command = [program, "-h", HOST, "-p", port, "-c", connections, "-n", requests]
    command += ["--csv"] + (["-t", "get"] if keep else ["-t", "ping_mbulk", "-k", "0"])
    lines = (await output_of(command, within=_PATIENCE)).splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith('"test"'))
    row = next(csv.DictReader(lines[header:]))
    return Requests(
        per_second=float(row["rps"]),
        p50=float(row["p50_latency_ms"]),
        p99=float(row["p99_latency_ms"]),
    )
