"""Taking secrets out of texts that are given away: those that are known here, and whatever looks like one."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, unquote, urlsplit

import attrs

from trionat.protocol.ticket import Ticket
from trionat.text import MASK, mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trionat.config.load import Configuration

_MOST_FILE: Final = 65536
"""Bytes of a file that holds a secret."""

_PEM: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*KEY-----|\Z)", re.DOTALL
)
_URL_WORD: Final = re.compile(r"[^\s\"'<>]+")
_QUERY: Final = re.compile(r"[?#].+")
"""What stands behind the path of a URL: keys to pages are there."""
_BEARER: Final = re.compile(r"\b(Bearer|Basic)\s+[\w+/=.~-]{4,}", re.IGNORECASE)
_HASH: Final = re.compile(r"\$argon2[\w$,=+/.-]+")
_NAMED: Final = re.compile(
    r"""(?P<name>(?:passw(?:or)?d|secret|token|api[_-]?key|private[_-]?key|authorization|cookie)["']?\s*[:=]\s*)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;}\]&]+)""",
    re.IGNORECASE,
)
"""A value that is called by what it is, at the end of its name: whoever looks for the beginning too takes hours for a word of a million letters."""

_WORD: Final = 8
"""Characters of a part of a URL that is masked alone as well; shorter ones are words such as `services`."""

_SHORT: Final = 4
"""Characters; a secret that has fewer is masked where it stands alone, else nothing would be left of a text."""


@attrs.frozen
class Masker:
    """Masks. `known` are secrets of this machine's configuration and files, in each way in which they may be written, the longest first."""

    known: tuple[str, ...] = attrs.field(repr=False)

    @classmethod
    def of(cls, configurations: Iterable[Configuration], contents: Iterable[bytes] = ()) -> Masker:
        """Return one that knows the secrets of these configurations, and what files hold that are secret as a whole."""
        found: set[str] = set()
        for configuration in configurations:
            for section in attrs.asdict(configuration, recurse=False).values():
                for secret in _secrets_in(section):
                    found.update(_forms(secret))
        for content in contents:
            found.update(_forms_of_bytes(content))
        return cls(tuple(sorted(found - {""}, key=len, reverse=True)))

    def mask(self, text: str) -> str:
        """Return a text without secrets."""
        text = _PEM.sub(MASK, text)
        for secret in self.known:
            if len(secret) >= _SHORT:
                text = text.replace(secret, MASK)
            elif secret in text:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
        text = mask_secrets(text)
        text = _HASH.sub(MASK, text)
        text = _URL_WORD.sub(_mask_query, text)
        text = _BEARER.sub(rf"\1 {MASK}", text)
        return _NAMED.sub(_mask_value, text)


def secret_contents(files: Iterable[Path]) -> Iterator[bytes]:
    """Return what is in those of these files that can be read, of each the beginning. Blocks."""
    for path in files:
        try:
            if path.is_file():  # a pipe would be waited for
                with path.open("rb") as file:
                    yield file.read(_MOST_FILE)
        except OSError:
            continue


def _mask_query(found: re.Match[str]) -> str:
    scheme, colon, rest = found[0].partition("://")
    return scheme + colon + _QUERY.sub(f"?{MASK}", rest) if colon and scheme else found[0]


def _mask_value(found: re.Match[str]) -> str:
    value = found["value"]
    if value in {"true", "false", "null", "none"} or value.startswith(("{", "[")):
        return found[0]
    mark = value[0] if value[0] in "\"'" else ""
    return f"{found['name']}{mark}{MASK}{mark}"


def _secrets_in(value: object) -> Iterator[str]:
    """Return the texts in fields that are not to be shown, however deep."""
    if isinstance(value, tuple):
        for each in cast("tuple[object, ...]", value):
            yield from _secrets_in(each)
        return
    kind: type[Any] = type(value)
    if not attrs.has(kind):
        return
    for field in attrs.fields(kind):
        inner: object = getattr(value, field.name)
        if field.repr is not True:
            yield from _texts(inner)
        yield from _secrets_in(inner)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.hex()
    elif isinstance(value, tuple):
        for each in cast("tuple[object, ...]", value):
            yield from _texts(each)


def _forms(secret: str) -> Iterator[str]:
    """Return a secret and its parts in each way in which a text may have it."""
    secret = secret.strip()
    parts = [secret]
    if "://" in secret:
        try:
            address = urlsplit(secret)
            parts += [address.password or "", unquote(address.password or "")]
            # Of a webhook, whoever knows the path may send there.
            words = re.split(r"[/&=]", f"{address.path}&{address.query}")
            parts += [word for word in words if len(word) > _WORD]
        except ValueError:
            pass
    elif ":" in secret:  # USER:PASSWORD
        parts.append(secret.partition(":")[2])
    with suppress(ValueError):
        parts.append(Ticket.decode(secret).token.hex())
    for part in parts:
        if part:
            yield part
            yield quote(part, safe="")
            yield repr(part)[1:-1]
            encoded = part.encode(errors="surrogateescape")
            yield base64.b64encode(encoded).decode().rstrip("=") if len(encoded) >= _SHORT else part


def _forms_of_bytes(content: bytes) -> Iterator[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        yield from _encoded(content)
        return
    for line in text.splitlines():
        # Of PEM, the lines that are no marks; of a file with a ticket or a password, all of them.
        if line.strip() and not line.startswith("-----"):
            yield from _forms(line)
    if "\n" not in text.strip():
        yield from _encoded(content.strip())


def _encoded(content: bytes) -> Iterator[str]:
    if content:
        yield content.hex()
        yield content.hex().upper()
        yield base64.b64encode(content).decode().rstrip("=")
        yield base64.urlsafe_b64encode(content).decode().rstrip("=")
