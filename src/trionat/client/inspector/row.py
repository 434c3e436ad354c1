"""A recording as a line of the list: what it is, in words that a browser shows."""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from trionat.errors import RemoteProtocolError
from trionat.protocol.client_hello import parse_client_hello

if TYPE_CHECKING:
    from trionat.client.inspector.recording import Recording

_LOOKED_AT: Final = 512
_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S{1,400})")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})")
_GREETING: Final = re.compile(rb"[ -~]{4,120}")
_HTTP2: Final = b"PRI * HTTP/2.0\r\n"
_TLS: Final = b"\x16\x03"
_HELLO_BYTES: Final = 4096


def as_row(recording: Recording) -> dict[str, Any]:
    """Return it for JSON. Times are seconds, `began` since 1970 and the others since then; amounts are bytes."""
    ended = recording.ended
    protocol, title, status = describe(recording)
    first = recording.first_byte
    return {
        "number": recording.number,
        "service": recording.name or recording.local,
        "local": recording.local,
        "address": None if recording.visitor is None else str(recording.visitor),
        "began": recording.began_at,
        "seconds": round((perf_counter() if ended is None else ended) - recording.began, 3),
        "received": recording.received.count,
        "sent": recording.sent.count,
        "kept_received": len(recording.received.data),
        "kept_sent": len(recording.sent.data),
        "rate": round(recording.rate),
        "first_byte": None if first is None else round(first, 6),
        "ended": ended is not None,
        "why": recording.why,
        "dropped": recording.is_dropped,
        "replay_of": recording.replay_of,
        "protocol": protocol,
        "title": title,
        "status": status,
    }


def describe(recording: Recording) -> tuple[str, str, int | None]:
    """Return the protocol as the first bytes show it, a few words about what is said, and the status of a first HTTP answer."""
    received, sent = recording.received.data, recording.sent.data
    head = bytes(received[:_LOOKED_AT])
    if head.startswith(_HTTP2):
        return "HTTP/2", "", None
    if found := _REQUEST.match(head):
        line = head.partition(b"\n")[0]
        if b" HTTP/1." in line or len(line) == _LOOKED_AT:
            status = _STATUS.match(bytes(sent[:16]))
            words = f"{found[1].decode('latin-1')} {found[2].decode('latin-1')}"
            return "HTTP", words, int(status[1]) if status else None
    if head.startswith(_TLS):
        return "TLS", _server_name(bytes(received[:_HELLO_BYTES])), None
    if head.startswith(b"SSH-") or sent.startswith(b"SSH-"):
        return "SSH", _first_words(bytes(sent[:_LOOKED_AT])), None
    return "", _first_words(bytes(sent[:_LOOKED_AT])) or _first_words(head), None


def _server_name(first: bytes) -> str:
    try:
        hello = parse_client_hello(first)
    except RemoteProtocolError:
        return ""
    return "" if hello is None else hello.server_name or ""


def _first_words(data: bytes) -> str:
    """Return the first line, where it is one that people can read."""
    found = _GREETING.match(data)
    return "" if found is None else found[0].decode("ascii")
