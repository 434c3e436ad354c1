"""Who a cluster is for its clients: the private key, the certificate and the key of tickets, the same at every node.

They are in the state folder of each node, where a server that is alone has them too, and sealed in Redis, where a node that joins gets
them from.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import RemoteProtocolError, StartupError
from trionat.protocol.fields import Fields
from trionat.server.state_folder import TICKET_KEY_BYTES, ticket_key_file
from trionat.store.private_file import (
    create_private,
    is_there,
    make_private_folder,
    read_private,
    write_private,
)
from trionat.transport.certificate import first_certificate

if TYPE_CHECKING:
    from trionat.server.cluster.seal import Seal

PURPOSE: Final = "trionat identity 1"
_LONGEST: Final = 64 * 1024


@attrs.frozen
class Identity:
    """The contents of the three files."""

    key: bytes = attrs.field(repr=False)
    certificate: bytes
    ticket_key: bytes = attrs.field(repr=False)

    def seal(self, seal: Seal) -> bytes:
        """Return what is put into Redis."""
        values = {name: base64.b64encode(value).decode() for name, value in _parts(self)}
        return seal.close(PURPOSE, json.dumps(values).encode())

    @classmethod
    def unseal(cls, seal: Seal, sealed: bytes) -> Identity:
        """Return what another node has sealed; `check` is for whoever is going to use it.

        Raises:
            StartupError: It is not of this cluster.
        """
        try:
            if len(sealed) > _LONGEST:
                raise ValueError("it is too long")
            fields = Fields.parse("the identity", seal.open(PURPOSE, sealed))
            parts = [
                base64.b64decode(fields.text(name, longest=_LONGEST), validate=True)
                for name in ("key", "certificate", "ticket_key")
            ]
        except (ValueError, binascii.Error, RemoteProtocolError) as error:
            raise StartupError(
                f"the cluster's key and certificate in Redis cannot be used: {error}: is KeyFile the one of this cluster?"
            ) from None
        return cls(*parts)

    def check(self) -> None:
        """Check that the parts belong together. Blocks.

        Raises:
            StartupError: They do not.
        """
        try:
            self._check()
        except ValueError as error:
            raise StartupError(
                f"the cluster's key and certificate in Redis cannot be used: {error}"
            ) from None

    def _check(self) -> None:
        if len(self.ticket_key) != TICKET_KEY_BYTES:
            raise ValueError(f"the key of tickets has {len(self.ticket_key)} bytes")
        first_certificate(self.certificate.decode())
        with tempfile.TemporaryDirectory(prefix="trionat-") as name:  # OpenSSL takes files only
            folder = Path(name)
            (folder / "crt").write_bytes(self.certificate)
            write_private(folder / "key", self.key)
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(folder / "crt", folder / "key", "")
            except ssl.SSLError:
                raise ValueError("the certificate is not of the key") from None


def _parts(identity: Identity) -> list[tuple[str, bytes]]:
    return [
        ("key", identity.key),
        ("certificate", identity.certificate),
        ("ticket_key", identity.ticket_key),
    ]


def _files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "server.key", folder / "server.crt", ticket_key_file(folder)


def read_identity(folder: Path) -> Identity | None:
    """Return what a state folder has; None where a part is missing. Blocks.

    Raises:
        StartupError: A file cannot be read, or a key is open to others.
    """
    files = _files(folder)
    if not all(map(is_there, files)):
        return None
    key, certificate, ticket_key = files
    return Identity(
        read_private(key, secret=True),
        read_private(certificate),
        read_private(ticket_key, secret=True),
    )


def adopt_identity(folder: Path, identity: Identity, *, replace: bool = False) -> bool:
    """Put the cluster's identity into a state folder, and tell whether it was not there yet. Blocks.

    With `replace`, what is there of another server is kept beside it, with the date in its name.

    Raises:
        StartupError: The folder has another server's identity, or cannot be written.
    """
    make_private_folder(folder)
    contents = [content for _, content in _parts(identity)]
    pairs = list(zip(_files(folder), contents, strict=True))
    differing = [
        path for path, content in pairs if is_there(path) and read_private(path) != content
    ]
    if differing and not replace:
        raise StartupError(
            f"{differing[0]}: this folder has the key of another server than the cluster's: run trionat cluster join, which"
            " takes the cluster's and keeps this one beside it; tickets that this server has made are void then. If all nodes are to"
            " have the key of this folder, stop them, empty the cluster's Redis, and run trionat cluster init with this folder"
            " (--state-dir)"
        )
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for path in differing:
        path.rename(path.with_name(f"{path.name}.before-{date}"))
    made = False
    for path, content in pairs:
        made = create_private(path, content) or made
    return made
