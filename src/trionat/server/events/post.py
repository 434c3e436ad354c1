"""One request to a receiver of events, over a connection of its own: HTTP/1.1 by h11.

The receiver is whatever a configuration names, and what it says is bounded, as is how long it takes. It is dialled at an address that was looked up here and looked at:
asking for the name once more could give another one, which is how a name that anybody owns leads into a private network (DNS rebinding).
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import h11
import trio

from trionat.address import TCPAddress
from trionat.errors import PeerError
from trionat.networks import is_public
from trionat.text import counted
from trionat.transport.dial import dial, is_localhost, look_up

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEADLINE: Final = 10.0
"""Seconds for all of it, as GitHub gives its receivers."""

_ATTEMPT: Final = 3.0
"""Seconds for one of several addresses, before the next is tried."""

_MOST_HOSTS: Final = 4

_MOST_HEAD: Final = 16 * 1024
_MOST_BODY: Final = 16 * 1024
"""Bytes of an answer. More of a body is not read: nobody needs it."""

_BODY_TIME: Final = 2.0
"""Seconds for the rest of an answer whose head is there."""

_ENDED: Final = "it has closed the connection before it has answered"

_PORTS: Final = {"http": 80, "https": 443}


class DeliveryError(PeerError):
    """Something was not taken; says why, in one line without the URL."""


@attrs.frozen
class Answer:
    """What a receiver has said; `retry_after` is in seconds."""

    status: int
    body: bytes = b""
    retry_after: float | None = None


def receiver_context() -> ssl.SSLContext:
    """Return how receivers are checked: by the system's authorities. Blocks, some ten milliseconds."""
    context = ssl.create_default_context()
    # Python 3.13 turned this on, and many a home-made authority does not pass it; 3.11 and 3.12 take the same ones.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tls: ssl.SSLContext,
    allow_private: bool = False,
    deadline: float = _DEADLINE,
) -> Answer:
    """Send a request, and return the answer, whatever its status is. Redirections are answers like all others.

    Raises:
        DeliveryError: There is no answer; or the receiver is at an address that is not for everybody, and `allow_private` does not say that it may.
    """
    try:
        with trio.fail_after(deadline):
            return await _post(url, headers, body, tls, allow_private=allow_private)
    except trio.TooSlowError:
        raise DeliveryError(f"no answer within {deadline:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(
            f"its certificate is refused: {error.verify_message.rstrip('.')}"
        ) from error
    except (ssl.SSLError, trio.BrokenResourceError) as error:
        raise DeliveryError(_why_broken(error)) from error
    except OSError as error:
        raise DeliveryError(f"cannot be reached: {error.strerror or error}") from error
    except h11.RemoteProtocolError as error:
        raise DeliveryError(f"its answer is no HTTP: {error}") from error


def _why_broken(error: BaseException) -> str:
    """Return what has ended a connection."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message.rstrip('.')}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return f"TLS failed: {cause.reason.lower().replace('_', ' ')}"
        cause = cause.__cause__
    return _ENDED


async def _post(
    url: str, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext, *, allow_private: bool
) -> Answer:
    parts = urlsplit(url)
    host = parts.hostname or ""
    address = TCPAddress(host, parts.port or _PORTS[parts.scheme])
    connection = await _connect(address, allow_private=allow_private)
    try:
        stream: trio.abc.Stream = connection
        if parts.scheme == "https":
            encrypted = trio.SSLStream(connection, tls, server_hostname=host, https_compatible=True)
            await encrypted.do_handshake()
            stream = encrypted
        return await _converse(stream, parts.netloc, _target(url), headers, body)
    finally:
        connection.socket.close()


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def _connect(address: TCPAddress, *, allow_private: bool) -> trio.SocketStream:
    try:
        hosts = await look_up(address)
    except PeerError as error:
        raise DeliveryError(str(error)) from error
    allowed = [
        host for host in hosts if allow_private or (not is_localhost(host) and is_public(host))
    ]
    if not allowed:
        raise DeliveryError(
            f"{address.host} is at {', '.join(hosts[:2])}, which is not an address of the Internet: if that is meant, set AllowPrivate: true"
        )
    reason: OSError | None = None
    for host in allowed[:_MOST_HOSTS]:
        try:
            with trio.move_on_after(_ATTEMPT if len(allowed) > 1 else float("inf")):
                sock = await dial(TCPAddress(host, address.port))
                return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        except OSError as error:
            reason = error
    raise reason or OSError(f"no answer from {counted(len(allowed), 'address')}")


async def _converse(
    stream: trio.abc.Stream, host: str, target: str, headers: Mapping[str, str], body: bytes
) -> Answer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
    request = _request(host, target, headers, len(body))
    data = [
        connection.send(request),
        connection.send(h11.Data(body)),
        connection.send(h11.EndOfMessage()),
    ]
    await stream.send_all(b"".join(filter(None, data)))
    while not isinstance(head := await _next_event(stream, connection), h11.Response):
        pass  # 1xx
    answer = Answer(head.status_code, retry_after=_retry_after(head))
    read = bytearray()
    try:
        with trio.move_on_after(_BODY_TIME):
            while isinstance(event := await _next_event(stream, connection), h11.Data):
                read += event.data
                if len(read) > _MOST_BODY:
                    break
    except (trio.BrokenResourceError, h11.RemoteProtocolError):
        pass  # what it has to say is in the head
    return attrs.evolve(answer, body=bytes(read[:_MOST_BODY]))


def _request(host: str, target: str, headers: Mapping[str, str], length: int) -> h11.Request:
    try:
        return h11.Request(
            method="POST",
            target=target,
            headers=[
                ("Host", host),
                ("Content-Length", str(length)),
                ("Connection", "close"),
                *headers.items(),
            ],
        )
    except (h11.LocalProtocolError, UnicodeEncodeError):  # they say the header, which may be secret
        raise DeliveryError(
            "its URL or Secret has characters that no HTTP header may have"
        ) from None


async def _next_event(stream: trio.abc.Stream, connection: h11.Connection) -> h11.Event:
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = bytes(await stream.receive_some(_MOST_HEAD))
        if not data and connection.their_state is h11.SEND_RESPONSE:
            raise DeliveryError(_ENDED)
        connection.receive_data(data)
    assert isinstance(event, h11.Event), "one request never pauses"  # noqa: S101 - for type checkers
    return event


def _retry_after(head: h11.Response) -> float | None:
    for name, value in head.headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 9:
            return float(value)
    return None
