"""The server's state: its key, its certificate, the key of its tickets, and where the accounts are; in a folder, or in memory for as long as it runs.

Owns the folder's layout and what must be secret in it. Everything that touches the disk is a plain function and blocks: a
server calls it through `trio.to_thread.run_sync`. Knows nothing of connections.

| file | content |
| --- | --- |
| `server.key` | private key, PEM, readable by the owner alone |
| `server.crt` | its self-signed certificate, PEM; delete both to get a new identity |
| `ticket.key` | 32 random bytes that every ticket follows from; delete it to make all tickets void |
| `trionat.db` | the accounts, SQLite |
| `address` | the public control address that was served last, for `trionat user ticket` |
| `other_servers` | what was `OtherServers` last, one address a line, likewise; not there where there were none |
| `certificate` | whether `server.crt` was shown last, or a configured certificate: also for tickets |
| `traffic.json` | traffic that the store does not have yet (`store/journal.py`) |
| `serve.lock` | locked while a server runs on the folder |
| `status.sock` | where a server that is up listens for commands (`server/admin/socket.py`) |
"""

from __future__ import annotations

import secrets
import ssl
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs

from trionat.address import parse_tcp_address
from trionat.errors import StartupError
from trionat.store.private_file import (
    create_private,
    is_there,
    lock_private,
    make_private_folder,
    read_private,
    write_private,
)
from trionat.transport.certificate import (
    fingerprint,
    first_certificate,
    make_certificate,
    make_certificate_aside,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trionat.address import TCPAddress

TICKET_KEY_BYTES: Final = 32
_SELF_SIGNED: Final = "self-signed"
_CONFIGURED: Final = "configured"


@attrs.frozen(kw_only=True)
class State:
    """What a server is known by, wherever it is kept.

    `fingerprint` is the SHA-256 of its self-signed certificate, 32 bytes; `ticket_key` is secret.
    """

    fingerprint: bytes
    ticket_key: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class MemoryState(State):
    """That of a server without a folder: gone when it ends. `pem` has the private key, and its certificate."""

    pem: bytes = attrs.field(repr=False)


def make_memory_state(
    names: Sequence[str] = ("localhost",), *, self_signed: bool = True
) -> MemoryState:
    """Make the state of a server that keeps nothing. Blocks for about a hundred milliseconds, and starts no process: this is a part of somebody else's program.

    `names` are host names and addresses for its certificate; with a configured one (not `self_signed`) none is made, as in `prepare_state`.
    """
    key, certificate = make_certificate(names) if self_signed else (b"", b"")
    return MemoryState(
        fingerprint=fingerprint(first_certificate(certificate.decode())) if self_signed else b"",
        ticket_key=secrets.token_bytes(TICKET_KEY_BYTES),
        pem=key + certificate,
    )


@attrs.frozen(kw_only=True)
class StateFolder(State):
    """A state folder that is ready: every file that it needs is there, and the secrets are nobody else's; `fingerprint` is that of `certificate_file`."""

    folder: Path

    @property
    def key_file(self) -> Path:
        """The private key, for `ssl.SSLContext.load_cert_chain`."""
        return self.folder / "server.key"

    @property
    def certificate_file(self) -> Path:
        """The self-signed certificate, for `ssl.SSLContext.load_cert_chain`."""
        return self.folder / "server.crt"

    def remember_address(self, address: TCPAddress) -> None:
        """Note the public control address that is served now. Blocks; raises `StartupError` where it cannot be written."""
        write_private(_address_file(self.folder), f"{address}\n".encode())

    def remember_others(self, addresses: Sequence[TCPAddress]) -> None:
        """Note the other servers that are named to clients now. Blocks; raises `StartupError` where it cannot be written."""
        path = _others_file(self.folder)
        if addresses or is_there(path):
            write_private(path, "".join(f"{address}\n" for address in addresses).encode())

    def last_others(self) -> tuple[TCPAddress, ...]:
        """Return the other servers noted last. Blocks.

        Raises:
            StartupError: The note cannot be read.
        """
        path = _others_file(self.folder)
        if not is_there(path):
            return ()
        try:
            return tuple(map(parse_tcp_address, read_private(path).decode().split()))
        except ValueError as exc:
            raise StartupError(f"{path}: {exc}; or start the server once more") from exc

    def remember_certificate(self, *, self_signed: bool) -> None:
        """Note whether the folder's own certificate is shown now. Blocks; raises `StartupError` where it cannot be written."""
        word = _SELF_SIGNED if self_signed else _CONFIGURED
        write_private(_certificate_note(self.folder), f"{word}\n".encode())

    def last_address(self) -> TCPAddress | None:
        """Return the address noted last, or None where no server has run yet. Blocks.

        Raises:
            StartupError: The note cannot be read.
        """
        path = _address_file(self.folder)
        if not is_there(path):
            return None
        try:
            return parse_tcp_address(read_private(path).decode().strip())
        except ValueError as exc:
            raise StartupError(f"{path}: {exc}; or start the server once more") from exc


def lock_state(folder: Path) -> BinaryIO:
    """Keep other servers off a state folder, which is made (0700) where it is missing. Blocks.

    `trionat user` and the like work on the folder nevertheless; a client's files in it are its own.

    Returns:
        What holds the lock until the caller closes it; the end of the process closes it as well.

    Raises:
        StartupError: Another server runs on the folder, or it cannot be used.
    """
    make_private_folder(folder)
    held = lock_private(folder / "serve.lock")
    if held is None:
        raise StartupError(
            f"{folder}: another trionat serve runs on this state folder: stop it, or give this one a folder of its own (--state-dir)"
        )
    return held


def database_file(folder: Path) -> Path:
    """Return where the accounts of a state folder are; the store makes the file, nobody else."""
    return folder / "trionat.db"


def ticket_key_file(folder: Path) -> Path:
    """Return where the key of a state folder's tickets is."""
    return folder / "ticket.key"


def is_self_signed(folder: Path) -> bool:
    """Tell whether the server on a state folder shows the certificate that it made there, as far as the folder knows. Blocks.

    A certificate that was given by a flag or a variable is in no file, so the server notes it. A folder of a version that did
    not has its own where there is one, or where no server has run.

    Raises:
        StartupError: The folder does not tell, or the note cannot be read.
    """
    note = _certificate_note(folder)
    if is_there(note):
        word = read_private(note).decode(errors="replace").strip()
        if word not in {_SELF_SIGNED, _CONFIGURED}:
            raise StartupError(
                f"{note}: it has to say {_SELF_SIGNED} or {_CONFIGURED}: start the server once more"
            )
        return word == _SELF_SIGNED
    if is_there(_address_file(folder)) and not is_there(folder / "server.crt"):
        raise StartupError(
            f"{folder}: a server has run here, and its certificate is not known: start it once more"
        )
    return True


def prepare_state(
    folder: Path, *, names: Sequence[str] = ("localhost",), self_signed: bool = True
) -> StateFolder:
    """Make a state folder complete, and read it. Blocks: a few milliseconds, at the first start some hundreds.

    Two servers that start for the first time at once end up with the same key, certificate and ticket key: each file has one
    winner, and the certificate is always made for the key that won.

    Args:
        folder: The folder; it is made (0700) where it is missing.
        names: Host names and addresses for a new certificate; one that is there stays.
        self_signed: Whether its own certificate is shown; with a configured one none is made or looked at, and `fingerprint`
            is empty.

    Raises:
        StartupError: A file cannot be made or read, is not what it has to be, or a key is open to others.
    """
    make_private_folder(folder)
    return StateFolder(
        folder=folder,
        fingerprint=_prepare_certificate(folder / "server.key", folder / "server.crt", names)
        if self_signed
        else b"",
        ticket_key=_prepare_ticket_key(ticket_key_file(folder)),
    )


def _prepare_certificate(key_file: Path, certificate_file: Path, names: Sequence[str]) -> bytes:
    """Make what is missing of the two, and return the certificate's fingerprint."""
    if not is_there(certificate_file):  # asked first: a key is there before its certificate
        made: tuple[bytes, bytes] | None = None
        if not is_there(key_file):
            made = make_certificate_aside(names)
            create_private(key_file, made[0])
        key = read_private(key_file, secret=True)
        try:
            if made is None or made[0] != key:  # another server has made the key meanwhile
                made = make_certificate_aside(names, key_pem=key)
            create_private(certificate_file, made[1])
        except ValueError as exc:
            raise StartupError(
                f"{key_file}: {exc}: restore the key, or delete it for a new one"
            ) from exc
    elif not is_there(key_file):
        raise StartupError(
            f"{key_file}: the key of {certificate_file.name} is missing: restore it, or delete {certificate_file} as well"
        )
    read_private(key_file, secret=True)
    try:
        value = fingerprint(first_certificate(read_private(certificate_file).decode()))
        # The empty password makes a key that has one an error, where OpenSSL would ask the terminal for it.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file, "")
    except (ValueError, ssl.SSLError) as exc:
        raise StartupError(
            f"{certificate_file}: it is damaged or not of {key_file.name}: restore both, or delete both for a new identity"
        ) from exc
    return value


def _prepare_ticket_key(path: Path) -> bytes:
    if not is_there(path):
        create_private(path, secrets.token_bytes(TICKET_KEY_BYTES))
    key = read_private(path, secret=True)
    if len(key) != TICKET_KEY_BYTES:
        raise StartupError(
            f"{path}: a ticket key is {TICKET_KEY_BYTES} bytes, not {len(key)}: delete it for a new one (tickets become void)"
        )
    return key


def _address_file(folder: Path) -> Path:
    return folder / "address"


def _others_file(folder: Path) -> Path:
    return folder / "other_servers"


def _certificate_note(folder: Path) -> Path:
    return folder / "certificate"
