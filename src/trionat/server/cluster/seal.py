"""The key of the cluster, and what is sealed with it: nobody who only sees Redis can read it, change it, or use it elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import StartupError
from trionat.store.private_file import create_private, is_there, make_private_folder, read_private

if TYPE_CHECKING:
    from pathlib import Path

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 8


@attrs.frozen
class Seal:
    """Seals values for a purpose each: opened for another purpose, or with another key, they are refused."""

    key: bytes = attrs.field(repr=False)

    @property
    def cluster_id(self) -> str:
        """What tells clusters apart. No secret: nothing follows from it."""
        return hmac.digest(self.key, b"trionat cluster id", hashlib.sha256)[:_ID_BYTES].hex()

    def close(self, purpose: str, content: bytes) -> bytes:
        """Return the content, sealed."""
        # Here, as it takes 80 ms to import, and a server that is alone does not need it.
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415
            ChaCha20Poly1305,
        )

        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + ChaCha20Poly1305(self.key).encrypt(nonce, content, purpose.encode())

    def open(self, purpose: str, sealed: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            ValueError: It was sealed with another key or for another purpose, or was changed.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415
            ChaCha20Poly1305,
        )

        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return ChaCha20Poly1305(self.key).decrypt(nonce, rest, purpose.encode())
        except (InvalidTag, ValueError):
            raise ValueError("it was sealed with another key, or has been changed") from None


def make_key_file(path: Path) -> bool:
    """Make the key of a new cluster, unless the file is there; tell whether it was made. Blocks.

    Raises:
        StartupError: It cannot be written.
    """
    if is_there(path):
        return False
    make_private_folder(path.parent)
    text = base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n"
    return create_private(path, text)


def read_key_file(path: Path) -> Seal:
    """Read the key of the cluster. Blocks.

    Raises:
        StartupError: There is none, it is open to others, or no such key.
    """
    if not is_there(path):
        raise StartupError(
            f"{path}: there is no key of the cluster: copy it from another node; for a new cluster run trionat cluster init"
        )
    try:
        key = base64.b64decode(read_private(path, secret=True).strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise StartupError(
            f"{path}: it is no key of a cluster: copy it anew from another node, as it is"
        )
    return Seal(key)
