"""What the client calls itself, so that a server gives it the same ports again.

Owns the file `identity` of the client's state folder. Everything here is a plain function and blocks: call it through
`trio.to_thread.run_sync`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.store.private_file import create_private, is_there, make_private_folder, read_private
from trionat.text import NotTextError, decode_text, strip_around

if TYPE_CHECKING:
    from pathlib import Path

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
