"""Whether a local service speaks HTTP: asked once, so that its public address can be shown as what a browser takes."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final

import trio

from trionat.transport.dial import dial_service

if TYPE_CHECKING:
    from trionat.address import Address

DEADLINE: Final = 3.0
"""Seconds for all of it."""

_SPEAKS_FIRST: Final = 0.3
"""Seconds in which a service that speaks first, as SSH does, has begun: to that one nothing is said. Chosen."""

_QUESTION: Final = b"HEAD / HTTP/1.0\r\n\r\n"
"""Without `Host:`, which Redis takes for an attack."""

_ANSWER: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_ANSWER_BYTES: Final = 12


async def scheme_of(address: Address) -> str | None:
    """Return `http` or `https` where the service there speaks that, else None; it has `DEADLINE` seconds."""
    with trio.move_on_after(DEADLINE):
        status = await _ask(address, tls=False)
        if status == b"":
            return None
        # A server of HTTPS may tell in plain HTTP, with 400, that it wants TLS.
        if status is not None and status != b"400":
            return "http"
        if await _ask(address, tls=True):
            return "https"
        return "http" if status else None
    return None


async def _ask(address: Address, *, tls: bool) -> bytes | None:
    """Return the status of an answer in HTTP; None for another answer, or none; nothing at all where the service speaks first."""
    try:
        stream: trio.abc.Stream = trio.SocketStream(
            trio.socket.from_stdlib_socket(await dial_service(address))
        )
        async with stream:
            if tls:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                stream = trio.SSLStream(stream, context, https_compatible=True)
            else:
                with trio.move_on_after(_SPEAKS_FIRST):
                    return b"" if await stream.receive_some(1) else None
            await stream.send_all(_QUESTION)
            answer = b""
            while len(answer) < _ANSWER_BYTES and (more := await stream.receive_some(512)):
                answer += more
    except (OSError, ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError):
        return None
    found = _ANSWER.match(answer)
    return None if found is None else found[1]
