"""The file of a backup: a tar, compressed by gzip, of plain files, of which the first is the manifest. Everything here blocks.

Whoever reads one trusts nothing in it. A name, a kind or a size that is not as the manifest says, or that no backup has, is refused before a byte of it is written.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from contextlib import closing, contextmanager
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, Self, cast

import attrs

from trionat.backup.manifest import MOST_MANIFEST_BYTES, NAME, BackupError, Manifest
from trionat.errors import StartupError
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

    from trionat.backup.manifest import KeptFile

BLOCK: Final = 256 * 1024

_LONGEST_READ: Final = 1024 * 1024
"""Bytes that `tarfile` may want at once. It reads the header of a long name whole, whatever size that claims to have."""

_MEMBER_BYTES: Final = 8192
"""Of headers and padding, before each file: `tarfile` keeps what it reads there."""

_COMPRESSION: Final = 6


def write_archive(
    stream: BinaryIO,
    manifest: Manifest,
    contents: Mapping[str, bytes | Path],
    told: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a backup; `contents` has what is in each file, or where that is. `told` gets how many bytes are done, again and again.

    Raises:
        OSError: As the stream says.
        StartupError: What is to be in a file cannot be read.
    """
    done, made = 0, datetime.fromisoformat(manifest.made)
    output = cast("BinaryIO", _Output(stream))
    with (
        closing(gzip.GzipFile("", "wb", _COMPRESSION, output, mtime=0)) as packed,
        tarfile.open(fileobj=cast("IO[bytes]", packed), mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        encoded = manifest.encode()
        tar.addfile(_member(NAME, len(encoded), made), io.BytesIO(encoded))
        for each in manifest.files:
            content = contents[each.name]
            with _opened(content) as file:
                tar.addfile(
                    _member(each.name, each.size, made),
                    cast("IO[bytes]", _Counted(file, each.name, told, done)),
                )
            done += each.size


@attrs.define(eq=False)
class _Output:
    """A stream, until it fails: Python 3.13 writes the end of a gzip file also when nobody has that any more."""

    _stream: BinaryIO
    _has_failed: bool = attrs.field(init=False, default=False)

    def write(self, data: bytes) -> int:
        if self._has_failed:
            return len(data)
        try:
            return self._stream.write(data)
        except BaseException:
            self._has_failed = True
            raise

    def flush(self) -> None:
        if not self._has_failed:
            self._stream.flush()


def _opened(content: bytes | Path) -> BinaryIO:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    try:
        return content.open("rb")
    except OSError as error:
        raise StartupError(f"{content}: cannot read: {error.strerror or error}") from error


def _member(name: str, size: int, made: datetime) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(made.timestamp())
    return member


@attrs.define(eq=False)
class _Counted:
    """A file that tells how many bytes were read, from `_done` on. It fails otherwise than where these go."""

    _file: BinaryIO
    _name: str
    _told: Callable[[int], None]
    _done: int

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise StartupError(f"{self._name}: cannot read: {error.strerror or error}") from error
        self._done += len(data)
        self._told(self._done)
        return data


@attrs.define(eq=False)
class Archive:
    """A backup that is read once, from its beginning to its end. Whatever is wrong with it, or with reading it, is a `BackupError`."""

    manifest: Manifest
    _tar: tarfile.TarFile
    _source: _Source

    @classmethod
    def open(cls, stream: BinaryIO) -> Self:
        """Read the manifest of the backup in a stream, which the caller closes.

        Raises:
            BackupError: It is none, is damaged, or of a newer program.
        """
        source = _Source(cast("BinaryIO", gzip.GzipFile("", "rb", fileobj=stream)), _MEMBER_BYTES)
        with _understood():
            tar = tarfile.open(fileobj=cast("IO[bytes]", source), mode="r:")  # noqa: SIM115 - it owns nothing
            first = tar.next()
        if first is None or first.name != NAME or not _is_plain(first):
            raise BackupError(f"it is no backup of trionat: it does not begin with {NAME}")
        if first.size > MOST_MANIFEST_BYTES:
            raise BackupError(f"its {NAME} is too long")
        source.most += first.size
        return cls(Manifest.decode(b"".join(_read(tar, first))), tar, source)

    def files(self) -> Iterator[tuple[KeptFile, Iterator[bytes]]]:
        """Yield each file and what is in it, to be read before the next one; at the end all of them were there, each as the manifest says.

        Raises:
            BackupError: They were not.
        """
        missing = {each.name: each for each in self.manifest.files}
        while (member := self._next()) is not None:
            known = missing.pop(member.name, None)
            if known is None:
                raise BackupError(f"{quoted(member.name)} is not in its {NAME}, or there twice")
            if not _is_plain(member):
                raise BackupError(f"{known.name} is no plain file in it")
            if member.size != known.size:
                raise BackupError(f"{known.name} is not as long as its {NAME} says")
            yield known, self._checked(member, known)
        if missing:
            raise BackupError(f"{min(missing)} is missing in it")

    def _next(self) -> tarfile.TarInfo | None:
        tar: Any = self._tar
        tar.members = []  # which it would keep, all of them
        self._source.most = self._source.tell() + _MEMBER_BYTES
        with _understood():
            return self._tar.next()

    def _checked(self, member: tarfile.TarInfo, known: KeptFile) -> Iterator[bytes]:
        digest = hashlib.sha256()
        self._source.most += member.size
        for data in _read(self._tar, member):
            digest.update(data)
            yield data
        if digest.hexdigest() != known.sha256:
            raise BackupError(f"{known.name} is damaged in it: its SHA-256 is another one")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    with _understood():
        file = tar.extractfile(member)
    left = member.size
    while left:
        with _understood():
            data = file.read(min(left, BLOCK)) if file is not None else b""
        if not data:
            raise BackupError(f"it was cut off in {member.name}")
        left -= len(data)
        yield data


@contextmanager
def _understood() -> Generator[None]:
    """Turn what Python says of what it cannot read into words for people."""
    try:
        yield
    except (
        *(EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError, RecursionError),
        IndexError,  # as tarfile has it where a list of holes is cut off
    ):
        raise BackupError("it is no backup of trionat, or was cut off or damaged") from None
    except OSError as error:
        raise BackupError(f"cannot be read: {error.strerror or error}") from error


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Tell whether that is a file and no link, device, folder, or file with holes, and has a name that stays where it is unpacked."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        return False
    check: Any = getattr(tarfile, "data_filter", None)  # not in 3.11.0 to 3.11.3
    if check is not None:
        try:
            return bool(check(member, "/nowhere").name == member.name)
        except tarfile.TarError:
            return False
    return True


@attrs.define(eq=False)
class _Source:
    """What `tarfile` reads from: forward only, up to the byte `most`, and not too many bytes at once."""

    stream: BinaryIO
    most: int
    _at: int = 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_READ or self._at + size > self.most:
            raise tarfile.ReadError("too long")
        data = self.stream.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int) -> int:
        if not self._at <= offset <= self.most:
            raise tarfile.ReadError("not forward")
        while self._at < offset:
            if not self.read(min(offset - self._at, BLOCK)):
                raise tarfile.ReadError("cut off")
        return self._at
