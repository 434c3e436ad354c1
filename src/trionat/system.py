"""What not every system has, each in one place, with what stands in for it.

Nothing here asks what the system is called, only what Python has on it: so a test can take one thing away and see the other way taken.
`docs/platforms.md` lists these, and the few that stay where they are used.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator

_MACOS_MOST_DESCRIPTORS: Final = 10240
"""What macOS allows, whose hard limit tells of more (setrlimit(2), OPEN_MAX)."""

_OPEN_FILES: Final = "/proc/self/fd"
"""Where Linux has what this process has open."""


# --- sockets ---


def has_unix_sockets() -> bool:
    """Tell whether Python has Unix sockets: on Windows it has none."""
    return hasattr(socket, "AF_UNIX")


def is_unix(sock: socket.socket) -> bool:
    """Tell whether that is a Unix socket."""
    return sock.family == getattr(socket, "AF_UNIX", None)


def open_unix_socket(kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a new Unix socket, which no child inherits.

    Raises:
        OSError: there are none, or there is no descriptor left.
    """
    family: int | None = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError("this platform has no Unix sockets")
    return socket.socket(family, kind)


# --- processes and users ---


def count_processors() -> int:
    """Return how many processors this process may use; all of the machine's, where the system does not tell that."""
    allowed: Any = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def find_resident_memory() -> int | None:
    """Return how many bytes of memory this process has now; None where the system does not tell it at once: all but Linux."""
    with suppress(OSError, ValueError, IndexError), Path("/proc/self/status").open("rb") as status:
        for line in status:
            if line.startswith(b"VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


def is_running(pid: int) -> bool:
    """Tell whether a process of this user has not ended. One whose parent has not asked for its end has, where the system tells that: Linux. Not for Windows, where it would be asked to end."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]
        return state not in ([b"Z"], [b"X"])
    return True


def open_process(pid: int) -> int | None:
    """Return a descriptor that stands for a process, also when its number is another's by then, and that no child inherits.

    None where there is none: for a process that has gone, and on anything but Linux 5.3 or newer.
    """
    make: Any = getattr(os, "pidfd_open", None)
    with suppress(OSError):
        return None if make is None else int(make(pid))
    return None


def kill_process(pid: int, descriptor: int | None) -> None:
    """Kill a process: that of a descriptor of `open_process`, or, where there was none, whichever has this number. Not for Windows.

    Raises:
        OSError: It has gone, or is another user's.
    """
    at_once: Any = getattr(signal, "SIGKILL", None)
    if descriptor is None:
        os.kill(pid, at_once)
    else:
        send: Any = getattr(signal, "pidfd_send_signal", None)
        send(descriptor, at_once)


def wait_process(descriptor: int, timeout: float) -> bool:
    """Block until the process of a descriptor of `open_process` has ended, for at most `timeout` seconds; tell whether it has."""
    make: Any = getattr(select, "poll", None)
    end = make()
    end.register(descriptor, getattr(select, "POLLIN", 0))
    return bool(end.poll(timeout * 1000))


def find_user_id() -> int | None:
    """Return the number of the user who has started this process; None where users have none."""
    ask: Any = getattr(os, "getuid", None)
    return None if ask is None else int(ask())


def is_root() -> bool:
    """Tell whether this process may do everything; False where the system does not tell."""
    ask: Any = getattr(os, "geteuid", None)
    return ask is not None and ask() == 0


def is_in_foreground() -> bool:
    """Tell whether a shell waits for this process at a terminal: standard input and output are one, and what it says there is whose turn it is."""
    whose: Any = getattr(os, "tcgetpgrp", None)
    if whose is None or not (os.isatty(0) and os.isatty(1)):
        return False
    with suppress(OSError):  # it is not the terminal of this process, or has gone
        return bool(whose(1) == getattr(os, "getpgrp")())  # noqa: B009 - where there is one, there is the other
    return False


# --- descriptors ---


def find_descriptor_limit(*, at_most: bool = False) -> int | None:
    """Return how many descriptors this process may have, or `at_most`, when it has raised that; None where there is no limit, or the system does not tell."""
    resource = _resource()
    if resource is None:
        return None
    limit = int(resource.getrlimit(resource.RLIMIT_NOFILE)[at_most])
    return None if limit == resource.RLIM_INFINITY else limit


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as the system allows; where it tells of no limit, nothing happens."""
    resource = _resource()
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    for wanted in (hard, _MACOS_MOST_DESCRIPTORS):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def duplicate_from(descriptor: int, lowest: int) -> int | None:
    """Return a second descriptor of the same open file, with a number from `lowest` on, which no child inherits; None where that cannot be had."""
    fcntl = _fcntl()
    if fcntl is None:
        return None
    with suppress(OSError):
        return int(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest))
    return None


def count_free_files(path: Path) -> int | None:
    """Return how many more files a file system takes; None where it has no such bound, or the system does not tell.

    Raises:
        OSError: It cannot be asked.
    """
    ask: Any = getattr(os, "statvfs", None)
    if ask is None:
        return None
    told = ask(path)
    return int(told.f_favail) if told.f_files else None


def _fcntl() -> Any:
    try:
        import fcntl  # noqa: PLC0415 - POSIX only
    except ImportError:
        return None
    return fcntl


def _resource() -> Any:
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return None
    return resource


def wait_for_room(descriptor: int, timeout: float | None = None) -> bool:
    """Block until something can be written, for at most `timeout` seconds; tell whether it can be.

    `poll` takes a descriptor of any number; `select`, which Windows has alone, none above 1023, and there only sockets.
    """
    make: Any = getattr(select, "poll", None)
    if make is None:
        return bool(select.select([], [descriptor], [], timeout)[1])
    room = make()
    room.register(descriptor, getattr(select, "POLLOUT", 0))
    return bool(room.poll(None if timeout is None else timeout * 1000))


# --- files ---


def open_file(path: str | Path, flags: int, mode: int = 0o666, *, waiting: bool = True) -> int:
    """Open a file for bytes, as `os.open` does: unless it is told so, that writes other line ends on Windows.

    Without `waiting`, a pipe that nobody reads fails at once, where the system has pipes with names.

    Raises:
        OSError, ValueError: as `os.open`.
    """
    flags |= getattr(os, "O_BINARY", 0)
    if not waiting:
        flags |= getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags, mode)


def find_owner(path: Path) -> str | None:
    """Return the name of whom a file belongs to; None where it belongs to a number without a name, or the system does not tell.

    Raises:
        OSError: It cannot be looked at.
    """
    ask: Any = getattr(path, "owner", None)
    try:
        return None if ask is None else str(ask())
    except (KeyError, NotImplementedError):
        return None


def open_shared(path: Path, flags: int) -> int:
    """Open a file that stays in its folder (mode 0600), and is made where it is missing.

    Where root makes one in the folder of somebody else, it belongs to that user, whose programs are to open it as well. Root follows no link there.

    Raises:
        OSError: as `os.open`.
    """
    owner = path.parent.stat() if is_root() else None
    if owner is None or owner.st_uid == 0:
        return open_file(path, flags | os.O_CREAT, 0o600)
    descriptor = open_file(path, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        status = os.fstat(descriptor)
        # One with something in it may be a file of root's under a second name.
        if status.st_uid == 0 and not status.st_size and status.st_nlink == 1:
            give: Any = getattr(os, "fchown", None)
            if give is not None:
                give(descriptor, owner.st_uid, owner.st_gid)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_inside(folder: Path, name: str) -> int:
    """Open a file for reading by its path in a folder, with `/`, of which no part may be a link. For POSIX; a pipe fails or is empty at once.

    Raises:
        OSError: As `os.open`; where there is a link, with `ELOOP` or `ENOTDIR`.
    """
    *parts, last = name.split("/")
    no_links: int = getattr(os, "O_NOFOLLOW", 0)
    entering: int = no_links | getattr(os, "O_DIRECTORY", 0)
    at = os.open(folder, os.O_RDONLY)
    try:
        for part in parts:
            inner = os.open(part, os.O_RDONLY | entering, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(last, os.O_RDONLY | no_links | getattr(os, "O_NONBLOCK", 0), dir_fd=at)
    finally:
        os.close(at)


@contextmanager
def named_file(content: bytes) -> Generator[str]:
    """Give a path at which this content can be read while the block runs, for libraries that read files only. Blocks.

    Where the system has files in memory, it is one, and nothing gets to the disk; else a temporary file of this user alone (mode 0600).

    Raises:
        OSError: There can be none.
    """
    make: Any = getattr(os, "memfd_create", None)
    if make is not None and os.path.isdir(_OPEN_FILES):  # noqa: PTH112 - a constant
        descriptor: int = make("trionat")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"{_OPEN_FILES}/{descriptor}"
        return
    import tempfile  # noqa: PLC0415 - start time: few have no files in memory

    descriptor, path = tempfile.mkstemp(prefix="trionat-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        yield path  # closed: Windows lets nobody else read it before
    finally:
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - as it was made


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read at a place of a file that nobody else reads or writes meanwhile by this descriptor; where that moves on is not said."""
    read: Any = getattr(os, "pread", None)
    if read is not None:
        return bytes(read(descriptor, size, offset))
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes, offset: int) -> int:
    """Write at a place of a file, as `read_at`; return how much of it was written."""
    write: Any = getattr(os, "pwrite", None)
    if write is not None:
        return int(write(descriptor, data, offset))
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


def copy_owner(example: Path, folder: Path) -> None:
    """Have a folder, with all that is in it, belong to whom another one belongs, where this process may give things away (root).

    The folder itself comes last: until then nobody else can enter it (0700), and put a link in the place of what is still to be given.

    Raises:
        OSError: It cannot be done.
    """
    give: Any = getattr(os, "lchown", None)
    if give is None or not is_root():
        return
    owner = example.stat()
    for inner, _, files in os.walk(folder, topdown=False):
        for name in (*files, "."):
            give(os.path.join(inner, name), owner.st_uid, owner.st_gid)  # noqa: PTH118 - `os.walk` speaks in texts


def exchange(one: Path, other: Path) -> bool:
    """Have two files or folders change their names, at once; False where the system does not know how, and nothing has happened.

    Raises:
        OSError: It cannot be done.
    """
    try:
        import ctypes  # noqa: PLC0415 - seldom

        call: Any = ctypes.CDLL(None, use_errno=True).renameat2  # glibc 2.28, Linux 3.15
    except (ImportError, OSError, AttributeError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p),
        ctypes.c_uint,
    )
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    number = ctypes.get_errno()
    if number in (
        errno.ENOSYS,
        errno.EINVAL,
        errno.ENOTSUP,
    ):  # an old kernel, or a file system such as NFS
        return False
    raise OSError(number, os.strerror(number), str(other))
