"""Certificates by name: those that were ordered, in the state folder, and the operator's own files.

All are watched: what another process has written, or a program of the operator's has renewed, is served within `WATCH_INTERVAL`. A pair that does
not belong together, because only half of it is there yet, is not taken, and the one before stays. One whose files are gone, at two looks, is not
served any more: so an operator takes one away. Connections that are up keep the context that they began with.

| file in the folder | content |
| --- | --- |
| `account.key` | the key of our account at the authority |
| `schedule.json` | what `schedule` remembers |
| `NAME/certificate.pem` | the key for a name and its chain, in one file, so that the two are replaced at once |
"""

from __future__ import annotations

import ssl
import stat
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.certificates.certificate import MOST_BYTES, read_pair, wildcard_of
from trionat.signals import Signal
from trionat.store.private_file import make_private_folder, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from trionat.server.certificates.certificate import Certificate

log = get_logger(__name__)

WATCH_INTERVAL: Final = 5.0
"""Seconds between two looks at the files; one costs two calls of the system for each certificate, in a thread."""

_MOST_PAIRS: Final = 10_000
"""In one folder; more are not looked at."""

_MOST_TOLD: Final = 10
"""Names of a certificate, and files that are passed over, which are told."""

_CHAIN_SUFFIXES: Final = (".crt", ".pem", ".cer")
_IN_FOLDERS: Final = (("privkey.pem", "fullchain.pem"), ("tls.key", "tls.crt"))
"""What certbot and Kubernetes call a key and its chain."""

_Stamp = tuple[tuple[int, int, int, int], ...]


@attrs.frozen
class CertificateFiles:
    """A key and its chain, PEM, which may be the same file. `own`: they are the operator's."""

    key: Path
    chain: Path
    own: bool = True


@attrs.frozen
class Entry:
    """A certificate that is served. `context` offers HTTP/1.1 by ALPN."""

    certificate: Certificate
    files: CertificateFiles
    context: ssl.SSLContext


@attrs.frozen
class _Read:
    """What a look at a pair has found: the entry, or why there is none."""

    files: CertificateFiles
    stamp: _Stamp | None
    entry: Entry | None = None
    wrong: str = ""


@attrs.define(eq=False)
class CertificateStore:
    """See the module. `load` comes first; `watch` has to run.

    `own_files` are the operator's pairs, which have to be there at the start, and stay if they vanish later; `own_folder` is one in which he puts them: `NAME.key` beside `NAME.crt` or
    `NAME.pem`, or folders as certbot (`privkey.pem`, `fullchain.pem`) and Kubernetes (`tls.key`, `tls.crt`) have them. `changed` tells that a certificate has come, was replaced or is gone.
    """

    folder: Path
    own_files: tuple[CertificateFiles, ...] = ()
    own_folder: Path | None = None
    changed: Signal = attrs.field(init=False, factory=Signal)
    _entries: dict[CertificateFiles, Entry] = attrs.field(init=False, factory=lambda: {})
    _by_name: dict[str, Entry] = attrs.field(init=False, factory=lambda: {})
    _ordered: dict[str, Entry] = attrs.field(init=False, factory=lambda: {})
    _alone: dict[str, Entry] = attrs.field(init=False, factory=lambda: {})
    _stamps: dict[CertificateFiles, _Stamp | None] = attrs.field(init=False, factory=lambda: {})
    _doubtful: set[CertificateFiles] = attrs.field(init=False, factory=lambda: set())
    _missed: set[CertificateFiles] = attrs.field(init=False, factory=lambda: set())
    _http2: dict[CertificateFiles, tuple[Entry, ssl.SSLContext]] = attrs.field(
        init=False, factory=lambda: {}
    )
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=lambda: trio.CapacityLimiter(1)
    )

    # --- who has which ---

    def find(self, name: str) -> Entry | None:
        """Return what to show to a client that wants a name: the operator's certificate for it exactly, else his with a wildcard, else the one that was ordered.

        In this order, since none is ordered or renewed for a name for which the operator has one.
        """
        name = name.lower()
        exact, wildcard = self._by_name.get(name), self._by_name.get(wildcard_of(name))
        if exact is None or (wildcard is not None and wildcard.files.own and not exact.files.own):
            return wildcard
        return exact

    def find_alone(self, name: str) -> Entry | None:
        """Return a certificate that is for a name and nothing else.

        Behind another one, browsers may take a connection in HTTP/2 for several names (RFC 9113 9.1.1), and nobody here looks at the requests on it.
        """
        return self._alone.get(name.lower())

    def find_ordered(self, name: str) -> Entry | None:
        """Return the certificate that was ordered for a name, whether or not the operator has one as well."""
        return self._ordered.get(name)

    def all_ordered(self) -> dict[str, Entry]:
        """Return the certificates that were ordered, by name."""
        return dict(self._ordered)

    def has_own(self, name: str) -> bool:
        """Tell whether the operator has a certificate for a name, so that none has to be ordered."""
        entry = self.find(name)
        return entry is not None and entry.files.own

    async def http2_context(self, entry: Entry) -> ssl.SSLContext:
        """Return a context for the same certificate that offers HTTP/2 alone, by ALPN; made when it is asked for first.

        Raises:
            OSError: The files are not there any more, or not right.
        """
        known = self._http2.get(entry.files)
        if known is None or known[0] is not entry:
            context = await trio.to_thread.run_sync(_make_context, entry.files, "h2")
            self._http2[entry.files] = known = entry, context
        return known[1]

    # --- how they come ---

    async def load(self) -> None:
        """Read all that is there.

        Raises:
            StartupError: One of `own_files` cannot be used; the message says which, and why.
        """
        looked, _ = await self._look()
        for found in looked:
            if found.wrong and found.files in self.own_files:
                raise StartupError(f"{found.files.chain}: {found.wrong}")
        self._take(looked)
        for found in looked:
            if found.wrong:
                self._tell(found)
            elif found.entry is not None and found.files.own:
                certificate = found.entry.certificate
                log.info(
                    "a certificate of yours is served",
                    file=str(found.files.chain),
                    names=", ".join(sorted(certificate.names)[:_MOST_TOLD]),
                )
        if self.own_folder is not None:
            for path, reason in await trio.to_thread.run_sync(_passed_over, self.own_folder):
                log.warning("passed over in CertificatesDir", file=str(path), reason=reason)

    def become(self, other: CertificateStore) -> None:
        """Take over what another store of the same folder has read, and where it looks."""
        self.own_files, self.own_folder = other.own_files, other.own_folder
        self._entries, self._stamps = other._entries, other._stamps
        self._doubtful, self._missed = other._doubtful, other._missed
        self._http2.clear()
        self._sort()
        self.changed.notify()

    async def watch(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await trio.sleep(WATCH_INTERVAL)
            await self.refresh()

    async def refresh(self) -> None:
        """Look for changes now. What cannot be read twice in the same state is told once; what is missed twice is gone."""
        looked, missing = await self._look()
        self._take(looked)
        gone = missing & self._missed
        self._missed = missing - gone
        if gone:
            self._let_go(gone)
        for found in looked:
            if not found.wrong:
                self._doubtful.discard(found.files)
            elif found.files in self._doubtful:
                self._doubtful.discard(found.files)
                self._stamps[found.files] = found.stamp  # not to be read again as it is
                self._tell(found)
            else:
                self._doubtful.add(found.files)
                self._stamps.pop(found.files, None)

    async def put(self, name: str, key: bytes, chain: bytes) -> Entry:
        """Keep a certificate that was ordered for a name, and serve it from now on.

        Raises:
            StartupError: It cannot be written; the one before is untouched.
        """
        files = self._ordered_files(name)
        async with self._limiter:  # no look at the files meanwhile
            found = await trio.to_thread.run_sync(_write, files, key, chain)
        if found.entry is None:
            raise StartupError(f"{files.chain}: {found.wrong}")
        self._take([found])
        return found.entry

    async def remove(self, name: str) -> None:
        """Let go of the certificate that was ordered for a name, here and on the disk.

        Raises:
            StartupError: It cannot be removed from the disk.
        """
        files = self._ordered_files(name)
        async with self._limiter:  # no look at the files meanwhile
            await trio.to_thread.run_sync(_remove, files)
        self._let_go({files})

    def _take(self, looked: Sequence[_Read]) -> None:
        """Serve what was found; sorted once for all of it, since there may be thousands."""
        for found in looked:
            self._stamps[found.files] = found.stamp
            if found.entry is not None:
                self._entries[found.files] = found.entry
                self._http2.pop(found.files, None)
        if any(found.entry is not None for found in looked):
            self._sort()
            self.changed.notify()

    def _let_go(self, gone: Iterable[CertificateFiles]) -> None:
        for files in gone:
            self._doubtful.discard(files)
            for kept in (self._stamps, self._http2):
                kept.pop(files, None)
            if self._entries.pop(files, None) is not None:
                log.info("a certificate is gone", file=str(files.chain))
        self._sort()
        self.changed.notify()

    def _sort(self) -> None:
        self._by_name, self._ordered, self._alone = {}, {}, {}
        for entry in sorted(self._entries.values(), key=_preference):
            names = dict.fromkeys(entry.certificate.names, entry)
            self._by_name.update(names)
            if len(names) == 1:
                self._alone.update(names)
            if not entry.files.own:
                self._ordered.update(names)

    def _tell(self, found: _Read) -> None:
        log.warning(
            "a certificate cannot be used",
            file=str(found.files.chain),
            reason=found.wrong,
            goes_on=found.files in self._entries,
        )

    async def _look(self) -> tuple[list[_Read], set[CertificateFiles]]:
        known = {*self._stamps, *self._doubtful}
        return await trio.to_thread.run_sync(self._read_changed, known, limiter=self._limiter)

    def _read_changed(
        self, known: set[CertificateFiles]
    ) -> tuple[list[_Read], set[CertificateFiles]]:
        """Read each pair that is new or not as it was, and find those that are not there any more. Blocks."""
        files = list(self._files())
        changed = [_read(each) for each in files if self._stamps.get(each, ()) != _stamp(each)]
        return changed, {each for each in known.difference(files) if _is_gone(each)}

    def _files(self) -> Iterator[CertificateFiles]:
        yield from self.own_files
        if self.own_folder is not None:
            yield from _pairs_in(self.own_folder)
        for folder in _inside(self.folder):
            if _is_there(file := folder / "certificate.pem"):
                yield CertificateFiles(file, file, own=False)

    def _ordered_files(self, name: str) -> CertificateFiles:
        file = name_folder(self.folder, name) / "certificate.pem"
        return CertificateFiles(file, file, own=False)


def name_folder(folder: Path, name: str) -> Path:
    """Return where things of a name are; no file system takes the colons of an IPv6 address everywhere."""
    return folder / name.replace(":", "_")


def _preference(entry: Entry) -> tuple[bool, float]:
    """Of two for the same name the last one in this order is served: the operator's, or the one that lasts longer."""
    return entry.files.own, entry.certificate.ends


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MOST_PAIRS]
    except OSError:  # it is not there yet, or closed to us: what is served goes on
        return []


def _pairs_in(folder: Path) -> Iterator[CertificateFiles]:
    for path in _inside(folder):
        if path.suffix == ".key":
            for suffix in _CHAIN_SUFFIXES:
                if _is_there(chain := path.with_suffix(suffix)):
                    yield CertificateFiles(path, chain)
                    break
        elif _is_folder(path):
            for key, chain_name in _IN_FOLDERS:
                files = CertificateFiles(path / key, path / chain_name)
                if _is_there(files.key) and _is_there(files.chain):
                    yield files
                    if _stamp(files) is None:
                        break  # the folder is closed to us, which is said once


def _passed_over(folder: Path) -> list[tuple[Path, str]]:
    """Return the first of those that look as if they were meant, and are not served, with the reason. Blocks."""
    found: list[tuple[Path, str]] = []
    for path in _inside(folder):
        if path.suffix in _CHAIN_SUFFIXES and _is_missing(path.with_suffix(".key")):
            found.append((path, f"there is no {path.stem}.key beside it"))
        elif path.suffix == ".key" and all(
            _is_missing(path.with_suffix(suffix)) for suffix in _CHAIN_SUFFIXES
        ):
            found.append((path, f"there is no {path.stem}.crt or {path.stem}.pem beside it"))
        elif _is_folder(path) and (inside := _deeper(path)) is not None:
            found.append((inside, f"it is too deep: CertificatesDir has to be {path}"))
    return found[:_MOST_TOLD]


def _deeper(folder: Path) -> Path | None:
    """Return a folder with a pair in a folder that has none itself."""
    if any(_is_there(folder / key) for key, _ in _IN_FOLDERS):
        return None
    for path in _inside(folder):
        if any(_is_there(path / key) and _is_there(path / chain) for key, chain in _IN_FOLDERS):
            return path
    return None


def _is_folder(path: Path) -> bool:
    """Tell whether there is a folder, or may be one; see `_is_there`."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _is_there(path: Path) -> bool:
    """Tell whether there is a file, or may be one: what is closed to us is not passed over in silence, since reading it says why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _is_missing(path: Path) -> bool:
    """Tell whether there is nothing of that name, as far as can be seen."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_gone(files: CertificateFiles) -> bool:
    """Tell whether a pair is not there any more; one that is closed to us, or on a disk that is away, is not gone."""
    for path in (files.key, files.chain):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
    return False


def _stamp(files: CertificateFiles) -> _Stamp | None:
    """Return what changes whenever one of the files does; None where they cannot be looked at."""
    try:
        found = [path.stat() for path in (files.key, files.chain)]
    except OSError:
        return None
    return tuple((one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino) for one in found)


def _read(files: CertificateFiles) -> _Read:
    stamp = _stamp(files)
    try:
        certificate = read_pair(_content(files.key), _content(files.chain))
        context = _make_context(files, "http/1.1")
    except OSError as error:  # and ssl.SSLError
        return _Read(files, stamp, wrong=error.strerror or str(error))
    except ValueError as error:
        return _Read(files, stamp, wrong=str(error))
    if stamp != _stamp(files):
        return _Read(files, None, wrong="it is being written")
    return _Read(files, stamp, Entry(certificate, files, context))


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ValueError(f"{path.name} is no file")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _remove(files: CertificateFiles) -> None:
    try:
        files.chain.unlink(missing_ok=True)
        files.chain.parent.rmdir()
    except OSError as error:
        raise StartupError(f"{files.chain}: cannot remove: {error.strerror or error}") from error


def _write(files: CertificateFiles, key: bytes, chain: bytes) -> _Read:
    for folder in (files.chain.parent.parent, files.chain.parent):
        make_private_folder(folder)
    write_private(files.chain, key.rstrip() + b"\n" + chain)
    return _read(files)


def _make_context(files: CertificateFiles, protocol: str) -> ssl.SSLContext:
    """Return a context that shows the certificate. Blocks for 2 ms, and takes 30 KiB."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_2
    )  # visitors are browsers and programs of any age
    context.set_alpn_protocols([protocol])
    context.load_cert_chain(files.chain, files.key, "")  # an encrypted key fails instead of asking
    return context
