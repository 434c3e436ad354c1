"""`trionat demo`: a server, a client and a small web service in one process, to see it work."""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import attrs
import trio
import typer

from trionat.address import TCPAddress
from trionat.cli.output import say
from trionat.cli.running import run_until_signalled
from trionat.client.app import connect
from trionat.config.client import ClientConfig
from trionat.config.server import ServerConfig
from trionat.config.service import Service
from trionat.errors import StartupError
from trionat.events import Ready
from trionat.server.app import serve
from trionat.transport.certificate import make_certificate

LOOPBACK = "127.0.0.1"
_DOMAIN, _NAME = "demo.localhost", "web"
"""Browsers find everything below localhost on this machine (RFC 6761 6.3)."""

_PAGE = "Hello from behind the tunnel.\n"
_REQUEST_TIMEOUT = 10.0
_DRAIN_GRACE = 2.0


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Do one request through the tunnel, print it, and end.")
    ] = False,
) -> None:
    """See it work: server, client and web service in one process. On this machine only."""
    answers: list[str] | None = [] if check else None
    try:
        run_until_signalled(partial(_demo, answers), terminal=not check)
    finally:
        # What a server prints may get lost, and it goes on. This answer is all that was asked for.
        for answer in answers or ():
            say(answer)


async def _demo(answers: list[str] | None, stopping: trio.Event) -> None:
    """Run it until it is stopped, or with a list for `answers` until there is one."""
    with tempfile.TemporaryDirectory(prefix="trionat-demo-") as folder:
        async with trio.open_nursery() as nursery, _web_service() as local:
            any_port = TCPAddress(LOOPBACK, 0)
            config = ServerConfig(
                name="demo",
                controller_addr=any_port,
                tunnel_addr=any_port,
                visit_port=(0,),
                state_dir=Path(folder) / "server",
                drain_grace=_DRAIN_GRACE,
            )
            services: tuple[Service, ...] = (Service(local=local),)
            if _can_have_names():
                own = Path(folder) / "own"
                await trio.to_thread.run_sync(_make_certificate, own)
                config = attrs.evolve(
                    config,
                    domain=_DOMAIN,
                    http_addr=any_port,
                    https_addr=any_port,
                    plain_http=True,
                    certificates_dir=own,
                )
                services += (Service(local=local, http=_NAME),)
            ready: Ready = await nursery.start(serve, config)
            client_config = ClientConfig(
                ticket=ready.ticket,
                services=services,
                state_dir=Path(folder) / "client",
                drain_grace=_DRAIN_GRACE,
            )
            async with connect(client_config) as client:
                public = client.services[0].public
                if answers is not None:
                    answers.append(await _check(public))
                else:
                    say(
                        f"http://{public}/  is the public address of a web service that listens on {local}."
                    )
                    if ready.http is not None:
                        name = f"{_NAME}.{_DOMAIN}"
                        say(
                            f"http://{name}:{ready.http.port}/  is the same by its name, in a browser; or:"
                        )
                        say(f"    curl --header 'Host: {name}' http://{ready.http}/")
                    say("Open it in a browser or with curl; Ctrl-C ends the demo.\n")
                    await stopping.wait()
            nursery.cancel_scope.cancel("the demo is over")


def _can_have_names() -> bool:
    return find_spec("httptools") is not None and find_spec("acme") is not None


def _make_certificate(folder: Path) -> None:
    """Make one for all names of the demo, so that none is ordered. Blocks."""
    folder.mkdir(mode=0o700)
    key, certificate = make_certificate((f"*.{_DOMAIN}",))
    (folder / "demo.key").write_bytes(key)
    (folder / "demo.crt").write_bytes(certificate)


async def _check(public: TCPAddress) -> str:
    status, body = await trio.to_thread.run_sync(_get, public)
    answer = f"GET http://{public}/ -> {status.value} {status.phrase}: "
    if status is not HTTPStatus.OK or body != _PAGE:
        raise StartupError(f"the demo got something else than its own page: {answer}{body[:100]!r}")
    return answer + body.strip()


def _get(public: TCPAddress) -> tuple[HTTPStatus, str]:
    connection = http.client.HTTPConnection(public.host, public.port, timeout=_REQUEST_TIMEOUT)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        return HTTPStatus(response.status), response.read().decode()
    finally:
        connection.close()


@asynccontextmanager
async def _web_service() -> AsyncGenerator[TCPAddress]:
    """Run the standard library's web server, which is no part of trionat, in threads of its own."""
    server = await trio.to_thread.run_sync(ThreadingHTTPServer, (LOOPBACK, 0), _Page)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, server.serve_forever, 0.05)
        try:
            yield TCPAddress(LOOPBACK, server.server_port)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _DRAIN_GRACE):
                await trio.to_thread.run_sync(server.shutdown)
            server.server_close()


class _Page(BaseHTTPRequestHandler):
    server_version = "trionat-demo"

    def do_GET(self) -> None:
        """Answer every path with the same page."""
        body = _PAGE.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing: trionat's own log tells of every visitor."""
