"""A server with names, and visitors who come by them: curl, sockets with TLS, and whatever finds its way by `--resolve`."""

from __future__ import annotations

import json
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from tests.certificates.made import Maker
from tests.e2e import running, services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DOMAIN = "tunnel.test"


@attrs.define(eq=False)
class NamedServer:
    """A server below `DOMAIN`; `authority` has signed its certificates, PEM."""

    server: running.Server
    http: int
    https: int
    authority: Path

    async def connect(
        self, name: str, *, alpn: list[str] | None = None
    ) -> trio.SSLStream[trio.SocketStream]:
        """Connect as a visitor of a name, with TLS; the caller closes."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if alpn is not None:
            context.set_alpn_protocols(alpn)
        stream = await trio.open_tcp_stream(services.HOST, self.https)
        encrypted = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
        await encrypted.do_handshake()
        return encrypted

    def curl(self, *arguments: str, name: str) -> list[str]:
        """Return the command that asks for a name: https, unless a URL says otherwise."""
        return [
            *("curl", "--silent", "--show-error", "--cacert", str(self.authority)),
            *("--resolve", f"{name}:{self.https}:{services.HOST}"),
            *("--resolve", f"{name}:{self.http}:{services.HOST}"),
            *("--max-time", "60"),
            *arguments,
        ]

    def url(self, name: str, path: str = "/") -> str:
        """Return a URL of a name."""
        return f"https://{name}:{self.https}{path}"

    async def ask(self, name: str, path: str = "/", *arguments: str) -> Answer:
        """Ask by curl, and return what came."""
        command = self.curl(*arguments, "--include", self.url(name, path), name=name)
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        assert done.returncode == 0, (done.returncode, done.stderr, self.server.log_text()[-3000:])
        return Answer.read(done.stdout)


@attrs.frozen
class Answer:
    """What curl has printed with `--include`."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, output: bytes) -> Answer:
        """Take the last head apart, and what is behind it."""
        while True:
            head, _, body = output.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            status = int(first.split()[1])
            if status >= 200:
                break
            output = body
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        return cls(status, {name.lower(): value for name, value in headers.items()}, body)

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@asynccontextmanager
async def named_server(
    folder: Path,
    *flags: str | Path,
    names: tuple[str, ...] = (),
    alone: tuple[str, ...] = (),
    domain: str = DOMAIN,
    listens: str = services.HOST,
) -> AsyncIterator[NamedServer]:
    """Run a server with a certificate of the operator's own for all labels below the domain, and for these names; those `alone` have one each."""
    maker = Maker()
    own = folder / "own"
    await trio.Path(own).mkdir(parents=True)
    certificates = {"wild": maker.chain(f"*.{DOMAIN}", DOMAIN, *names)}
    certificates |= {name: maker.chain(name) for name in alone}
    for name, (key, chain) in certificates.items():
        await trio.Path(own / f"{name}.key").write_bytes(key)
        await trio.Path(own / f"{name}.crt").write_bytes(chain)
    authority = folder / "authority.pem"
    await trio.Path(authority).write_bytes(maker.pem)
    http, https = services.free_low_port(), services.free_low_port()
    file = folder / "server.yml"
    await trio.Path(file).write_text(f"Server:\n  CertificatesDir: {own}\n")
    async with running.server(
        folder,
        *("--config", file, "--domain", domain),
        *("--http-addr", f"{listens}:{http}", "--https-addr", f"{listens}:{https}"),
        *flags,
    ) as server:
        yield NamedServer(server, http, https, authority)


def tool(
    *command: str | Path, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; blocks."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        check=False,
        cwd=cwd,
        env=services.trionat_environ(**environ),
        timeout=60,
    )
