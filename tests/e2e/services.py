"""Real services to expose in end-to-end tests, and trionat itself as a process.

Each is an asynchronous context manager: it yields when the service answers, and when it is left nothing of it is left. All
listen on the loopback, on a port below 32768 so that no outgoing connection can take it. A program that is missing skips the
test and names the Debian package, except where `CI` is set: there everything has to be installed.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import h11
import pytest
import trio
import trio_websocket

from bench.program import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

HOST = "127.0.0.1"
READY_TIMEOUT = 10.0
"""Seconds for a service to answer; Redis and sshd take 0.1 on an idle machine, many times that on a busy one."""
STOP_TIMEOUT = 5.0
PORT_ATTEMPTS = 20
START_ATTEMPTS = 3
WEBSOCKET_MESSAGE_BYTES = 16 * 1024 * 1024

_PATTERN = random.Random(1).randbytes(1_048_573)
"""What `/bytes` is made of. The length is a prime, so that a piece that is lost, doubled or swapped changes the digest."""

Handler: TypeAlias = "Callable[[trio.SocketStream], Awaitable[None]]"


@attrs.frozen
class Service:
    """Where a service listens."""

    port: int
    host: str = HOST

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self) -> trio.SocketStream:
        """Connect to it; the caller closes."""
        return await trio.open_tcp_stream(self.host, self.port)


# --- services made here ---


@asynccontextmanager
async def serve(handler: Handler, *, port: int | None = None) -> AsyncIterator[Service]:
    """Serve connections with a handler of yours; a peer that goes away in the middle is none of its business.

    `port` is one of `free_low_port`, where it has to be known before.
    """

    async def guarded(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(stream)

    if port is None:
        listeners = await _listen_on_low_port()
    else:
        listeners = await trio.open_tcp_listeners(port, host=HOST)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, guarded, listeners)
        yield Service(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def echo(
    *, login: bytes = b"", farewell: bytes = b"", port: int | None = None
) -> AbstractAsyncContextManager[Service]:
    """Send back what comes; `login` goes out before anything came, `farewell` after the other side has ended.

    Half-close is exact: the end of input ends the output only after everything is sent, and nothing else ends it.
    """

    async def handler(stream: trio.SocketStream) -> None:
        if login:
            await stream.send_all(login)
        async for data in stream:
            await stream.send_all(data)
        if farewell:
            await stream.send_all(farewell)
        await stream.send_eof()

    return serve(handler, port=port)


def sink() -> AbstractAsyncContextManager[Service]:
    """Accept and never read, so that whoever sends comes to a stop when the buffers are full."""

    async def handler(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    return serve(handler)


def resetter(*, after: int = 0, port: int | None = None) -> AbstractAsyncContextManager[Service]:
    """Accept, read `after` bytes, and reset the connection."""

    async def handler(stream: trio.SocketStream) -> None:
        count = 0
        while count < after and (data := await stream.receive_some()):
            count += len(data)
        # Zero seconds to linger: close() sends RST instead of FIN (socket(7), SO_LINGER).
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return serve(handler, port=port)


@asynccontextmanager
async def handed_over(
    *, port: int | None = None
) -> AsyncIterator[tuple[Service, trio.MemoryReceiveChannel[trio.SocketStream]]]:
    """Hand every connection over to the test, which plays the service itself; what it does not close is closed at the end."""
    accepted_end, accepted = trio.open_memory_channel[trio.SocketStream](math.inf)

    async def handler(stream: trio.SocketStream) -> None:
        await accepted_end.send(stream)
        await trio.sleep_forever()

    with accepted_end, accepted:
        async with serve(handler, port=port) as service:
            yield service, accepted


@asynccontextmanager
async def websocket_echo() -> AsyncIterator[Service]:
    """Send back every WebSocket message as it came, text or bytes."""

    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        connection = await request.accept()
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await connection.send_message(await connection.get_message())

    listeners = await _listen_on_low_port()
    server = trio_websocket.WebSocketServer(
        handler, listeners, max_message_size=WEBSOCKET_MESSAGE_BYTES
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield Service(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def http() -> AbstractAsyncContextManager[Service]:
    """Serve HTTP/1.1 with keep-alive.

    `GET /` says hello; `GET /bytes?n=N` sends N bytes that `pattern_digest(N)` tells; `POST /digest` answers with the SHA-256
    of the body in hexadecimal. No body is ever held in memory.
    """
    return serve(serve_http)


def pattern_digest(size: int) -> str:
    """Return the SHA-256, in hexadecimal, of what `GET /bytes?n=size` sends."""
    digest = hashlib.sha256()
    for piece in pattern(size):
        digest.update(piece)
    return digest.hexdigest()


def pattern(size: int) -> list[bytes]:
    """Return what `GET /bytes?n=size` sends, in pieces that cost no memory."""
    whole, rest = divmod(size, len(_PATTERN))
    return [_PATTERN] * whole + [_PATTERN[:rest]]


async def serve_http(stream: trio.SocketStream) -> None:
    """Serve one connection as `http` does."""
    connection = h11.Connection(h11.SERVER)

    async def send(event: h11.Response | h11.InformationalResponse | h11.EndOfMessage) -> None:
        await stream.send_all(connection.send(event) or b"")

    async def next_event() -> Any:
        while (event := connection.next_event()) is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await send(h11.InformationalResponse(status_code=100, headers=[]))
            data = await stream.receive_some(262_144)
            if not data and connection.their_state is h11.SEND_BODY:
                raise trio.BrokenResourceError("the client went away in the middle of a body")
            connection.receive_data(data)
        return event

    while isinstance(request := await next_event(), h11.Request):
        digest = hashlib.sha256()
        while isinstance(data := await next_event(), h11.Data):
            digest.update(data.data)
        status, body = 200, [b"hello"]
        path, _, query = request.target.decode("ascii").partition("?")
        if path == "/bytes":
            body = pattern(int(query.removeprefix("n=")))
        elif path == "/digest":
            body = [digest.hexdigest().encode()]
        elif path != "/":
            status = 404
        length = str(sum(map(len, body)))
        await send(h11.Response(status_code=status, headers=[("Content-Length", length)]))
        for piece in body:
            for part in connection.send_with_data_passthrough(h11.Data(data=piece)) or []:
                await stream.send_all(part)
        await send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            return
        connection.start_next_cycle()


async def _listen_on_low_port() -> list[trio.SocketListener]:
    for _ in range(PORT_ATTEMPTS):
        with suppress(OSError):
            return await trio.open_tcp_listeners(free_low_port(), host=HOST)
    raise RuntimeError("no free port between 20000 and 32767")


# --- programs ---


@asynccontextmanager
async def redis() -> AsyncIterator[Service]:
    """Run a Redis server that keeps nothing on disk."""
    program = find_program("redis-server", package="redis-server")
    with tempfile.TemporaryDirectory(prefix="trionat-redis-") as folder:
        options = ["--bind", HOST, "--dir", folder, "--save", "", "--appendonly", "no"]

        def command(port: int) -> list[str]:
            return [program, "--port", str(port), *options]

        async with started(command, _redis_answers) as port:
            yield Service(port)


async def _redis_answers(port: int, pid: int) -> bool:
    """Tell whether it is our own server that answers there, and not one of a test beside us that was faster."""
    async with await trio.open_tcp_stream(HOST, port) as stream:
        await stream.send_all(b"INFO server\r\n")
        answer = b""
        while b"process_id:" not in answer or not answer.endswith(b"\r\n"):
            data = await stream.receive_some()
            if not data:
                return False
            answer += data
        return f"process_id:{pid}\r\n".encode() in answer


@attrs.frozen(kw_only=True)
class SSHServer(Service):
    """An sshd, and the arguments with which `ssh` and `scp` get into it, by whatever port it is reached."""

    user: str
    identity: Path
    options: tuple[str, ...]
    daemon: tuple[str, ...]
    """The command line of sshd, without what it listens at."""

    def ssh(self, *command: str, port: int | None = None) -> list[str]:
        """Return the command line that runs a command there; `port` is the public one when it is tunnelled."""
        target = ["-p", str(port or self.port), f"{self.user}@{self.host}"]
        return [find_program("ssh", package="openssh-client"), *self.options, *target, *command]

    def scp(self, source: str, destination: str, *, port: int | None = None) -> list[str]:
        """Return the command line that copies a file; a remote path is written `remote:/path`."""
        paths = [
            path.replace("remote:", f"{self.user}@{self.host}:", 1)
            if path.startswith("remote:")
            else path
            for path in (source, destination)
        ]
        program = find_program("scp", package="openssh-client")
        return [program, *self.options, "-P", str(port or self.port), *paths]


@asynccontextmanager
async def sshd() -> AsyncIterator[SSHServer]:
    """Run an sshd with a host key of its own, which lets in the current user by a key made for it."""
    program = find_program("sshd", package="openssh-server")
    keygen = find_program("ssh-keygen", package="openssh-client")
    if os.geteuid() == 0:  # sshd as root insists on its empty folder, which Debian's service makes
        await trio.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trionat-sshd-") as name:
        folder = Path(name)
        for key in ("host_key", "identity"):
            await trio.run_process(
                [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            )
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"trionat-test {host_key}")
        (folder / "config").write_text(
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/identity.pub\nPidFile none\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "Subsystem sftp internal-sftp\n"
        )
        client_options = {
            "UserKnownHostsFile": folder / "known_hosts",
            "HostKeyAlias": "trionat-test",  # the same key by any port
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": 10,
        }
        options = ["-F", "none", "-q", "-i", str(folder / "identity")]
        for option, value in client_options.items():
            options += ["-o", f"{option}={value}"]

        daemon = (program, "-e", "-f", str(folder / "config"))

        def command(port: int) -> list[str]:
            listen = f"ListenAddress={HOST}:{port}"
            return [*daemon, "-D", "-o", listen]

        async with started(command, _ssh_answers) as port:
            yield SSHServer(
                port=port,
                user=getpass.getuser(),
                identity=folder / "identity",
                options=tuple(options),
                daemon=daemon,
            )


async def _ssh_answers(port: int, _pid: int) -> bool:
    async with await trio.open_tcp_stream(HOST, port) as stream:
        return (await stream.receive_some()).startswith(b"SSH-2.0-")


def find_program(name: str, *, package: str) -> str:
    """Return the path of a program, or skip the test; where `CI` is set, fail it."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        reason = f"{name} is missing: install the Debian package {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@asynccontextmanager
async def started(
    command: Callable[[int], list[str]], answers: Callable[[int, int], Awaitable[bool]]
) -> AsyncIterator[int]:
    """Run a server on a free port, and yield the port when it answers."""
    with tempfile.TemporaryFile() as output:
        for _ in range(
            START_ATTEMPTS
        ):  # where it ends by itself, somebody else was faster to take the port
            port = free_low_port()
            process = await trio.lowlevel.open_process(
                command(port), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                if await _wait_until_ready(process, partial(answers, port, process.pid)):
                    yield port
                    return
            finally:
                await stop_process(process)  # noqa: ASYNC102 (shields itself, for a bounded time)
        output.seek(0)
        last_words = output.read().decode(errors="replace")
        raise RuntimeError(f"{command(0)[0]} does not start: {last_words}")


async def _wait_until_ready(process: trio.Process, answers: Callable[[], Awaitable[bool]]) -> bool:
    with trio.move_on_after(READY_TIMEOUT):
        while process.poll() is None:
            with suppress(OSError, trio.BrokenResourceError):
                if await answers():
                    return True
            await trio.sleep(0.02)
    return False


def free_low_port() -> int:
    """Return a port that nobody listens on now, that no outgoing connection can take, and that no other process returns as well."""
    return free_port()


async def stop_process(
    process: trio.Process,
    *signals: signal.Signals,
    timeout: float = STOP_TIMEOUT,  # noqa: ASYNC109 (for each signal)
) -> None:
    """End a process by its id: send each signal in turn (SIGTERM, if none is given), give it `timeout` seconds, then kill it."""
    with trio.CancelScope(shield=True):
        for number in signals or (signal.SIGTERM,):
            if process.poll() is None:
                process.send_signal(number)
            with trio.move_on_after(timeout):
                await process.wait()
        if process.poll() is None:
            process.kill()
        await process.wait()


# --- trionat ---


@attrs.define(eq=False)
class TrionatProcess:
    """A running `trionat`; `events` has every JSON line it printed so far, `errors` what it wrote to standard error."""

    process: trio.Process
    events: list[dict[str, Any]] = attrs.field(factory=list)
    errors: bytearray = attrs.field(factory=bytearray, repr=False)
    _seen: int = 0
    _changed: trio.Condition = attrs.field(factory=trio.Condition)
    _ended: bool = False

    async def next_event(self, name: str | None = None, *, within: float = 10.0) -> dict[str, Any]:
        """Return the next event, or the next of that name (others before it are passed over); each is returned once.

        Fails the test, showing standard error, if it does not come within so many seconds or the process has ended.
        """
        with trio.move_on_after(within):
            async with self._changed:
                while True:
                    while self._seen < len(self.events):
                        event = self.events[self._seen]
                        self._seen += 1
                        if name in {None, event.get("event")}:
                            return event
                    if self._ended:
                        break
                    await self._changed.wait()
        why = "trionat ended" if self._ended else f"{within} seconds went by"
        pytest.fail(
            f"{why} without the event {name}; before it: {self.events}\n{self.errors.decode()}"
        )

    async def wait(self, *, within: float = 10.0) -> int:
        """Return the exit code, once it has ended and all its output is read."""
        with trio.fail_after(within):
            async with self._changed:
                while not self._ended:
                    await self._changed.wait()
            return await self.process.wait()

    async def say(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    async def _read_output(self, stream: trio.abc.ReceiveStream) -> None:
        pending = b""
        async for data in stream:
            *lines, pending = (pending + data).split(b"\n")
            async with self._changed:
                self.events += map(json.loads, lines)
                self._changed.notify_all()
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def _read_errors(self, stream: trio.abc.ReceiveStream) -> None:
        async for data in stream:
            self.errors += data


def trionat_command(*arguments: str | Path) -> list[str]:
    """Return the command line of the installed trionat, in the interpreter of the tests."""
    return [sys.executable, "-m", "trionat", *map(str, arguments)]


def trionat_environ(**added: str) -> dict[str, str]:
    """Return our environment without whatever configures trionat, and with what is added."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TRIONAT_")} | added


async def run_trionat(
    *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of trionat that ends by itself; output and exit code are the caller's to look at."""
    return await trio.run_process(
        trionat_command(*arguments),
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=cwd,
        env=trionat_environ(**environ),
    )


def trionat_process(
    *arguments: str | Path,
    stdin: bytes | None = b"",
    cwd: Path | None = None,
    inside: Sequence[str] = (),
    **environ: str,
) -> AbstractAsyncContextManager[TrionatProcess]:
    """Run trionat with `arguments`, `--json` among them. `inside` is a program that runs others in its own place, and its arguments."""
    command = [*inside, *trionat_command(*arguments)]
    return json_process(command, stdin=stdin, cwd=cwd, environ=trionat_environ(**environ))


@asynccontextmanager
async def json_process(
    command: Sequence[str],
    *,
    stdin: bytes | None = b"",
    cwd: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[TrionatProcess]:
    """Run what prints a JSON object a line; `stdin` is all that it hears, or None where the test goes on talking to it. At the end it gets SIGINT, and SIGKILL 5 s later. Another line fails the test."""
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environ,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdin, process.stdout, process.stderr, trio.open_nursery() as nursery:
        try:
            trionat = TrionatProcess(process)
            nursery.start_soon(trionat._read_output, process.stdout)
            nursery.start_soon(trionat._read_errors, process.stderr)
            if stdin is not None:
                with suppress(trio.BrokenResourceError):  # it need not read it
                    await process.stdin.send_all(stdin)
                await process.stdin.aclose()
            yield trionat
        finally:
            await stop_process(process, signal.SIGINT)  # noqa: ASYNC102 (shields itself, for a bounded time)
