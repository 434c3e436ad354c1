"""An HTTPS server before pebble, which passes everything on, but for what a test wants to be otherwise."""

from __future__ import annotations

import base64
import json
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.mariadb import HOST
from trionat.config.acme import AcmeConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.certificates.pebble import Pebble


@attrs.define
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def change(self, **members: Any) -> Response:
        """Return it with other members of its object."""
        return attrs.evolve(self, body=json.dumps({**self.json, **members}).encode())


@attrs.frozen
class Request:
    """`payload` is what was signed, if it is an object."""

    method: str
    path: str
    payload: dict[str, Any]
    forward: Callable[[], Awaitable[Response]]


def problem(code: str, detail: str, status: int = 403, **headers: str) -> Response:
    """Return a problem document of ACME."""
    body = {"type": f"urn:ietf:params:acme:error:{code}", "detail": detail, "status": status}
    kind = {"content-type": "application/problem+json"}
    return Response(status, {**kind, **headers}, json.dumps(body).encode())


@asynccontextmanager
async def front(
    pebble: Pebble, change: Callable[[Request], Awaitable[Response]]
) -> AsyncIterator[AcmeConfig]:
    """Run one; give the configuration that leads there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pebble.folder / "server.pem", pebble.folder / "server.key")

    async def handle(stream: trio.SocketStream) -> None:
        encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            head, body = await _receive(encrypted)
            method, path = head.split(b" ", 2)[:2]

            async def forward() -> Response:
                return await _forward(pebble, head, body)

            request = Request(method.decode(), path.decode(), _payload(body), forward)
            response = await change(request)
            lines = {**response.headers, "connection": "close"}
            lines.setdefault("content-length", str(len(response.body)))
            text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            await encrypted.send_all(f"HTTP/1.1 {response.status} x\r\n{text}\r\n".encode())
            if method != b"HEAD":
                await encrypted.send_all(response.body)
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(encrypted)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        await nursery.start(trio.serve_listeners, handle, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield AcmeConfig(directory=f"https://{HOST}:{port}/dir", ca_file=pebble.authority)
        nursery.cancel_scope.cancel()


async def _receive(stream: trio.SSLStream[trio.SocketStream]) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some()
        if not piece:
            raise trio.BrokenResourceError
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += await stream.receive_some()
    return head, body


def _payload(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    text = json.loads(body)["payload"]
    found = json.loads(base64.urlsafe_b64decode(text + "===") or b"{}")
    return found if isinstance(found, dict) else {}


async def _forward(pebble: Pebble, head: bytes, body: bytes) -> Response:
    """Ask pebble, which makes its URLs of the Host in the request: so they all lead here."""
    context = ssl.create_default_context(cafile=str(pebble.authority))
    stream = await trio.open_ssl_over_tcp_stream(
        HOST, pebble.port, ssl_context=context, https_compatible=True
    )
    async with stream:
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"conn")]
        lines[0] = lines[0].replace(b"HTTP/1.1", b"HTTP/1.0")  # no chunks
        await stream.send_all(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        data = b""
        while piece := await stream.receive_some():
            data += piece
    answer, _, content = data.partition(b"\r\n\r\n")
    first, *rest = answer.decode().split("\r\n")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        if name.lower() not in {"connection", "content-length"}:
            headers[name.lower()] = value.strip()
    return Response(int(first.split()[1]), headers, content)
