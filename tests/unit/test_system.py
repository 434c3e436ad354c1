"""The ways that are taken where a system lacks something: on Linux, with that taken away."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from trionat import system
from trionat.server.events.audit import append_entries, command_line_actor, read_audit
from trionat.server.events.journal import JournalFile
from trionat.service_manager.notification import Notification
from trionat.transport import kernel
from trionat.transport.descriptors import left, require

Patch = pytest.MonkeyPatch


@pytest.fixture(params=["as it is", "taken away"])
def without(request: pytest.FixtureRequest, monkeypatch: Patch) -> Patch | None:
    """Each test that uses it runs with what the system has, and without."""
    return monkeypatch if request.param == "taken away" else None


def take(monkeypatch: Patch | None, module: object, *names: str) -> None:
    if monkeypatch is not None:
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def test_how_much_memory_this_process_has() -> None:
    memory = system.find_resident_memory()
    if sys.platform == "linux":
        assert memory is not None
        assert 2**20 < memory < 2**40
    else:
        assert memory is None


TELL = "os.write(out, str(is_in_foreground()).encode())"


@pytest.mark.skipif(os.name != "posix", reason="terminals of Windows have no foreground")
@pytest.mark.parametrize(
    ("program", "answer"),
    [
        (TELL, b"True"),
        (f"if os.fork(): os.wait()\nelse: os.setpgid(0, 0); {TELL}", b"False"),  # as `&` does
        (f"os.dup2(nothing, 1); {TELL}", b"False"),
        (f"os.dup2(nothing, 0); {TELL}", b"False"),
    ],
    ids=["foreground", "background", "output elsewhere", "input elsewhere"],
)
def test_whether_a_shell_waits_at_a_terminal(program: str, answer: bytes) -> None:
    import pty  # noqa: PLC0415 - POSIX only

    beginning = "import os\nfrom trionat.system import is_in_foreground\n"
    beginning += "out, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)\n"
    child, master = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", beginning + program])
    said = b""
    with suppress(OSError):  # Linux: it has ended
        while piece := os.read(master, 100):
            said += piece
    os.close(master)
    assert os.waitpid(child, 0)[1] == 0
    assert said == answer


def test_no_shell_waits_where_there_is_no_foreground(monkeypatch: Patch) -> None:
    take(monkeypatch, os, "tcgetpgrp")
    assert not system.is_in_foreground()


# --- sockets ---


def test_unix_sockets(without: Patch | None) -> None:
    take(without, socket, "AF_UNIX")
    assert system.has_unix_sockets() == (without is None and sys.platform != "win32")
    with socket.socket() as other:
        assert not system.is_unix(other)
    if system.has_unix_sockets():
        with system.open_unix_socket() as made:
            assert system.is_unix(made)
            assert not made.get_inheritable()
    else:
        with pytest.raises(OSError, match="no Unix sockets"):
            system.open_unix_socket()


def test_no_service_manager_without_unix_sockets(monkeypatch: Patch) -> None:
    environ = {"NOTIFY_SOCKET": "/run/notify"}
    take(monkeypatch, socket, "AF_UNIX")
    assert Notification.take(environ) is None
    assert environ == {}


def test_a_service_manager_is_told_where_sockets_have_no_flags(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    """As on macOS, whose sockets are not opened with `SOCK_CLOEXEC`."""
    take(monkeypatch, socket, "SOCK_CLOEXEC", "SOCK_NONBLOCK")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told = Notification.take({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert told is not None
        told.ready()
        assert manager.recv(100) == b"READY=1"


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        return near, listening.accept()[0]


def test_what_the_kernel_tells_of_a_connection(without: Patch | None) -> None:
    take(without, socket, "TCP_INFO", "TCP_USER_TIMEOUT")
    near, far = connected()
    with near, far:
        kernel.limit_silence(near, 10)
        assert kernel.silent_for(near) == 0
        assert not kernel.is_half_closed(near)
        far.sendall(b"last words")
        far.shutdown(socket.SHUT_WR)
        near.recv(1)
        near.setblocking(True)
        while near.recv(100):  # all has come, and the end behind it
            pass
        assert kernel.is_half_closed(near) == (without is None and sys.platform == "linux")
    assert not kernel.is_half_closed(near)
    assert kernel.silent_for(near) == 0


def test_another_systems_tcp_info_is_not_read(monkeypatch: Patch) -> None:
    """FreeBSD has an option of that name, with other numbers in it."""
    near, far = connected()
    with near, far:
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
        monkeypatch.setattr(sys, "platform", "freebsd14")
        assert not kernel.is_half_closed(near)
        assert kernel.silent_for(near) == 0


def test_a_short_answer_of_an_old_kernel_is_none(monkeypatch: Patch) -> None:
    monkeypatch.setattr(kernel, "_TCP_INFO", struct.Struct("=900x2xBB20xI28xI"))
    near, far = connected()
    with near, far:
        assert kernel.silent_for(near) == 0


# --- processes and users ---


def test_processors(without: Patch | None) -> None:
    take(without, os, "sched_getaffinity")
    assert 1 <= system.count_processors() <= (os.cpu_count() or 1)


def test_processors_of_a_system_that_tells_nothing(monkeypatch: Patch) -> None:
    take(monkeypatch, os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert system.count_processors() == 1


def test_users(without: Patch | None) -> None:
    take(without, os, "getuid", "geteuid")
    assert (system.find_user_id() is None) == (without is not None or sys.platform == "win32")
    if without is not None:
        assert not system.is_root()


@pytest.mark.parametrize("error", [KeyError, OSError, ImportError])
def test_who_has_no_name_has_a_number(
    without: Patch | None, monkeypatch: Patch, error: type[Exception]
) -> None:
    """In a container there may be none, and on Windows there is no `pwd`."""

    def nobody() -> str:
        raise error

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.delenv("SUDO_USER", raising=False)
    number = system.find_user_id()
    take(without, os, "getuid")
    expected = "unknown" if without is not None or number is None else f"user {number}"
    assert command_line_actor().name == expected


# --- descriptors ---


def test_descriptors(without: Patch | None) -> None:
    if without is not None:
        without.setitem(sys.modules, "resource", None)
        assert system.find_descriptor_limit() is None
        assert left() == sys.maxsize
        require(10**9, "everything")
    system.raise_descriptor_limit()


def test_macos_takes_no_limit_above_its_own(monkeypatch: Patch) -> None:
    resource = pytest.importorskip("resource")
    taken: list[tuple[int, int]] = []

    def setrlimit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > 10240:
            raise ValueError("current limit exceeds maximum limit")
        taken.append(limits)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2**63 - 1))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    system.raise_descriptor_limit()
    assert taken == [(10240, 2**63 - 1)]


def test_waiting_for_room(without: Patch | None) -> None:
    take(without, select, "poll")
    near, far = socket.socketpair()
    with near, far:
        assert system.wait_for_room(near.fileno(), 0)
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(65536))
        assert not system.wait_for_room(near.fileno(), 0.01)
        far.setblocking(False)

        def read_all() -> None:
            with suppress(BlockingIOError):
                while True:
                    far.recv(1 << 20)

        reader = threading.Timer(0.05, read_all)
        reader.start()
        assert system.wait_for_room(near.fileno())
        reader.join()


# --- files ---


def test_files_are_opened_for_bytes(monkeypatch: Patch, tmp_path: Path) -> None:
    """As Windows has it: a flag without which line ends change on their way."""
    opened: list[int] = []
    binary = 1 << 30

    def note(_: Path, flags: int, __: int) -> int:
        opened.append(flags)
        return 0

    monkeypatch.setattr(os, "O_BINARY", binary, raising=False)
    monkeypatch.setattr(os, "open", note)
    system.open_file(tmp_path / "file", os.O_RDWR)
    system.open_file(tmp_path / "file", os.O_RDWR, waiting=False)
    plain = os.O_RDWR | binary
    assert opened == [plain, plain | os.O_NONBLOCK]
    monkeypatch.delattr(os, "O_NONBLOCK")
    system.open_file(tmp_path / "file", os.O_RDWR, waiting=False)
    assert opened[-1] == plain


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number tells
        system.open_file(tmp_path / "pipe", os.O_WRONLY, waiting=False)
    assert caught.value.errno == errno.ENXIO


def test_a_place_in_a_file(without: Patch | None, tmp_path: Path) -> None:
    take(without, os, "pread", "pwrite")
    descriptor = system.open_file(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert system.write_at(descriptor, b"one two", 0) == 7
        assert system.write_at(descriptor, b"six", 4) == 3
        assert system.read_at(descriptor, 3, 4) == b"six"
        assert system.read_at(descriptor, 100, 0) == b"one six"
    finally:
        os.close(descriptor)


def test_events_and_the_audit(without: Patch | None, tmp_path: Path) -> None:
    take(without, os, "pread", "pwrite")
    journal = JournalFile.open(tmp_path, most=2, most_bytes=1000)
    for number in range(5):
        journal.append([b"%d" % number])
    journal.close()
    journal.close()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"4\n", b"2\n3\n"]
    append_entries(tmp_path, [{"a": 1}])
    audit = tmp_path / "audit.log"
    audit.write_bytes(audit.read_bytes() + b'{"cut')
    append_entries(tmp_path, [{"a": 2}])
    assert b'{"cut\n{"number":2,"a":2}\n' in audit.read_bytes()
    assert [entry["a"] for entry in read_audit(tmp_path, 10)] == [2, 1]


def test_what_is_open_is_not_renamed(monkeypatch: Patch, tmp_path: Path) -> None:
    """As on Windows, which refuses it; and a file that cannot be opened anew is opened the next time."""
    journal = JournalFile.open(tmp_path, most=1, most_bytes=1000)
    before = type(tmp_path).replace

    def replace(path: Path, target: Path) -> Path:
        if journal.descriptor >= 0:
            raise PermissionError(errno.EACCES, "open")
        return before(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", replace)
    journal.append([b"1"])
    with monkeypatch.context() as short:
        short.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "short")))
        with pytest.raises(OSError, match="short"):
            journal.append([b"2"])
    journal.append([b"3"])
    journal.close()
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"1\n", b"3\n"]


def test_a_second_descriptor_above_a_number(monkeypatch: Patch) -> None:
    with socket.socket() as sock:
        number = system.duplicate_from(sock.fileno(), 100)
        assert number is not None
        assert number >= 100
        assert not os.get_inheritable(number)
        os.close(number)
        monkeypatch.setitem(sys.modules, "fcntl", None)
        assert system.duplicate_from(sock.fileno(), 100) is None


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_two_folders_change_their_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "file").touch()
    other.mkdir()
    assert system.exchange(one, other)
    assert (other / "file").exists()
    assert not (one / "file").exists()
    with pytest.raises(FileNotFoundError):
        system.exchange(one, tmp_path / "none")


def test_a_system_that_cannot_change_names(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert not system.exchange(tmp_path / "one", tmp_path / "other")


@pytest.mark.skipif(not system.is_root(), reason="only root gives files away")
def test_a_folder_is_given_away_after_all_that_is_in_it(monkeypatch: Patch, tmp_path: Path) -> None:
    """Whoever has it could put a link to another folder in the place of one that is still to be given."""
    folder = tmp_path / "new"
    (folder / "one" / "two").mkdir(parents=True)
    for path in (folder, folder / "one", folder / "one" / "two"):
        (path / "file").touch()
    given: list[Path] = []
    really = os.lchown

    def note(path: str, user: int, group: int) -> None:
        given.append(Path(path))
        really(path, user, group)

    monkeypatch.setattr(os, "lchown", note)
    system.copy_owner(tmp_path, folder)
    assert set(given) == {folder, *folder.rglob("*")}
    for number, path in enumerate(given):
        assert not set(path.parents).intersection(given[:number]), given
