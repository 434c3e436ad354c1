"""Small files that only their owner may read: keys, identities, lists of trusted servers.

Owns how such a file comes into being: written to a temporary file beside it, forced to the disk, then moved into place, so
that a reader sees the old content or the new one, whole, and a crash leaves one of the two. Everything here blocks for as long
as the disk takes, and turns what the system refuses into a `StartupError` that names the file.

Permissions are those of POSIX; on Windows a user's state folder is private already, and nothing is checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from trionat.errors import StartupError
from trionat.system import open_shared

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Generator


LOCK_TIMEOUT: Final = 5.0
"""Seconds to wait for a lock that is held for one change of a small file. Chosen, not measured."""

_LEFT_BEHIND: Final = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Temporary files of ours; a process that is killed leaves one behind."""

_LEFT_BEHIND_AFTER: Final = 3600.0
"""Seconds after which a temporary file is nobody's any more: it lives for as long as writing it takes."""


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, with its parents; one that exists stays as it is.

    Raises:
        StartupError: It cannot be made, or something else has that name.
    """
    with _told(folder, "make the folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def is_there(path: Path) -> bool:
    """Tell whether there is a file, or anything else, of that name.

    Raises:
        StartupError: That cannot be known, as for a folder that is closed to us: it must not pass for "no".
    """
    with _told(path, "look for it"):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def others_can_write(path: Path) -> bool:
    """Tell whether somebody besides the owner may change what is there; False where nothing is, and on Windows."""
    return bool(_mode(path) & (stat.S_IWGRP | stat.S_IWOTH))


def everybody_can_use(path: Path) -> bool:
    """Tell whether everybody on this machine may read or change a file; False where none is that we know of, and on Windows. A pipe holds nothing for others to read later."""
    mode = _mode(path)
    return stat.S_ISREG(mode) and bool(mode & stat.S_IRWXO)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode if os.name == "posix" else 0
    except OSError:
        return 0


def read_private(path: Path, *, secret: bool = False, what: str = "this key") -> bytes:
    """Return the content of a file.

    Args:
        path: The file.
        secret: Refuse a file that group or others can read, as ssh does: who has read it keeps what is in it.
        what: What is in such a file, for people.

    Raises:
        StartupError: It cannot be read, or is secret and open to others.
    """
    with _told(path, "read"), path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if secret and os.name == "posix" and mode & 0o077:
            raise StartupError(
                f"{path}: others can read or change {what} (mode {mode:04o}): run chmod 600 {shlex.quote(str(path))}"
            )
        return file.read()


def write_private(path: Path, content: bytes) -> None:
    """Write a file (mode 0600), in place of one that may be there.

    Raises:
        StartupError: It cannot be written; the old file is untouched.
    """
    with _told(path, "write"), _written(path, content) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def create_private(path: Path, content: bytes) -> bool:
    """Write a file (mode 0600) unless there is one; of several that try at once exactly one succeeds.

    Returns:
        Whether this call made the file. Where it did not, a whole file of somebody else's is there.

    Raises:
        StartupError: It cannot be written.
    """
    with _told(path, "write"), _written(path, content) as temporary:
        try:
            # A link, as nothing else both appears whole and refuses to replace: a rename replaces, and a file opened with
            # O_EXCL is seen while it is still empty.
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_folder(path.parent)
        return True


@contextlib.contextmanager
def new_private(path: Path) -> Generator[BinaryIO]:
    """Give a file (mode 0600) to be written by the block, which gets its name when the block has ended, and is on the disk then.

    Where the block fails nothing is left. An old file of that name is replaced.

    Raises:
        StartupError: It cannot be written; an `OSError` of the block counts as that.
    """
    with _told(path, "write"), _temporary(path) as (file, temporary):
        yield file
        _finish(file)
        temporary.replace(path)
        sync_folder(path.parent)


def lock_private(path: Path) -> BinaryIO | None:
    """Take a lock file (mode 0600) for whoever holds what is returned, until that is closed or the process ends, in whatever way.

    The file itself says nothing and stays: who removed it could remove one that another process has just taken.

    Returns:
        The open file, for the caller to close; None where somebody else holds it.

    Raises:
        StartupError: The file cannot be made or locked at all.
    """
    with _told(path, "lock"), contextlib.ExitStack() as closing:
        descriptor = open_shared(path, os.O_RDWR)
        file = closing.enter_context(os.fdopen(descriptor, "rb+"))
        if not _lock(file):
            return None
        closing.pop_all()
        return file


@contextlib.contextmanager
def hold_lock(path: Path) -> Generator[None]:
    """Hold a lock file (see `lock_private`) for the block; blocks for up to `LOCK_TIMEOUT` while somebody else holds it.

    Raises:
        StartupError: It is still held then, or cannot be made.
    """
    until = time.monotonic() + LOCK_TIMEOUT
    while (file := lock_private(path)) is None:
        if time.monotonic() >= until:
            raise StartupError(
                f"{path}: another process has held this lock for {LOCK_TIMEOUT:g} s: try again"
            )
        time.sleep(0.01)
    with file:
        yield


if sys.platform == "win32":

    def _lock(file: BinaryIO) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:

    def _lock(file: BinaryIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def _temporary(path: Path) -> Generator[tuple[BinaryIO, Path]]:
    """Give a new file in the folder of `path` (mode 0600, from mkstemp), and remove what is left of it, and of others."""
    _remove_left_behind(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Generator[Path]:
    """Give a temporary file of that content, closed and on the disk."""
    with _temporary(path) as (file, temporary):
        file.write(content)
        _finish(file)
        yield temporary


def _finish(file: BinaryIO) -> None:
    """Force what was written to the disk. It is closed as well: Windows renames nothing that is open."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _remove_left_behind(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; one that cannot be removed is no reason not to write."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _LEFT_BEHIND.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age > _LEFT_BEHIND_AFTER:
                    Path(entry.path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's new entry to the disk; Windows cannot open folders, and does not need it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(path: Path, doing: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise StartupError(f"{path}: cannot {doing}: {exc.strerror or exc}") from exc
