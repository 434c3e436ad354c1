"""A web server that ends TLS before a server with names, set up as docs/names.md says."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.test_who_may_visit import Heads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="there is no nginx"),
]

FILE = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/client; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream trionat {{ server 127.0.0.1:{server}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://trionat;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
        }}
    }}
}}
"""

FORGED = (
    "Forwarded: for=1.1.1.1;host=evil.example",
    "X-Real-IP: 1.1.1.1",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-User: evil",
    "X-Forwarded-Port: 1",
)


@contextmanager
def nginx(folder: Path, server: int) -> Iterator[int]:
    """Run nginx before a server; return its port."""
    port = services.free_low_port()
    file = folder / "nginx.conf"
    file.write_text(FILE.format(folder=folder, server=server, port=port))
    process = subprocess.Popen(["nginx", "-c", str(file), "-p", str(folder)])
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


async def ask(port: int, name: str, *fields: str) -> int:
    """Ask for a name, on a connection to nginx of its own; return the status."""
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
    headers = [word for field in (f"Host: {name}", *fields) for word in ("--header", field)]
    patience = ["--retry", "20", "--retry-connrefused", "--retry-delay", "1", "--max-time", "30"]
    done = await trio.run_process(
        [*command, *headers, *patience, f"http://127.0.0.1:{port}/"], capture_stdout=True
    )
    return int(done.stdout)


async def test_visitors_get_what_they_ask_for_and_forge_nothing(tmp_path: Path) -> None:
    heads = Heads()
    async with AsyncExitStack() as stack:
        named = await stack.enter_async_context(
            named_server(tmp_path, "--workers", "2", "--trusted-proxies", "127.0.0.1")
        )
        for name in ("n0", "n1"):
            service = await stack.enter_async_context(services.serve(heads.answer))
            arguments = (named.server.ticket, f"http:{service.port}@{name}")
            await stack.enter_async_context(running.client(tmp_path / name, *arguments))
        port = stack.enter_context(nginx(tmp_path, named.http))
        # nginx keeps connections to the server, and these names are at two processes of it.
        for number in range(8):
            assert await ask(port, f"n{number % 2}.{DOMAIN}", *FORGED) == 204
    assert len(heads.got) == 8
    for head in heads.got:
        assert b"evil" not in head, head
        assert b"1.1.1.1" not in head, head
        assert b"\r\nX-Forwarded-For: 127.0.0.1, 127.0.0.1\r\n" in head, head
        assert b"\r\nX-Forwarded-Proto: https\r\n" in head, head
