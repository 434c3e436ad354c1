"""Taking a backup of a state folder, while a server or a client runs on it. Everything here blocks.

What belongs together is read together. While nobody can write to the accounts, the journal of the traffic that they do not have yet is read: so a
server that begins with both counts each byte once, as one does that was killed. The audit is read under its lock. Everything else is written whole
by whoever writes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from trionat.backup.archive import BLOCK, write_archive
from trionat.backup.contents import (
    DATABASE,
    JOURNAL,
    JOURNAL_OF_DATABASE,
    MOST_BYTES,
    MOST_FILES,
    OF_DATABASE,
    is_kept,
    why_left_out,
)
from trionat.backup.manifest import KeptFile, LeftOut, Manifest
from trionat.errors import StartupError
from trionat.store.private_file import hold_lock, is_there
from trionat.store.sqlite_file import copy_file
from trionat.system import is_root, open_file, open_inside
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import BinaryIO

_FOLDERS: Final = ("events", "certificates")
"""In which there is something for a backup; others are somebody else's."""

_LINK: Final = (
    "{}: it is a link, in a folder of another user: run this as that user, and not as root"
)

_TRIES: Final = 5
"""To read the events while none of their files takes the place of another, which happens every 10,000 events."""


@attrs.frozen
class ElsewhereAccounts:
    """Where the accounts are that are not in the folder, in words, and which command copies them."""

    place: str
    dump: str


@attrs.frozen
class Collection:
    """What is written: the manifest, and for each of its files what is in it, or where that is."""

    manifest: Manifest
    contents: dict[str, bytes | Path]

    def write(self, stream: BinaryIO, told: Callable[[int], None] = lambda _: None) -> None:
        """Write the backup; see `write_archive`."""
        write_archive(stream, self.manifest, self.contents, told)


@contextmanager
def collect(
    folder: Path,
    elsewhere: ElsewhereAccounts | None,
    told: Callable[[int, int], None] = lambda _done, _of: None,
) -> Generator[Collection]:
    """Read a state folder for a backup, and give it for the block; the copy of the accounts lies in the folder until then.

    Args:
        folder: The state folder of a server, a client, or both.
        elsewhere: Where the accounts are, if in no file of the folder.
        told: Gets how many pages of the accounts are copied, and of how many.

    Raises:
        StartupError: There is no state, or it cannot be read.
        StoreUnavailableError: That goes for the accounts.
    """
    kept, left_out = _look(folder, elsewhere)
    if not kept:
        raise StartupError(
            f"{folder}: there is no state of a server or a client here: is it the right folder? (--state-dir)"
        )
    with _copy_of_accounts(folder) as copy:
        try:
            contents, schema = _contents(folder, kept, left_out, copy, told)
            manifest = Manifest(
                version=VERSION,
                made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                schema=schema,
                database=elsewhere.place if elsewhere else "",
                dump=elsewhere.dump if elsewhere else "",
                files=tuple(_described(name, contents[name]) for name in sorted(contents)),
                left_out=tuple(left_out),
            )
        except OSError as error:  # what is outside this may be of whatever the backup goes to
            raise StartupError(f"{folder}: cannot read: {error.strerror or error}") from error
        yield Collection(manifest, contents)


def _contents(
    folder: Path,
    kept: Sequence[str],
    left_out: list[LeftOut],
    copy: Path,
    told: Callable[[int, int], None],
) -> tuple[dict[str, bytes | Path], int | None]:
    """Return what is in each file, the accounts being in `copy`, and of which schema these are."""
    contents: dict[str, bytes | Path] = {}
    schema: int | None = None
    if DATABASE in kept:
        _check_database(folder)
        journal, schema = copy_file(
            folder / DATABASE, copy, meanwhile=lambda: _read(folder, JOURNAL), told=told
        )
        contents[DATABASE] = copy
        if journal is not None:
            contents[JOURNAL] = journal
    elif (
        JOURNAL in kept
    ):  # of accounts in a database that the configuration at hand does not tell of
        left_out.append(LeftOut(JOURNAL, JOURNAL_OF_DATABASE))
    contents |= _events(folder)
    contents |= _audit(folder)
    together = {DATABASE, JOURNAL, *contents}
    for name in kept:
        alone = name not in together and not name.startswith(("audit.log", "events/"))
        if alone and (found := _read(folder, name)) is not None:
            contents[name] = found
    for name, content in contents.items():
        if isinstance(content, bytes):
            _check_size(folder / name, len(content))
    return contents, schema


def _look(folder: Path, elsewhere: ElsewhereAccounts | None) -> tuple[list[str], list[LeftOut]]:
    """Return the names of what there is for a backup, and what there is besides."""
    kept: list[str] = []
    left_out: list[LeftOut] = []
    for name in _names(folder):
        if not is_kept(name):
            left_out.append(LeftOut(name, why_left_out(name)))
        elif elsewhere is not None and name in (DATABASE, JOURNAL):
            reason = OF_DATABASE if name == DATABASE else JOURNAL_OF_DATABASE
            left_out.append(LeftOut(name, reason))
        elif len(kept) == MOST_FILES:
            raise StartupError(f"{folder}: a backup takes at most {MOST_FILES} files")
        else:
            kept.append(name)
    return kept, left_out


def _names(folder: Path) -> Iterator[str]:
    """Yield the path of each file in the folder, with `/`; folders of others are told as they are."""
    try:
        for path in sorted(folder.iterdir()):
            if path.name not in _FOLDERS or not path.is_dir():
                yield path.name
                continue
            for inner in sorted(path.iterdir()):
                if not inner.is_dir():
                    yield f"{path.name}/{inner.name}"
                else:
                    yield from (
                        f"{path.name}/{inner.name}/{file.name}" for file in sorted(inner.iterdir())
                    )
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(f"{folder}: cannot look into it: {error.strerror or error}") from error


def _read(folder: Path, name: str) -> bytes | None:
    """Return what is in a file; None where it has gone meanwhile.

    Raises:
        StartupError: It cannot be read, or is not to be read (`_check`).
    """
    path = folder / name
    try:
        opened = open_inside(folder, name) if _is_of_other(folder) else _open(path)
        with os.fdopen(opened, "rb") as file:
            found = os.fstat(file.fileno())
            _check(folder, path, found)
            _check_size(path, found.st_size)
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        if _is_of_other(folder) and error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise StartupError(_LINK.format(path)) from None
        raise StartupError(f"{path}: cannot read: {error.strerror or error}") from error


def _open(path: Path) -> int:
    return open_file(path, os.O_RDONLY, waiting=False)


def _is_of_other(folder: Path) -> bool:
    """Tell whether this is root in a folder of somebody else, who may put links in it to files that he may not read: `restore` would give them to him."""
    return is_root() and bool(folder.stat().st_uid)


def _check(folder: Path, path: Path, found: os.stat_result) -> None:
    """Refuse a pipe, at which a backup would wait for ever, and a link (also a hard one) where it may lead to what the folder's owner may not read."""
    is_of_other = _is_of_other(folder)
    if is_of_other and (
        stat.S_ISLNK(found.st_mode) or (found.st_nlink > 1 and found.st_uid != folder.stat().st_uid)
    ):
        raise StartupError(_LINK.format(path))
    if not stat.S_ISREG(found.st_mode):
        raise StartupError(f"{path}: it is no plain file: remove it")


def _check_size(path: Path, size: int) -> None:
    if size > MOST_BYTES:
        raise StartupError(
            f"{path}: it has {size} bytes, and a backup takes at most {MOST_BYTES}: move it away"
        )


def _check_database(folder: Path) -> None:
    path = folder / DATABASE
    try:
        _check(folder, path, path.lstat() if _is_of_other(folder) else path.stat())
    except OSError as error:
        raise StartupError(f"{path}: cannot read: {error.strerror or error}") from error


@contextmanager
def _copy_of_accounts(folder: Path) -> Generator[Path]:
    """Give an empty file beside the accounts, of the kind that is removed if we are killed."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{DATABASE}.", suffix=".tmp", dir=folder)
        os.close(descriptor)
    except OSError as error:
        raise StartupError(f"{folder}: cannot write: {error.strerror or error}") from error
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _events(folder: Path) -> dict[str, bytes]:
    """Return the files of the events, without a line that is just being written.

    How far webhooks have got comes first: what they hear meanwhile, they hear again, and know it.
    """
    names = ("events/positions.json", "events/journal.older.jsonl", "events/journal.jsonl")
    found: dict[str, bytes] = {}
    for _ in range(_TRIES):
        before = _stamp(folder / names[1])
        found = {name: content for name in names if (content := _read(folder, name)) is not None}
        if _stamp(folder / names[1]) == before:
            break
    return {
        name: content[: content.rfind(b"\n") + 1] if name.endswith(".jsonl") else content
        for name, content in found.items()
    }


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _audit(folder: Path) -> dict[str, bytes]:
    """Return the files of the audit, none of which gets another name meanwhile."""
    if not is_there(folder / "audit.log"):
        return {}
    with hold_lock(folder / "audit.lock"):
        names = [name for name in _names(folder) if name.startswith("audit.log") and is_kept(name)]
        return {name: content for name in names if (content := _read(folder, name)) is not None}


def _described(name: str, content: bytes | Path) -> KeptFile:
    if isinstance(content, bytes):
        return KeptFile(name, len(content), hashlib.sha256(content).hexdigest())
    digest, size = hashlib.sha256(), 0
    try:
        with content.open("rb") as file:
            while data := file.read(BLOCK):
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise StartupError(f"{content}: cannot read: {error.strerror or error}") from error
    return KeptFile(name, size, digest.hexdigest())
