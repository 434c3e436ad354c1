"""The Unix socket in the state folder, and who answers there: over real sockets."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.memory_server import MemoryServer, open_memory_server
from tests.unit.test_metrics import observe
from trionat.config.reload import PATIENCE as RELOAD_PATIENCE
from trionat.config.reload import Reloaded
from trionat.errors import RemoteProtocolError, StartupError
from trionat.protocol.messages import Close, CloseCode
from trionat.server.admin import server as server_module
from trionat.server.admin import socket as socket_module
from trionat.server.admin.commands import LocalCommands
from trionat.server.admin.drain import Drain
from trionat.server.admin.messages import (
    FOR_RELOAD,
    REQUEST_BYTES,
    AskReload,
    AskStatus,
    AskTasks,
    AskUpgrade,
    AskWhere,
    CommandRefusedError,
    Kicked,
    KickSession,
    KickUser,
    KickVisitor,
    Request,
    decode_answer,
    decode_request,
    encode_request,
)
from trionat.server.admin.server import NO_UPGRADE, AdminServer
from trionat.server.admin.snapshot import Snapshot
from trionat.server.admin.socket import SOCKET_NAME, call, open_admin_socket
from trionat.server.admin.task_tree import Branch, grow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.unit.conftest import Tidy

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no Unix sockets in Python")
pytestmark = posix


@asynccontextmanager
async def open_office(tidy: Tidy, folder: Path, **settings: object) -> AsyncIterator[MemoryServer]:
    async with open_memory_server(tidy, **settings) as server:  # type: ignore[arg-type]
        with open_admin_socket(folder) as door:
            assert door is not None
            async with trio.open_nursery() as nursery:
                commands = LocalCommands(observe(server), Drain(server.context))
                nursery.start_soon(AdminServer(commands).serve, door)  # noqa: ASYNC113 - the kernel queues who comes before
                yield server
                nursery.cancel_scope.cancel()


async def send(folder: Path, line: bytes) -> bytes:
    return await trio.to_thread.run_sync(call, folder, line)


async def ask(folder: Path, request: Request) -> dict[str, Any]:
    return decode_answer(await send(folder, encode_request(request)))


async def stream_to(folder: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(folder / SOCKET_NAME)


# -- the door ---------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_knock(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_admin_socket(tmp_path):
            mode = (tmp_path / SOCKET_NAME).stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(StartupError, match="no server is up on this state folder"):
        call(tmp_path, b"x\n")
    with open_admin_socket(tmp_path) as door, socket.socket(socket.AF_UNIX) as caller:
        assert door is not None
        caller.connect(str(tmp_path / SOCKET_NAME))


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose socket has a longer path than a socket may have."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    return folder


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no way round")
async def test_a_long_path(tidy: Tidy, deep: Path) -> None:
    async with open_office(tidy, deep):
        assert Snapshot.of(await ask(deep, AskStatus())).sessions == ()
        mode = (await trio.Path(deep / SOCKET_NAME).stat()).st_mode
        assert stat.S_IMODE(mode) == 0o600
    assert not await trio.Path(deep / SOCKET_NAME).exists()


def test_a_long_path_where_there_is_no_way_round(
    deep: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket_module, "_DESCRIPTORS", str(deep / "none"))
    with open_admin_socket(deep) as door:
        assert door is None  # the server goes without
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    with pytest.raises(StartupError, match=r"longer than the 103 bytes .* shorter --state-dir"):
        call(deep, b"x\n")


def test_something_else_has_the_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / SOCKET_NAME).mkdir()
    with open_admin_socket(tmp_path) as door:
        assert door is None
    assert "will not reach this server" in caplog.text
    assert (tmp_path / SOCKET_NAME).is_dir()


def test_where_there_are_no_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with open_admin_socket(tmp_path) as door:
        assert door is None
    with pytest.raises(StartupError, match="does not have on Windows"):
        call(tmp_path, b"x\n")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"nowhere: no server is up .* \(--state-dir\)"):
        call(tmp_path / "nowhere", b"x\n")


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_module, "_PATIENCE", 0.05)
    with (
        open_admin_socket(tmp_path),
        pytest.raises(StartupError, match=r"does not answer within 0\.05 s"),
    ):
        call(tmp_path, b"x\n")


# -- the office -------------------------------------------------------------------------------------------------------


async def test_status_and_tasks(tidy: Tidy, tmp_path: Path) -> None:
    async with open_office(tidy, tmp_path) as server:
        client = await server.welcome()
        snapshot = Snapshot.of(await ask(tmp_path, AskStatus()))
        assert [session.uid for session in snapshot.sessions] == [client.welcome.uid]
        tree = Branch.of(await ask(tmp_path, AskTasks()))
        assert f"session {client.welcome.uid} of anonymity" in names(tree)
        assert "command" in names(tree)


def names(branch: Branch) -> list[str]:
    return [branch.name, *(name for below in branch.branches for name in names(below))]


async def test_kick(tidy: Tidy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="trionat")
    async with open_office(tidy, tmp_path) as server:
        client = await server.welcome()
        answer = Kicked.of(await ask(tmp_path, KickSession(client.welcome.uid)))
        assert answer == Kicked(sessions=(client.welcome.uid,))
        assert server.admission.leases.ports.free == 2
        assert (await client.hear(Close)).code == CloseCode.KICKED
        assert not Kicked.of(await ask(tmp_path, KickSession(client.welcome.uid))).anybody
    assert caplog.text.count("kicked request=") == caplog.text.count("KickSession") == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nonsense\n", "not JSON"),
        (b"[]\n", "a JSON object"),
        (b"{}\n", "a text as request"),
        (b'{"request":"dance"}\n', "knows no request 'dance'"),
        (b'{"request":"kick-session","uid":"1"}\n', "a number as uid"),
        (b'{"request":"kick-session","uid":0}\n', "between 1 and"),
        (b'{"request":"kick-visitor"}\n', "a number as number"),
        (b'{"request":"kick-user","name":7}\n', "a text as name"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 4000 + b"\n", "not JSON"),
        (b"x" * (REQUEST_BYTES + 1), "one line of at most 4096 bytes"),
        (b"x" * REQUEST_BYTES + b"\n", "one line of at most 4096 bytes"),
    ],
    ids=range(12),
)
async def test_a_wrong_request_is_told_so(
    tidy: Tidy, tmp_path: Path, line: bytes, reason: str
) -> None:
    async with open_office(tidy, tmp_path):
        with pytest.raises(RemoteProtocolError, match=reason):
            decode_answer(await send(tmp_path, line))
        await ask(tmp_path, AskStatus())


async def test_a_request_that_ends_before_its_end(tidy: Tidy, tmp_path: Path) -> None:
    async with open_office(tidy, tmp_path), await stream_to(tmp_path) as stream:
        await stream.send_all(b'{"request":')
        await stream.send_eof()
        assert b"one line" in await stream.receive_some()


async def test_in_pieces(tidy: Tidy, tmp_path: Path) -> None:
    async with open_office(tidy, tmp_path), await stream_to(tmp_path) as stream:
        for byte in encode_request(AskStatus()):
            await stream.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        answer = b"".join([piece async for piece in stream])
        assert "sessions" in decode_answer(answer)


async def test_who_stalls_costs_nobody_but_himself(
    tidy: Tidy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One less than there are places: the others do not notice. All places: they wait until the first is sent away."""
    caplog.set_level(logging.INFO, logger="trionat")
    monkeypatch.setattr(server_module, "_PATIENCE", 0.3)
    async with open_office(tidy, tmp_path):
        stalled = [await stream_to(tmp_path) for _ in range(server_module._PLACES - 1)]
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        for _ in range(3):
            await ask(tmp_path, AskStatus())
        assert trio.current_time() - start < 0.3
        stalled += [await stream_to(tmp_path) for _ in range(2 * server_module._PLACES)]
        await ask(tmp_path, AskStatus())
        assert trio.current_time() - start > 0.3
        for stream in stalled:
            await stream.aclose()
    assert "it took too long" in caplog.text


async def test_a_reload_takes_longer_than_other_commands(
    tidy: Tidy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of ports are opened, or a disk hangs: whoever has asked hears what came of it, and not that the server may have stopped."""
    monkeypatch.setattr(server_module, "_PATIENCE", 0.1)

    async def reload() -> Reloaded:
        await trio.sleep(0.3)
        return Reloaded(changed=("Server.VisitPort",))

    async with open_memory_server(tidy) as server:
        with open_admin_socket(tmp_path) as door:
            assert door is not None
            async with trio.open_nursery() as nursery:
                commands = LocalCommands(observe(server), Drain(server.context))
                nursery.start_soon(AdminServer(commands, reload).serve, door)  # noqa: ASYNC113 - as above
                reloaded = Reloaded.of(await ask(tmp_path, AskReload()))
                nursery.cancel_scope.cancel()
    assert reloaded.changed == ("Server.VisitPort",)
    assert FOR_RELOAD > RELOAD_PATIENCE


async def test_reloads_that_hang_leave_room_for_other_commands(tidy: Tidy, tmp_path: Path) -> None:
    """As those on a disk that is gone; `status` is what is wanted then. One more is refused, and none is left in the end."""
    hanging, asked = trio.Event(), trio.Semaphore(0)

    async def reload() -> Reloaded:
        asked.release()
        await hanging.wait()
        return Reloaded()

    async with open_memory_server(tidy) as server:
        with open_admin_socket(tmp_path) as door:
            assert door is not None
            admin = AdminServer(LocalCommands(observe(server), Drain(server.context)), reload)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(admin.serve, door)  # noqa: ASYNC113 - as above
                streams = [await stream_to(tmp_path) for _ in range(server_module._LONG_PLACES)]
                for stream in streams:
                    await stream.send_all(encode_request(AskReload()))
                    await asked.acquire()
                assert "sessions" in await ask(tmp_path, AskStatus())
                with pytest.raises(CommandRefusedError, match="4 reloads are under way"):
                    await ask(tmp_path, AskReload())
                with pytest.raises(CommandRefusedError, match=NO_UPGRADE):  # it has had a place
                    await ask(tmp_path, AskUpgrade())
                hanging.set()
                for stream in streams:
                    async with stream:
                        assert "changed" in decode_answer(
                            b"".join([piece async for piece in stream])
                        )
                assert Reloaded.of(await ask(tmp_path, AskReload())) == Reloaded()
                nursery.cancel_scope.cancel()


async def test_who_stalls_does_not_hold_up_the_end(tidy: Tidy, tmp_path: Path) -> None:
    async with open_office(tidy, tmp_path):
        stalled = [await stream_to(tmp_path) for _ in range(10)]
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() - start < 0.5
    for stream in stalled:
        await stream.aclose()


async def test_who_does_not_wait_for_the_answer(tidy: Tidy, tmp_path: Path) -> None:
    async with open_office(tidy, tmp_path):
        for request in (AskStatus(), AskTasks(), KickUser("nobody")):
            stream = await stream_to(tmp_path)
            await stream.send_all(encode_request(request))
            await stream.aclose()
        await ask(tmp_path, AskStatus())


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Whoever wants a descriptor in the block gets none."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


async def test_without_descriptors_it_waits(
    tidy: Tidy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_module, "_SHORTAGE_WAIT", 0.1)
    async with open_office(tidy, tmp_path):
        with socket.socket(socket.AF_UNIX) as sock:
            with no_descriptors():
                sock.connect(str(tmp_path / SOCKET_NAME))
                sock.sendall(encode_request(AskStatus()))
                await trio.sleep(0.15)
                assert caplog.text.count("cannot take a command now error='Too many open files'") in (1, 2)  # fmt: skip
            answer = await trio.to_thread.run_sync(sock.recv, 100_000)
            assert "sessions" in decode_answer(answer)


async def test_a_server_that_stops_in_the_middle_of_an_answer(
    tidy: Tidy, tmp_path: Path, nursery: trio.Nursery
) -> None:
    with open_admin_socket(tmp_path) as door:
        assert door is not None
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(door))

        async def answer() -> None:
            async with await listener.accept() as stream:
                await stream.receive_some()
                await stream.send_all(b'{"answer":{"sess')

        nursery.start_soon(answer)
        with pytest.raises(StartupError, match="the server's answer was cut off"):
            await send(tmp_path, b"x\n")


# -- what is said -----------------------------------------------------------------------------------------------------

numbers = st.integers(1, 2**63 - 1)
requests = st.one_of(
    st.just(AskStatus()),
    st.just(AskTasks()),
    st.builds(AskWhere, st.text(max_size=255)),
    st.builds(KickUser, st.text(max_size=255)),
    st.builds(KickSession, numbers),
    st.builds(KickVisitor, numbers),
)


@given(requests)
def test_requests_there_and_back(request: Request) -> None:
    line = encode_request(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= REQUEST_BYTES
    assert decode_request(line) == request


@given(st.one_of(st.binary(), st.recursive(st.text() | st.integers(), lambda x: st.dictionaries(st.sampled_from(["request", "uid", "name", "number"]), x)).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_line_is_a_request_or_an_error(line: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(line)
        except RemoteProtocolError as error:
            assert "\n" not in str(error)  # noqa: PT017 - there need not be one


async def test_the_tree_is_that_of_the_code(nursery: trio.Nursery) -> None:
    async def parent(*, task_status: trio.TaskStatus[trio.lowlevel.Task]) -> None:
        async with trio.open_nursery() as outside:
            outside.start_soon(trio.sleep_forever, name="task 10")
            outside.start_soon(trio.sleep_forever, name="task 9")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.sleep, 99))
                task_status.started(trio.lowlevel.current_task())
                await trio.sleep_forever()

    task: trio.lowlevel.Task = await nursery.start(parent, name="the parent")
    leaf = Branch("trio.sleep", ())
    assert await grow(task) == Branch(
        "the parent",
        (
            Branch(
                "nursery outside",
                (Branch("task 9", ()), Branch("task 10", ()), Branch("nursery", (leaf,))),
            ),
        ),
    )
    nursery.cancel_scope.cancel()
