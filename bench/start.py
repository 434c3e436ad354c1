"""How long trionat's commands take to start, and how much memory they hold then: `python -m bench.start`.

A server and a client have all extras off; their memory is what is resident a second after they are up, that of a command which ends is the most
it ever was. Each is started once beforehand, so that the bytecode and the server's keys are there. On a busy machine only the time of the processor tells
something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from bench.product import TRIONAT
from bench.program import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SETTLE: Final = 1.0
_KIB: Final = 1024
_MIB: Final = 2**20
_TOLD: Final = """
import atexit, sys, time
from pathlib import Path
def tell():
    print(*(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")), time.process_time(), file=sys.stderr)
atexit.register(tell)
from trionat.cli import main
main()
"""
"""The program of trionat, which says in the end how much memory it held at most. Of a process that has ended the kernel tells no less than its parent held."""

_ANY_PORT: Final = f"{HOST}:0"


@attrs.frozen
class Start:
    """One start: how long until it was up, or over, and how much of that the processor was busy with it, in seconds, and how much memory it held, in bytes."""

    seconds: float
    processor: float
    memory: int


@contextmanager
def running(*command: str) -> Iterator[tuple[Start, str]]:
    """Start a command that stays, wait for its first line, and give what that start took, and the line; leaving ends it."""
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - trionat itself
        [*TRIONAT, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - began
            # Behind the name, as in proc(5): fields 14 and 15 are processor time, 24 is memory.
            stat = Path(f"/proc/{process.pid}/stat")
            ticks = sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
            time.sleep(_SETTLE)
            pages = int(stat.read_text().rpartition(")")[2].split()[21])
            start = Start(
                seconds, ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")
            )
            yield start, line
        finally:
            process.terminate()


def run(*command: str) -> Start:
    """Run a command to its end."""
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - trionat itself
        [sys.executable, "-c", _TOLD, *command], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - began
    _, memory, _, processor = done.stderr.split()
    return Start(seconds, float(processor), int(memory) * _KIB)


def measure(folder: str) -> dict[str, Start]:
    """Start each of the commands once."""
    state = ("--state-dir", folder)
    addresses = ("-c", _ANY_PORT, "-t", _ANY_PORT, "-p", "0")
    found = {}
    with running("serve", "--json", "--start-log", "false", *addresses, *state) as (server, line):
        found["serve"] = server
        ticket = json.loads(line)["ticket"]
        with running("connect", "--json", ticket, str(free_port()), *state) as (client, _):
            found["connect"] = client
    found["--version"] = run("--version")
    found["--help"] = run("--help")
    return found


def _row(name: str, starts: Sequence[Start]) -> str:
    seconds = statistics.median(start.seconds for start in starts)
    processor = statistics.median(start.processor for start in starts)
    memory = statistics.median(start.memory for start in starts) / _MIB
    return f"| `trionat {name}` | {seconds:.2f} s | {processor:.2f} s | {memory:.1f} MiB |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trionat-bench-") as folder:
        rounds = [measure(folder) for _ in range(options.rounds + 1)][1:]
    print("| | start | of that the processor | memory |\n| --- | --- | --- | --- |")
    for name in rounds[0]:
        print(_row(name, [found[name] for found in rounds]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
