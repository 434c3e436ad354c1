"""A trionat server and its clients as processes, as a user runs them, and connections of visitors that look closely.

Leaving a server or a client is a check of its own: it ends by itself, with exit code 0 (unless the test has ended it), and its
log has neither a traceback nor the ticket.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.e2e import services
from trionat.address import parse_tcp_address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from tests.e2e.services import TrionatProcess

START_TIMEOUT = 20.0
"""Seconds for a process of ours to be up: one on an idle machine, many times that on a busy one."""
LOG_TIMEOUT = 5.0


@attrs.define(eq=False)
class Logged:
    """A log file of trionat's."""

    log_file: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it has so far; a line that is still being written is left out."""
        if not self.log_file.exists():
            return []
        lines = self.log_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    async def wait_record(
        self,
        event: str,
        *,
        count: int = 1,
        after: int = 0,
        within: float = LOG_TIMEOUT,
        **fields: object,
    ) -> dict[str, Any]:
        """Return the `count`-th record of that event with these fields, waiting for it; fail the test if it does not come.

        The first `after` records do not count: a log that several tests share may have the same address twice.
        """
        with trio.move_on_after(within):
            while True:
                found = [
                    record
                    for record in self.records[after:]
                    if record["event"] == event and fields.items() <= record.items()
                ]
                if len(found) >= count:
                    return found[count - 1]
                await trio.sleep(0.02)
        raise AssertionError(f"no record {event!r} with {fields} among:\n" + self.log_text())

    def log_text(self) -> str:
        """Return all of it."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def check_log(self, *secrets: str) -> None:
        """Check what holds of every log, whatever happened."""
        text = self.log_text()
        assert "Traceback" not in text, text
        assert not [record for record in self.records if record["level"] == "error"], text
        assert not [secret for secret in secrets if secret in text], "a secret is in the log"


@attrs.define(eq=False)
class Running(Logged):
    """A trionat process and its log. `ended` says that the test ends it, or looks at its end, itself."""

    process: TrionatProcess
    ended: bool = False

    def log_text(self) -> str:
        """Return the log file's text, and standard error's."""
        return super().log_text() + self.process.errors.decode()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.ended = True
        self.process.process.kill()

    def terminate(self) -> None:
        """Send SIGTERM: the planned stop."""
        self.ended = True
        self.process.process.terminate()

    async def wait(self, *, within: float = START_TIMEOUT) -> int:
        """Return the exit code."""
        self.ended = True
        return await self.process.wait(within=within)

    def check_end(self, *secrets: str) -> None:
        """Check the log, and that it ended as it should."""
        self.check_log(*secrets)
        if not self.ended:
            code = self.process.process.returncode
            assert code == 0, f"it was asked to stop and ended with {code}:\n{self.log_text()}"


@attrs.define(eq=False)
class Server(Running):
    """A server that is up; `ready` is its event of that name."""

    ready: dict[str, Any] = attrs.field(factory=dict, repr=False)
    state: Path = Path()

    @property
    def ticket(self) -> str:
        """The first user's ticket."""
        return str(self.ready["ticket"])

    @property
    def control(self) -> tuple[str, int]:
        """Host and port of the control address."""
        address = parse_tcp_address(self.ready["control"])
        return address.host, address.port


@attrs.define(eq=False)
class Client(Running):
    """A client that is up; `connected` is its latest event of that name."""

    connected: dict[str, Any] = attrs.field(factory=dict)

    async def wait_connected(self, *, within: float = START_TIMEOUT) -> None:
        """Wait for the next `connected` event."""
        self.connected = await self.process.next_event("connected", within=within)

    def port(self, service: int = 0) -> int:
        """Return the visit port of a service."""
        return parse_tcp_address(self.connected["services"][service]["public"]).port

    async def visit(self, service: int = 0) -> trio.SocketStream:
        """Connect as a visitor; the caller closes."""
        return await trio.open_tcp_stream(services.HOST, self.port(service))


@asynccontextmanager
async def server(
    folder: Path,
    *flags: str | Path,
    control: str = "127.0.0.1:0",
    visit: str = "0",
    inside: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Run `trionat serve` on the loopback, with all its files in `folder`; it is ready when this yields. `inside`: what runs it."""
    await trio.Path(folder).mkdir(exist_ok=True)
    state, log_file = folder / "state", folder / "server.log"
    options: list[str | Path] = [
        "--tunnel-addr",
        "127.0.0.1:0",
        "--state-dir",
        state,
        "--log-name",
        log_file,
    ]
    async with services.trionat_process(
        *("serve", "--json", "--controller-addr", control, "--expose-port", visit),
        *(*options, *flags),
        stdin=b"",
        cwd=folder,
        inside=inside,
        **environ or {},
    ) as process:
        ready = await process.next_event("ready", within=START_TIMEOUT)
        running = Server(log_file, process, ready=ready, state=state)
        yield running
    running.check_end(*filter(None, [ready.get("ticket")]))


@asynccontextmanager
async def client_process(
    folder: Path,
    *arguments: str | Path,
    stdin: bytes | None = b"",
    inside: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """Run `trionat connect` with all its files in `folder`, whatever comes of it. `inside`: what runs it."""
    await trio.Path(folder).mkdir(exist_ok=True)
    log_file = folder / "client.log"
    async with services.trionat_process(
        *("connect", *arguments, "--json", "--state-dir", folder / "state"),
        *("--log-name", log_file),
        stdin=stdin,
        cwd=folder,
        inside=inside,
        **environ or {},
    ) as process:
        running = Client(log_file, process)
        yield running
    running.check_end(
        *(str(word) for word in arguments if str(word).startswith(("tn1_", "tn2_", "tn3_")))
    )


@asynccontextmanager
async def client(
    folder: Path,
    ticket: str,
    *arguments: object,
    inside: Sequence[str] = (),
    stdin: bytes | None = b"",
) -> AsyncIterator[Client]:
    """Run `trionat connect` with a ticket; it is connected when this yields. Services and flags are what `str` makes of them."""
    async with client_process(
        folder, ticket, *map(str, arguments), inside=inside, stdin=stdin
    ) as running:
        await running.wait_connected()
        yield running


@attrs.frozen(kw_only=True)
class Pair:
    """A server and a client that several tests share; the client's service is whatever listens on `local_port`."""

    server: Logged
    client: Logged
    local_port: int
    visit_port: int

    async def visit(self) -> trio.SocketStream:
        """Connect as a visitor; the caller closes."""
        return await trio.open_tcp_stream(services.HOST, self.visit_port)


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """Run a server and a client without Trio, so that they can outlive a test's run of it. The end is checked as ever."""
    local_port = services.free_low_port()
    with (
        standing_server(folder) as (server, ready),
        _standing(folder / "client", "connect", ready["ticket"], local_port) as (client, _),
    ):
        _wait_checked(client)
        [visit_port] = ready["visit_ports"]
        yield Pair(server=server, client=client, local_port=local_port, visit_port=visit_port)


def _wait_checked(client: Logged) -> None:
    """Wait until it has looked whether its service is there: it is not, and a test that plays it would take the look for a visitor."""
    until = time.monotonic() + START_TIMEOUT
    while not any(
        record["event"].startswith("the local service is down") for record in client.records
    ):
        assert time.monotonic() < until, "it did not look whether its service is there"
        time.sleep(0.01)


@contextmanager
def standing_server(
    folder: Path, *flags: str, visit: str = "0"
) -> Iterator[tuple[Logged, dict[str, Any]]]:
    """Run a server without Trio; yields its log and its `ready`. Its state is in `folder / "server"`."""
    addresses = ["--controller-addr", "127.0.0.1:0", "--tunnel-addr", "127.0.0.1:0"]
    arguments = ("serve", *addresses, "--expose-port", visit, *flags)
    with _standing(folder / "server", *arguments) as server:
        yield server


@contextmanager
def _standing(state: Path, *arguments: str | int) -> Iterator[tuple[Logged, dict[str, Any]]]:
    """Run trionat with its log beside its state folder; yields the log and the first event."""
    log = Logged(state.with_suffix(".log"))
    files = ["--state-dir", state, "--log-name", log.log_file]
    process = subprocess.Popen(
        services.trionat_command(*map(str, arguments), "--json", *map(str, files)),
        cwd=state.parent,
        env=services.trionat_environ(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield log, json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=START_TIMEOUT)
    told = {json.loads(line)["event"] for line in output.splitlines()}
    assert told <= {"service-down", "service-up"}, "it told of something else than its start"
    assert process.returncode == 0
    log.check_log("tn1_")


async def wait_until(condition: Callable[[], bool], *, within: float = LOG_TIMEOUT) -> None:
    """Wait for what nothing tells of; fail the test if it does not come."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 (that is what it is for)
            await trio.sleep(0.01)


# --- visitors ---


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Read to the end."""
    return b"".join([data async for data in stream])


async def read_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Read that many bytes; fail where the stream ends before."""
    data = bytearray()
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"the stream ended after {bytes(data[:100])!r}"
        data += more
    return bytes(data)


async def ask(stream: trio.SocketStream, question: bytes) -> bytes:
    """Send, and read an answer of the same length."""
    await stream.send_all(question)
    return await read_exactly(stream, len(question))


def reset(stream: trio.SocketStream) -> None:
    """Close so that the other end sees RST."""
    # Zero seconds to linger: close() sends RST instead of FIN (socket(7), SO_LINGER).
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def end_of(stream: trio.SocketStream) -> str:
    """Read to the end and tell what it was: `end` or `reset`; what came before does not matter."""
    try:
        await read_all(stream)
    except trio.BrokenResourceError as error:
        if not isinstance(error.__cause__, ConnectionResetError | BrokenPipeError):
            raise
        return "reset"
    return "end"


def name_of(stream: trio.SocketStream) -> str:
    """Return our own address on a connection, as the other side's log calls us."""
    host, port = stream.socket.getsockname()
    return f"{host}:{port}"
