"""Programs that the suite runs: finding, starting, waiting for, measuring and stopping them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

HOST: Final = "127.0.0.1"
START_TIMEOUT: Final = 20.0
"""Seconds for a program to be up: a fraction of one on a quiet machine."""
_LOOK_INTERVAL: Final = 0.02
_LISTEN: Final = "0A"
"""The state of a listening socket in /proc/net/tcp: TCP_LISTEN of the kernel's net/tcp_states.h."""
_ALL: Final = ("0.0.0.0", "::")  # noqa: S104 (looked for, not listened on)
"""All addresses; a socket of IPv6 takes IPv4 as well."""
_LAST_WORDS: Final = 2000

_BLOCK: Final = 256
"""Ports that a process has for itself."""
_guards: Final[list[socket.socket]] = []


class MissingError(Exception):
    """What is to be measured is not here; the message says what is missing, and how to get it."""


class FailedError(Exception):
    """A measurement did not come off; the message says what happened."""


def find(name: str, *, package: str = "", origin: str = "") -> Path:
    """Return the path of an installed program, which comes in a package of Debian's, or from elsewhere.

    Raises:
        MissingError: there is none; the message says where it comes from.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        where = f"Debian's package {package}" if package else origin
        raise MissingError(f"{name} is not installed ({where})")
    return Path(found)


def free_port() -> int:
    """Return a port that nobody listens on now, that no outgoing connection can take, and that no other process returns as well."""
    for port in _ports():
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError("there are always more")


@cache
def _ports() -> Iterator[int]:
    """One after another from a block of ports that is this process's, since it holds the first one as long as it runs."""
    while True:
        first = random.randrange(20_000, 32_768, _BLOCK)  # noqa: S311 (nothing to guess here)
        guard = socket.socket()
        with suppress(OSError):
            guard.bind((HOST, first))
            break
        guard.close()
    _guards.append(guard)
    return cycle(range(first + 1, min(first + _BLOCK, 32_768)))


@attrs.frozen
class Program:
    """A running program, with the processes that it has started; `output` is the file of all that it says.

    `ended` is set when it has ended by itself.
    """

    name: str
    pid: int
    output: Path
    ended: trio.Event = attrs.field(factory=trio.Event, eq=False)

    @property
    def processor_seconds(self) -> float:
        """Processor time so far, in user mode and in the kernel's, of those of its processes that live."""
        ticks = sum(sum(map(int, stat[11:13])) for stat in self._processes())
        return ticks / os.sysconf("SC_CLK_TCK")

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds now; what its processes share counts for each of them."""
        return sum(int(stat[21]) for stat in self._processes()) * os.sysconf("SC_PAGE_SIZE")

    def _processes(self) -> list[list[str]]:
        """Return the fields of /proc/PID/stat behind the name, from the third on (proc(5)), of it and its descendants."""
        stats: dict[int, list[str]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                text = (folder / "stat").read_text()
                stats[int(folder.name)] = text.rpartition(")")[2].split()
        family = {self.pid}
        while more := {pid for pid, stat in stats.items() if int(stat[1]) in family} - family:
            family |= more
        return [stats[pid] for pid in family if pid in stats]

    async def wait_words(self, words: str) -> str:
        """Wait until it has said a whole line with `words` in it, and return that line.

        Raises:
            FailedError: it does not come in time.
        """
        with trio.move_on_after(START_TIMEOUT):
            while True:
                for line in self.output.read_text(errors="replace").splitlines(keepends=True):
                    if words in line and line.endswith("\n"):
                        return line
                await trio.sleep(_LOOK_INTERVAL)
        raise FailedError(f"{self.name} did not say {words!r}, but: {_end_of(self.output)}")


def _end_of(output: Path) -> str:
    return output.read_text(errors="replace")[-_LAST_WORDS:].strip()


@asynccontextmanager
async def running(
    name: str, command: Sequence[object], folder: Path, *, may_end: bool = False, **environ: str
) -> AsyncGenerator[Program]:
    """Run a program in `folder` until the block is left, with no `TRIONAT_` variables but those of `environ`.

    The words of the command are what `str` makes of them.

    Raises:
        FailedError: it ended by itself, and `may_end` does not say that it may; the block is cancelled then.
    """
    output = folder / f"{name}.out"
    inherited = {key: value for key, value in os.environ.items() if key[:8] != "TRIONAT_"}
    ended_by_itself = trio.Event()
    with output.open("wb") as file:
        program = partial(
            trio.run_process,
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=inherited | environ,
            check=False,
        )

        async def run(*, task_status: trio.TaskStatus[trio.Process]) -> None:  # noqa: ASYNC128 - run_process tells
            ended = await program(task_status=task_status)
            ended_by_itself.set()
            if may_end:
                return
            raise FailedError(f"{name} ended with {ended.returncode}: {_end_of(output)}")

        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            yield Program(name, process.pid, output, ended_by_itself)
            nursery.cancel_scope.cancel("it is not needed any more")


async def output_of(command: Sequence[object], *, within: float) -> str:
    """Return what a program says that ends by itself, both of its outputs.

    Raises:
        FailedError: it ends otherwise than well, or not within so many seconds.
    """
    words = list(map(str, command))
    try:
        with trio.fail_after(within):
            result = await trio.run_process(
                words, capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
    except trio.TooSlowError:
        raise FailedError(f"{words[0]} did not end within {within:g} s") from None
    text = result.stdout.decode(errors="replace").strip()
    if result.returncode:
        raise FailedError(f"{words[0]} ended with {result.returncode}: {text[-_LAST_WORDS:]}")
    return text


async def wait_listening(*ports: int, host: str = HOST) -> None:
    """Wait until somebody listens on all these ports, on `host` or on all addresses.

    It connects to none of them: that could count as a visitor.

    Raises:
        FailedError: nobody does in time.
    """
    waited_for = set(ports)
    with trio.move_on_after(START_TIMEOUT):
        while True:
            listening = _listening()
            waited_for = {p for p in ports if not {(h, p) for h in (host, *_ALL)} & listening}
            if not waited_for:
                return
            await trio.sleep(_LOOK_INTERVAL)
    raise FailedError(f"nobody listens on {host}, ports {sorted(waited_for)}")


def _listening() -> set[tuple[str, int]]:
    """Return the addresses on which somebody listens."""
    found: set[tuple[str, int]] = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTEN:
                    host, port = local.split(":")
                    found.add((_address(family, bytes.fromhex(host)), int(port, 16)))
    return found


def _address(family: socket.AddressFamily, words: bytes) -> str:
    """Write an address for people, whose words of 4 bytes are in this machine's order: little-endian wherever this runs."""
    turned = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return socket.inet_ntop(family, turned)
