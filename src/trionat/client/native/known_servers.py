"""Whom the client trusts: the fingerprints of known servers.

Owns the file `known_servers` of the client's state folder: one `HOST:PORT SHA256:…` a line; blank lines and lines that start
with `#` are the user's own and stay. Everything that touches the disk is a plain function and blocks: call it through
`trio.to_thread.run_sync`. What to do about a server that is not known is somebody else's decision.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import attrs

from trionat.address import parse_tcp_address
from trionat.errors import IdentityError, StartupError
from trionat.fingerprint import format_fingerprint, parse_fingerprint
from trionat.store.private_file import (
    hold_lock,
    is_there,
    make_private_folder,
    read_private,
    write_private,
)
from trionat.text import NotTextError, decode_text, invisible_in

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.address import TCPAddress


@attrs.frozen
class KnownServers:
    """The servers that the user chose to trust, in the file `known_servers` of a client's state folder."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> KnownServers:
        """Return those of a client's state folder; neither needs to exist."""
        return cls(folder / "known_servers")

    def lookup(self, address: TCPAddress) -> bytes | None:
        """Return the fingerprint of the server at that address, or None where it is not known. Blocks.

        Raises:
            StartupError: The file cannot be read, or a line of it is damaged: an entry that cannot be read might have been
                the one that matters, so it is never passed over.
        """
        return self._entries(self._lines()).get(_key(address))

    def remember(self, address: TCPAddress, fingerprint: bytes) -> None:
        """Trust the server at that address from now on, in place of what was known of it. Blocks.

        Of several clients that do so at once, none loses what another one has added: they take turns.

        Raises:
            StartupError: The file cannot be read or written, or is damaged, or another client holds it up.
        """
        make_private_folder(self.path.parent)
        with hold_lock(self.path.with_name("known_servers.lock")):
            lines = self._lines()
            self._entries(lines)  # a damaged file is the user's to repair, not to be written over
            kept = [
                line for line in lines if not _is_entry(line) or _parse(line)[0] != _key(address)
            ]
            kept.append(f"{address} {format_fingerprint(fingerprint)}")
            write_private(self.path, "".join(f"{line}\n" for line in kept).encode())

    def _lines(self) -> list[str]:
        if not is_there(self.path):
            return []
        try:
            return decode_text(read_private(self.path)).splitlines()
        except NotTextError as exc:
            raise StartupError(
                f"{self.path}:{exc.line}: {exc}, or restore it, or delete it"
            ) from None

    def _entries(self, lines: list[str]) -> dict[str, bytes]:
        entries: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=1):
            if not _is_entry(line):
                continue
            try:
                key, fingerprint = _parse(line)
            except ValueError as exc:
                raise StartupError(
                    f"{self.path}:{number}: {exc}: correct or delete the line"
                ) from None
            if entries.setdefault(key, fingerprint) != fingerprint:
                raise StartupError(
                    f"{self.path}:{number}: another fingerprint for {key} than above: delete the line that is wrong"
                )
        return entries


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(line: str) -> tuple[str, bytes]:
    words = line.split()
    if (found := invisible_in(line.strip())) is not None:
        raise ValueError(f"there is {found}")
    if len(words) != 2:
        raise ValueError("a line is HOST:PORT SHA256:…")
    return _key(parse_tcp_address(words[0])), parse_fingerprint(words[1])


def _key(address: TCPAddress) -> str:
    """Host names are the same in either case (RFC 4343)."""
    return str(address).lower()


def check_fingerprint(expected: bytes, actual: bytes, address: TCPAddress) -> None:
    """Compare what a server showed with what it has to be; nothing may be sent to it before.

    Raises:
        IdentityError: They differ: it is another server, or someone is in between.
    """
    if not hmac.compare_digest(expected, actual):
        raise IdentityError(
            f"WRONG SERVER at {address}: it shows {format_fingerprint(actual)} but has to show {format_fingerprint(expected)}; "
            "nothing was sent to it: someone may be in between, or the server has a new certificate: ask its operator for the "
            "fingerprint or a new ticket"
        )
