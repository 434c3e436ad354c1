"""What the client calls itself, so that a server gives it the same ports again.

Owns the file `identity` of the client's state folder, and the locks by which a client notices that another one has the same
identity. Everything here blocks: call it through `trio.to_thread.run_sync`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.store.private_file import (
    create_private,
    is_there,
    lock_private,
    make_private_folder,
    read_private,
)
from trionat.text import NotTextError, decode_text, strip_around

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trionat.client.native.dialer import Server
    from trionat.config.client import ClientConfig

log = get_logger(__name__)

_IDENTITY: Final = re.compile(r"[0-9a-f]{32}")
_IDENTITY_BYTES: Final = 16


def find_identity(config: ClientConfig, *, in_memory: bool = False) -> str:
    """Return the identity of a client: the one that is configured, or one that is the same at each start with the same services; with `in_memory` one for now.

    It is another for other services, so a second `trionat connect` beside the first does not evict it. Blocks.

    Raises:
        StartupError: there is no ticket either, and the state folder cannot be used.
    """
    if config.identity is not None:
        return config.identity
    if in_memory:
        return secrets.token_hex(_IDENTITY_BYTES)
    parts = [_installation(config), *map(str, config.effective_services())]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def _installation(config: ClientConfig) -> str:
    """Return the identity in the state folder. With a ticket no folder is needed: then, where there is none, one for now."""
    try:
        return load_identity(config.effective_state_dir)
    except StartupError as error:
        if config.ticket is None and config.ticket_file is None:
            raise
        log.warning(
            "the identity is for this run only: after the next start the visit ports may be others (Identity, StateDir)",
            error=str(error),
        )
        return secrets.token_hex(_IDENTITY_BYTES)


def load_identity(folder: Path) -> str:
    """Return the client's identity, 32 hex digits; the first call makes it, at random. Blocks.

    Of two clients that start for the first time at once, both get the same.

    Raises:
        StartupError: The file cannot be made or read, or is damaged.
    """
    path = folder / "identity"
    if not is_there(path):
        make_private_folder(folder)
        create_private(path, f"{secrets.token_hex(_IDENTITY_BYTES)}\n".encode())
    try:
        identity = strip_around(decode_text(read_private(path)))
    except NotTextError:
        identity = ""
    if not _IDENTITY.fullmatch(identity):
        raise StartupError(
            f"{path}: an identity is {2 * _IDENTITY_BYTES} hex digits: delete it for a new one"
        )
    return identity


@attrs.define(eq=False)
class IdentityLock:
    """Held while a client is up, so that another one on the same state folder knows whom it puts out. It keeps nobody from connecting.

    It is for one user at the same servers: elsewhere the same identity is somebody else. The process id of the holder is in the file.
    """

    path: Path
    _file: BinaryIO | None = attrs.field(init=False, default=None)
    _is_over: bool = attrs.field(init=False, default=False)

    @classmethod
    def of(cls, folder: Path, identity: str, servers: Iterable[Server]) -> IdentityLock:
        """Return the lock of a client, which is not held yet."""
        whom = {f"{server.username}\0{server.control}" for server in servers}
        parts = "\0".join((identity, *sorted(whom)))
        name = hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()[:16]
        return cls(folder / f"connect-{name}.lock")

    @property
    def is_held(self) -> bool:
        """Whether this client has it."""
        return self._file is not None

    def take(self) -> bool:
        """Take it; False where another client has it. Nothing is made but the file.

        Raises:
            StartupError: The folder cannot be used, or is not there.
        """
        while (file := lock_private(self.path)) is not None:
            if self._is_at_place(file):
                break
            file.close()  # its holder has removed it between our opening and locking it
        if file is None:
            return False
        with suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
        self._file = file
        if self._is_over:
            self.release()
        return True

    def _is_at_place(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            return False

    def find_holder(self) -> int | None:
        """Return the process id of the client that has it; None where that cannot be known, as on Windows."""
        try:
            return int(self.path.read_bytes()[:20])
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Give it back, and remove the file, if it is held; from then on it is not taken any more. Never fails."""
        self._is_over = True
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # Windows removes nothing that is open
                self.path.unlink()
            with suppress(OSError):
                file.close()
