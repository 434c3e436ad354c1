"""The fields of a JSON payload: taken out one by one, each checked for type and range before anything is done with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Self, cast

import attrs

from trionat.address import parse_host, parse_tcp_address
from trionat.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trionat.address import TCPAddress

NAME_CHARACTERS: Final = 255
TEXT_CHARACTERS: Final = 1024
MAX_TEXTS: Final = 64
MAX_ADDRESSES: Final = 16

_encoder: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class Fields:
    """A JSON object from a peer. `message` is what it is called in errors; unknown keys are nobody's concern.

    Every method raises `RemoteProtocolError` where the field is not as it must be.
    """

    def __init__(self, message: str, value: object) -> None:
        self.message = message
        self.values: Mapping[str, Any] = self._checked(value, dict, "a JSON object")

    @classmethod
    def parse(cls, message: str, payload: bytes) -> Self:
        """Read a payload."""
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"{message}: the payload is not JSON") from error
        return cls(message, value)

    def _checked(self, value: object, kind: type | tuple[type, ...], expected: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RemoteProtocolError(f"{self.message}: expected {expected}")
        return value

    def text(self, key: str, *, longest: int = NAME_CHARACTERS) -> str:
        """Take a text of at most `longest` characters."""
        value: str = self._checked(self.values.get(key), str, f"a text as {key}")
        if len(value) > longest:
            raise RemoteProtocolError(f"{self.message}: {key} has more than {longest} characters")
        if not _is_unicode(value):
            raise RemoteProtocolError(f"{self.message}: {key} has half a surrogate pair in it")
        return value

    def host(self, key: str) -> str:
        """Take a host as `trionat.address.parse_host` knows it, or an empty text."""
        text = self.text(key)
        try:
            return parse_host(text) if text else ""
        except ValueError as error:
            raise RemoteProtocolError(f"{self.message}: {key}: {error}") from None

    def integer(self, key: str, lowest: int, highest: int) -> int:
        """Take a whole number from `lowest` to `highest`."""
        value: int = self._checked(self.values.get(key), int, f"a number as {key}")
        if not lowest <= value <= highest:
            raise RemoteProtocolError(
                f"{self.message}: {key} is not between {lowest} and {highest}"
            )
        return value

    def integer_or_none(self, key: str, lowest: int, highest: int) -> int | None:
        """Take a whole number, or None where there is none."""
        return None if self.values.get(key) is None else self.integer(key, lowest, highest)

    def seconds(self, key: str, longest: float = 86400.0) -> float:
        """Take a duration of at most `longest` seconds."""
        value: float = self._checked(self.values.get(key), (int, float), f"seconds as {key}")
        if not 0 <= value <= longest:  # asked before `float`, which an integer of 400 digits breaks
            raise RemoteProtocolError(
                f"{self.message}: {key} is not between 0 and {longest} seconds"
            )
        return float(value)

    def number(self, key: str, highest: float) -> float:
        """Take a number above 0, at most `highest`."""
        value: float = self._checked(self.values.get(key), (int, float), f"a number as {key}")
        if not 0 < value <= highest:
            raise RemoteProtocolError(f"{self.message}: {key} is not between 0 and {highest:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Take true or false, which need not be there."""
        value: bool = self._checked(self.values.get(key, default), bool, f"true or false as {key}")
        return value

    def items(self, key: str, *, longest: int) -> list[Any]:
        """Take a list of at most `longest` entries, which are not checked yet."""
        value: list[Any] = self._checked(self.values.get(key), list, f"a list as {key}")
        if len(value) > longest:
            raise RemoteProtocolError(f"{self.message}: {key} has more than {longest} entries")
        return value

    def secret(self, key: str) -> bytes:
        """Take bytes, written as hex digits."""
        try:
            return bytes.fromhex(self.text(key))
        except ValueError:
            raise RemoteProtocolError(f"{self.message}: expected hex digits as {key}") from None

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of at most 64 texts."""
        values = self.items(key, longest=MAX_TEXTS)
        if not all(
            isinstance(value, str) and len(value) <= NAME_CHARACTERS and _is_unicode(value)
            for value in values
        ):
            raise RemoteProtocolError(f"{self.message}: expected a list of texts as {key}")
        return tuple(values)

    def addresses(self, key: str) -> tuple[TCPAddress, ...]:
        """Take a list of at most 16 addresses that can be dialled, HOST:PORT."""
        addresses: list[TCPAddress] = []
        for value in self.items(key, longest=MAX_ADDRESSES):
            text = Fields(self.message, {key: value}).text(key, longest=TEXT_CHARACTERS)
            try:
                address = parse_tcp_address(text)
            except ValueError as error:
                raise RemoteProtocolError(f"{self.message}: {key}: {error}") from None
            if not address.port or address.dialled_host != address.host:
                raise RemoteProtocolError(f"{self.message}: {key}: nobody can dial {address}")
            addresses.append(address)
        return tuple(addresses)


def _is_unicode(text: str) -> bool:
    """JSON can write down half a surrogate pair; no file, no store and no peer takes one."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def write_json(value: object, encode: Callable[[object], bytes]) -> bytes:
    """Return JSON of attrs values and lists of them, each entry by itself: an encoder holds the interpreter until it is ready, and with thousands at once everybody else would wait for it."""
    if isinstance(value, (list, tuple)):
        entries = cast("Iterable[object]", value)
        return b"[%b]" % b",".join(write_json(each, encode) for each in entries)
    if not attrs.has(value.__class__):
        return encode(value)
    values: dict[str, object] = {
        each.name: getattr(value, each.name) for each in attrs.fields(value.__class__)
    }
    if not any(isinstance(each, (list, tuple)) for each in values.values()):
        return encode(attrs.asdict(cast("attrs.AttrsInstance", value)))
    pairs = (encode(name) + b":" + write_json(each, encode) for name, each in values.items())
    return b"{%b}" % b",".join(pairs)


def to_json(value: object) -> bytes:
    """Return a JSON payload, without blanks and in UTF-8. Half a surrogate pair, which a peer may have sent, is written as JSON writes one."""
    return _encoder.encode(value).encode(errors="backslashreplace")
