"""Putting a backup back in the place of a state folder. Everything here blocks.

The backup is unpacked and checked beside the folder, forced to the disk, and then gets its name: so a cut at any moment leaves the old folder or the
new one. What was there is moved aside, never removed, unless it was empty.
"""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import stat
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs

from trionat.backup.archive import Archive
from trionat.backup.contents import CERTIFICATE, DATABASE
from trionat.backup.manifest import BackupError
from trionat.errors import StartupError, StoreUnavailableError
from trionat.fingerprint import format_fingerprint
from trionat.server.events.audit import note_change
from trionat.server.state_folder import lock_state
from trionat.store.private_file import make_private_folder, sync_folder
from trionat.store.sqlite_file import check_copy
from trionat.system import copy_owner, exchange, is_root
from trionat.transport.certificate import fingerprint, first_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from trionat.backup.manifest import Manifest

LOCK: Final = "serve.lock"
_KEY: Final = "server.key"

_SPARE_BYTES: Final = 16 * 1024 * 1024
"""That have to be free besides. Chosen."""

_MOST_ASIDE: Final = 100


@attrs.frozen
class Restored:
    """What was done: the backup's manifest, where the folder of before is, if any, and the fingerprint of the server's own certificate, if it has one."""

    manifest: Manifest
    aside: Path | None
    fingerprint: str | None


def restore(
    stream: BinaryIO,
    folder: Path,
    *,
    force: bool = False,
    told: Callable[[int, int], None] = lambda _done, _of: None,
) -> Restored:
    """Put the backup in a stream in the place of a state folder, on which no server runs.

    Args:
        stream: The backup; it may come from anybody.
        folder: The state folder; it is made where it is missing, and has to be empty otherwise.
        force: Move aside what is there.
        told: Gets how many bytes are unpacked, and of how many.

    Raises:
        BackupError: It is none, or is damaged, or of a newer program; nothing has changed.
        StartupError: A server runs on the folder, it is not empty, or it cannot be written; nothing has changed.
    """
    folder = Path(os.path.realpath(folder))  # where a link leads, the link stays
    there = _is_folder(folder)
    _check_parents(folder)
    with _held(folder) if there else nullcontext() as held:
        is_empty = there and _is_empty(folder)
        if there and not is_empty and not force:
            raise StartupError(
                f"{folder}: it is not empty: restore into another folder (--state-dir), or move what is there aside (--force)"
            )
        archive = Archive.open(stream)
        with _beside(folder) as new:
            _unpack(archive, new, told)
            shown = _check(new)
            if any((new / name).exists() for name in (DATABASE, _KEY)):
                # Here, and not by the command when all is done: a file that root made then would be closed to the server.
                note_change(new, "state.restored", str(folder), made=archive.manifest.made)
            _sync(new)
            if there:
                with _told(new, "give it to the owner of the old folder"):
                    copy_owner(folder, new)
        aside = _put_in_place(new, folder, held)
        if aside is not None and is_empty:
            _remove_empty(aside)
            aside = None
        return Restored(archive.manifest, aside, shown)


@contextmanager
def _held(folder: Path) -> Generator[BinaryIO]:
    """Keep servers off a folder; where the block fails, no lock file is left that was not there: one of root's would be closed to the server."""
    path = folder / LOCK
    there = os.path.lexists(path)
    with lock_state(folder) as held:
        try:
            yield held
        except BaseException:
            if not there:
                with suppress(OSError):
                    path.unlink()
            raise


def _check_parents(folder: Path) -> None:
    """Refuse to be root below a folder of somebody else, or in which everybody or a group but root's may rename: they could put something else in the place of what is about to be given away. `folder` leads there without a link."""
    if not is_root():
        return
    for parent in folder.parents:
        with _told(parent, "look at it"):
            if not os.path.lexists(parent):  # it is about to be made
                continue
            found = parent.stat()
        if found.st_uid:
            raise StartupError(
                f"{parent}: it belongs to another user: run this as that user, and not as root"
            )
        if found.st_mode & stat.S_ISVTX:
            continue
        everybody = found.st_mode & stat.S_IWOTH
        group = found.st_mode & stat.S_IWGRP and found.st_gid
        if everybody or group:
            who = "everybody" if everybody else f"its group ({found.st_gid})"
            whom = ("g" if group else "") + ("o" if everybody else "")
            raise StartupError(
                f"{parent}: {who} may rename what is in it: run chmod {whom}-w {shlex.quote(str(parent))}"
            )


def _is_folder(folder: Path) -> bool:
    with _told(folder, "look for it"):
        if folder.is_dir():
            return True
        if os.path.lexists(folder):
            raise StartupError(f"{folder}: it is no folder: restore into another one (--state-dir)")
        return False


def _is_empty(folder: Path) -> bool:
    with _told(folder, "look into it"):
        return {path.name for path in folder.iterdir()} <= {LOCK}


@contextmanager
def _beside(folder: Path) -> Generator[Path]:
    """Give a new folder (0700) in that of `folder`, which is removed where the block fails."""
    make_private_folder(folder.parent)
    with _told(folder.parent, "make a folder beside the state folder"):
        new = Path(
            tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".restore", dir=folder.parent)
        )
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _unpack(archive: Archive, new: Path, told: Callable[[int, int], None]) -> None:
    """Write each file (0600), on the disk when this returns."""
    size, done = archive.manifest.size, 0
    with _told(new, "write"):
        free = shutil.disk_usage(new).free
        if size + _SPARE_BYTES > free:
            raise StartupError(f"{new.parent}: {size} bytes are needed here, and {free} are free")
        for known, content in archive.files():
            path = new / known.name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                for data in content:
                    file.write(data)
                    done += len(data)
                    told(done, size)
                file.flush()
                os.fsync(file.fileno())


def _sync(new: Path) -> None:
    """Force the entries of all folders to the disk."""
    with _told(new, "write"):
        for inner, _, _ in os.walk(new):
            sync_folder(Path(inner))


def _check(new: Path) -> str | None:
    """Look at what a server could not start with; return the fingerprint of its certificate.

    Raises:
        BackupError: Something is damaged.
    """
    if (new / DATABASE).exists():
        try:
            check_copy(new / DATABASE)
        except StoreUnavailableError as error:
            raise BackupError(str(error).removeprefix(f"{new}{os.sep}")) from None
    certificate, key = new / CERTIFICATE, new / _KEY
    if not certificate.exists():
        return None
    try:
        shown = fingerprint(first_certificate(certificate.read_text()))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, "")
    except (ValueError, OSError):  # ssl.SSLError is an OSError
        raise BackupError(f"{CERTIFICATE} is damaged in it, or not of server.key") from None
    return format_fingerprint(shown)


def _put_in_place(new: Path, folder: Path, held: BinaryIO | None) -> Path | None:
    """Have the new folder be the one; return where the old one is, if there was one.

    At once, where the system can do so: else there is a moment without any. Whatever happens, nothing is removed that may be the old one.
    """
    aside = None if held is None else _aside(folder)
    doing = "put the new folder in its place (a mount point stays what it is: name a folder in it)"
    with _told(folder, doing):
        try:
            exchanged = False
            if held is None or aside is None:
                new.rename(folder)
            elif not (exchanged := exchange(new, folder)):
                _move_one_by_one(new, folder, aside, held)
        except OSError:  # then they have not changed their names
            shutil.rmtree(new, ignore_errors=True)
            raise
        if exchanged and aside is not None:
            try:
                new.rename(aside)
            except OSError:
                aside = new  # it stays where it is
        sync_folder(folder.parent)
    return aside


def _move_one_by_one(new: Path, folder: Path, aside: Path, held: BinaryIO) -> None:
    try:
        folder.rename(aside)
    except PermissionError:  # as Windows has it, while something in it is open
        held.close()
        folder.rename(aside)
    try:
        new.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise


def _aside(folder: Path) -> Path:
    """Return a name for the folder of before."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(_MOST_ASIDE):
        path = folder.with_name(f"{folder.name}.before-{now}" + (f"-{number}" if number else ""))
        if not os.path.lexists(path):
            return path
    raise StartupError(f"{folder}: there are too many folders of before beside it: remove some")


def _remove_empty(aside: Path) -> None:
    with suppress(OSError):
        (aside / LOCK).unlink(missing_ok=True)
        aside.rmdir()


@contextmanager
def _told(path: Path, doing: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise StartupError(f"{path}: cannot {doing}: {exc.strerror or exc}") from exc
