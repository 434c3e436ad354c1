"""The client and the server of the Go program, as the tests of the legacy dialects need them: independent peers.

They are written from the description of the protocol alone and share no code with trionat, so that a misreading of ours cannot
hide by being on both ends of the wire. Plain sockets of Trio's, one connection each task, nothing clever.

A frame is a header (payload length u32, message id u32) and its payload. `nat-doc` has little-endian headers; `nat-v1`
has big-endian ones, and a uid in front of the credentials. The integers of payloads are big-endian in both.
"""

from __future__ import annotations

import ctypes
import enum
import socket
import struct
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

HOST: Final = "127.0.0.1"
ZERO_TIME: Final = -62135596800
"""The expiry that a client sends when it has none to tell: the zero time of Go as Unix seconds."""
MOST_PAYLOAD_BYTES: Final = 4096
"""No message is nearly as long; the credentials are the longest."""


class Id(enum.IntEnum):
    """What a message says."""

    USER_AUTHENTICATION_SUCCESSFULLY = 10001
    NEW_CONNECTION = 20001
    USER_INFORMATION = 20002
    KEEP_ALIVE = 20003
    CONNECTION_IF_FULL = 20004
    AUTH_FAIL = 30005
    USER_REQUEST_AUTH = 60001


TEXTS: Final = {
    Id.USER_AUTHENTICATION_SUCCESSFULLY: b"",
    Id.NEW_CONNECTION: b"NEW_CONNECTION",
    Id.KEEP_ALIVE: b"ping",
    Id.CONNECTION_IF_FULL: b"the-connection-is-full.",
    Id.AUTH_FAIL: b"",
}
"""The payloads that are always the same."""


class Dialect(enum.Enum):
    """The two forms of the Go program that differ on the wire."""

    NAT_DOC = "nat-doc"
    NAT_V1 = "nat-v1"

    @property
    def header(self) -> struct.Struct:
        return struct.Struct("<II" if self is Dialect.NAT_DOC else ">II")


async def in_both_dialects(check: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Run a check for each dialect, with the dialect as its first argument, at the same time: most of it is waiting."""
    async with trio.open_nursery() as nursery:
        for dialect in Dialect:
            nursery.start_soon(check, dialect, *arguments)


class MalformedError(Exception):
    """The peer sent what the protocol does not know."""


@attrs.frozen
class Message:
    """A frame as it came."""

    id: Id
    payload: bytes


@attrs.frozen
class Credentials:
    """The payload of USER_REQUEST_AUTH. `uid` is in `nat-v1` only, and 0 from a client."""

    username: str
    password: str = attrs.field(repr=False)
    expire_unix: int = ZERO_TIME
    uid: int | None = None


# --- bytes ---


def frame(dialect: Dialect, message: Id, payload: bytes | None = None) -> bytes:
    """Return a whole frame; without a payload, the one that this message always has."""
    body = TEXTS[message] if payload is None else payload
    return dialect.header.pack(len(body), message) + body


def credentials_frame(dialect: Dialect, credentials: Credentials) -> bytes:
    """Return what a client says first."""
    uid = struct.pack(">q", credentials.uid or 0) if dialect is Dialect.NAT_V1 else b""
    texts = b""
    for text in (credentials.username, credentials.password):
        encoded = text.encode()
        texts += struct.pack(">i", len(encoded)) + encoded
    expiry = struct.pack(">q", credentials.expire_unix)
    return frame(dialect, Id.USER_REQUEST_AUTH, uid + texts + expiry)


def information_frame(dialect: Dialect, uid: int, port: int) -> bytes:
    """Return USER_INFORMATION, of a session to its client or of a tunnel to the server."""
    return frame(dialect, Id.USER_INFORMATION, struct.pack(">qi", uid, port))


def parse_credentials(dialect: Dialect, payload: bytes) -> Credentials:
    """Read the payload of USER_REQUEST_AUTH to its last byte."""
    rest = payload

    def take(size: int) -> bytes:
        nonlocal rest
        if not 0 <= size <= len(rest):
            raise MalformedError(f"a field of {size} bytes in credentials of {len(payload)}")
        taken, rest = rest[:size], rest[size:]
        return taken

    def number(form: str) -> int:
        [value] = struct.unpack(form, take(struct.calcsize(form)))
        return int(value)

    def text() -> str:
        try:
            return take(number(">i")).decode()
        except UnicodeDecodeError as error:
            raise MalformedError("a text that is not UTF-8") from error

    uid = number(">q") if dialect is Dialect.NAT_V1 else None
    found = Credentials(text(), text(), number(">q"), uid)
    if rest:
        raise MalformedError(f"{len(rest)} bytes behind the credentials")
    return found


def parse_information(payload: bytes) -> tuple[int, int]:
    """Return uid and port."""
    try:
        uid, port = struct.unpack(">qi", payload)
    except struct.error as error:
        raise MalformedError(f"USER_INFORMATION of {len(payload)} bytes") from error
    return uid, port


async def receive(stream: trio.abc.ReceiveStream, dialect: Dialect) -> Message | None:
    """Return the next message, or None where the stream ends between two. Not a byte behind it is read.

    Raises:
        MalformedError: it is none.
        trio.BrokenResourceError: the connection was reset.
    """
    header = await _receive_exactly(stream, dialect.header.size)
    if not header:
        return None
    size, number = dialect.header.unpack(header)
    if size > MOST_PAYLOAD_BYTES:
        raise MalformedError(f"a payload of {size} bytes")
    try:
        message = Id(number)
    except ValueError as error:
        raise MalformedError(f"message id {number}") from error
    payload = await _receive_exactly(stream, size)
    if len(payload) < size or (message in TEXTS and payload != TEXTS[message]):
        raise MalformedError(f"{message.name} with the payload {payload!r}")
    return Message(message, payload)


async def _receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Return so many bytes, or none where the stream ends before the first of them."""
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more and data:
            raise MalformedError(f"the stream ended after {data!r}")
        if not more:
            return b""
        data += more
    return data


async def relay(one: trio.SocketStream, other: trio.SocketStream) -> None:
    """Carry raw bytes both ways until both directions have ended. Closes neither."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_copy, one, other)
        nursery.start_soon(_copy, other, one)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Do as Go's `io.Copy` followed by `CloseWrite`: an error ends a direction like its end does, and only that one."""
    with suppress(trio.BrokenResourceError):
        async for data in source:
            await sink.send_all(data)
    with suppress(trio.BrokenResourceError):
        await sink.send_eof()


# --- the client ---


@attrs.define(eq=False, kw_only=True)
class LegacyClient:
    """The client of the Go program, for one service.

    With `service` None it opens no tunnels: the test does, with `open_tunnel`.
    """

    dialect: Dialect
    control_address: tuple[str, int]
    tunnel_address: tuple[str, int]
    service: tuple[str, int] | None = None
    username: str = ""
    password: str = attrs.field(default="", repr=False)
    expire_unix: int = ZERO_TIME
    source: str = HOST
    """The address that it connects from."""
    retry_interval: float = 0.2
    """Seconds before it tries again where the server is full."""

    control: trio.SocketStream | None = attrs.field(init=False, default=None)
    heard: list[Message] = attrs.field(init=False, factory=list)
    """All that the server has said, over all tries."""
    uid: int = attrs.field(init=False, default=0)
    port: int = attrs.field(init=False, default=0)
    outcome: str = attrs.field(init=False, default="")
    """How it ended: `auth-fail`, `closed`, `reset` or `killed`."""
    _news: trio.Event = attrs.field(init=False, factory=trio.Event)
    _life: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    async def run(self) -> None:
        """Log in, trying again for as long as the server is full, and serve visitors until the connection ends."""
        outcome = ""
        with self._life:
            while (outcome := await self._run_once()) == "full":  # noqa: ASYNC110 (what it waits for is the server)
                await trio.sleep(self.retry_interval)
        self.outcome = "killed" if self._life.cancelled_caught else outcome
        self._tell()

    def kill(self) -> None:
        """End it as `kill -9` would: the kernel closes its connections."""
        self._life.cancel("killed")

    async def wait_heard(self, message: Id, *, count: int = 1) -> Message:
        """Return the `count`-th message of that kind."""
        while len(found := [heard for heard in self.heard if heard.id is message]) < count:
            assert not self.outcome, f"{self.outcome} before {message.name}: {self.heard}"
            await self._news.wait()
        return found[count - 1]

    async def wait_session(self) -> None:
        """Wait until it has uid and port."""
        await self.wait_heard(Id.USER_INFORMATION)

    async def wait_outcome(self) -> str:
        """Wait for the end of `run`."""
        while not self.outcome:
            await self._news.wait()
        return self.outcome

    async def open_tunnel(self) -> trio.SocketStream:
        """Connect a tunnel to the server; the caller closes."""
        tunnel = await self._connect(self.tunnel_address)
        await tunnel.send_all(information_frame(self.dialect, self.uid, self.port))
        return tunnel

    async def visit(self) -> trio.SocketStream:
        """Connect to its visit port; the caller closes."""
        return await trio.open_tcp_stream(HOST, self.port)

    async def _run_once(self) -> str:
        async with await self._connect(self.control_address) as control:
            self.control = control
            async with trio.open_nursery() as nursery:
                outcome = await self._follow(control, nursery)
                nursery.cancel_scope.cancel()  # its visitors end with it
        return outcome

    async def _follow(self, control: trio.SocketStream, nursery: trio.Nursery) -> str:
        try:
            # At once, whether the server asks or not.
            login = Credentials(self.username, self.password, self.expire_unix)
            await control.send_all(credentials_frame(self.dialect, login))
            while message := await receive(control, self.dialect):
                self.heard.append(message)
                self._tell()
                if message.id is Id.USER_INFORMATION:
                    self.uid, self.port = parse_information(message.payload)
                elif message.id is Id.NEW_CONNECTION and self.service is not None:
                    nursery.start_soon(self._serve_visitor, self.service)
                elif message.id is Id.CONNECTION_IF_FULL:
                    return "full"
                elif message.id is Id.AUTH_FAIL:
                    return "auth-fail"
        except trio.BrokenResourceError:
            return "reset"
        return "closed"

    async def _serve_visitor(self, service: tuple[str, int]) -> None:
        # Neither a service that is down nor a server that is gone is a reason to end.
        with suppress(OSError, trio.BrokenResourceError):
            async with await trio.open_tcp_stream(*service) as local:
                async with await self.open_tunnel() as tunnel:
                    await relay(local, tunnel)

    async def _connect(self, address: tuple[str, int]) -> trio.SocketStream:
        return await trio.open_tcp_stream(*address, local_address=self.source)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


def deafen(stream: trio.SocketStream) -> None:
    """Have the kernel drop whatever arrives, without acknowledging it, as if the cable were cut. Linux only."""
    # A filter of one instruction, "keep 0 bytes": socket(7), SO_ATTACH_FILTER; linux/filter.h, BPF_RET | BPF_K.
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    stream.setsockopt(socket.SOL_SOCKET, 26, program)


@asynccontextmanager
async def running_client(client: LegacyClient) -> AsyncIterator[LegacyClient]:
    """Run it; when this is left it is killed, if it has not ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client
        client.kill()


# --- the server ---


@attrs.define(eq=False)
class _Visitor:
    tunnel: trio.SocketStream | None = None
    paired: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class LegacySession:
    """A client's session at the server, and its visitors that wait for a tunnel, first come first."""

    uid: int
    port: int
    control: trio.SocketStream
    waiting: deque[_Visitor] = attrs.field(factory=deque)
    _turn: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, data: bytes) -> None:
        """Send to the client; two tasks do, and a frame must be whole."""
        async with self._turn:
            await self.control.send_all(data)


@attrs.define(eq=False, kw_only=True)
class LegacyDialer:
    """The original server. Its ports are known when it runs, and it has the same ones when it runs again."""

    dialect: Dialect
    users: Mapping[str, str] | None = None
    """Names and passwords; None is `StartAuth: false`."""
    visit_ports: Sequence[int] = (0,)
    """One for each session at once; 0 is any that is free."""
    queue_places: int = 1
    control_port: int = 0
    tunnel_port: int = 0
    keep_alive_interval: float = 1.0
    visitor_wait: float = 8.0
    strays: trio.MemorySendChannel[trio.SocketStream] | None = None
    """Where tunnels go that no visitor waits for, for a test that plays the visitor itself; without it they are closed."""

    sessions: dict[int, LegacySession] = attrs.field(init=False, factory=dict)
    """The ones that are up, by uid."""
    logins: list[Credentials] = attrs.field(init=False, factory=list)
    tunnels: list[tuple[int, int]] = attrs.field(init=False, factory=list)
    """What every tunnel said: uid and port."""
    malformed: list[str] = attrs.field(init=False, factory=list)
    """What clients said that the protocol does not know; a test has it empty at its end."""
    _life: trio.CancelScope = attrs.field(init=False)
    _uids: int = attrs.field(init=False, default=0)
    _give_port: trio.MemorySendChannel[int] = attrs.field(init=False)
    _ports: trio.MemoryReceiveChannel[int] = attrs.field(init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until it is killed."""
        self._give_port, self._ports = trio.open_memory_channel[int](len(self.visit_ports))
        for port in self.visit_ports:
            self._give_port.send_nowait(port)
        [control] = await trio.open_tcp_listeners(self.control_port, host=HOST)
        [tunnel] = await trio.open_tcp_listeners(self.tunnel_port, host=HOST)
        self.control_port = control.socket.getsockname()[1]
        self.tunnel_port = tunnel.socket.getsockname()[1]
        with self._give_port, self._ports, trio.CancelScope() as self._life:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._serve_control, [control])
                await nursery.start(trio.serve_listeners, self._serve_tunnel, [tunnel])
                task_status.started()

    def kill(self) -> None:
        """End it as `kill -9` would: the kernel closes its connections."""
        self._life.cancel("killed")

    @property
    def queued(self) -> int:
        """The clients that wait for a free port."""
        return self._ports.statistics().tasks_waiting_receive

    async def _serve_control(self, control: trio.SocketStream) -> None:
        try:
            if not await self._log_in(control):
                return
            state = self._ports.statistics()
            if not state.current_buffer_used and self.queued >= self.queue_places:
                await control.send_all(frame(self.dialect, Id.CONNECTION_IF_FULL))
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, control, nursery.cancel_scope)
                port = await self._ports.receive()
                try:
                    await self._run_session(control, port)
                finally:
                    self._give_port.send_nowait(port)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone
        except* MalformedError as group:
            self.malformed += map(str, group.exceptions)

    async def _log_in(self, control: trio.SocketStream) -> bool:
        message = await receive(control, self.dialect)
        if message is None or message.id is not Id.USER_REQUEST_AUTH:
            raise MalformedError(f"{message} instead of the credentials")
        login = parse_credentials(self.dialect, message.payload)
        self.logins.append(login)
        if self.users is None:
            return True
        known = self.users.get(login.username) == login.password
        answer = Id.USER_AUTHENTICATION_SUCCESSFULLY if known else Id.AUTH_FAIL
        await control.send_all(frame(self.dialect, answer))
        return known

    async def _watch(self, control: trio.SocketStream, scope: trio.CancelScope) -> None:
        """End the client's part when it hangs up; it has nothing more to say."""
        with suppress(trio.BrokenResourceError):
            if data := await control.receive_some():
                self.malformed.append(f"{data!r} behind the credentials")
        scope.cancel()

    async def _run_session(self, control: trio.SocketStream, wanted: int) -> None:
        [listener] = await trio.open_tcp_listeners(wanted, host=HOST)
        self._uids += 1
        session = LegacySession(self._uids, listener.socket.getsockname()[1], control)

        async def admit(visitor: trio.SocketStream) -> None:
            await self._serve_visitor(session, visitor)

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, admit, [listener])
            self.sessions[session.uid] = session
            try:
                await session.send(information_frame(self.dialect, session.uid, session.port))
                while True:
                    await trio.sleep(self.keep_alive_interval)
                    await session.send(frame(self.dialect, Id.KEEP_ALIVE))
            finally:
                del self.sessions[session.uid]

    async def _serve_visitor(self, session: LegacySession, stream: trio.SocketStream) -> None:
        visitor = _Visitor()
        session.waiting.append(visitor)
        try:
            await session.send(frame(self.dialect, Id.NEW_CONNECTION))
            with trio.move_on_after(self.visitor_wait):
                await visitor.paired.wait()
            if visitor.tunnel is None:
                session.waiting.remove(visitor)
            else:
                await relay(stream, visitor.tunnel)
        finally:
            visitor.over.set()

    async def _serve_tunnel(self, tunnel: trio.SocketStream) -> None:
        try:
            message = await receive(tunnel, self.dialect)
            if message is None or message.id is not Id.USER_INFORMATION:
                raise MalformedError(f"{message} as a tunnel's first words")
            uid, port = parse_information(message.payload)
        except trio.BrokenResourceError:
            return
        except MalformedError as error:
            self.malformed.append(str(error))
            return
        self.tunnels.append((uid, port))
        session = self.sessions.get(uid)
        if session is not None and session.port == port and session.waiting:
            visitor = session.waiting.popleft()
            visitor.tunnel = tunnel
            visitor.paired.set()
            await visitor.over.wait()
        elif self.strays is not None:
            await self.strays.send(tunnel)
            await trio.sleep_forever()


@asynccontextmanager
async def running_server(server: LegacyDialer) -> AsyncIterator[LegacyDialer]:
    """Run it; when this is left it is killed, if it has not been."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        yield server
        server.kill()
