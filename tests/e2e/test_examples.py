"""The examples do what they say: each script's server, client and visitor, with real programs."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import services

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

    from tests.e2e.services import Service, SSHServer

EXAMPLES = Path(__file__).parents[2] / "examples"
ANY_ADDRESS = ("--controller-addr", "127.0.0.1:0", "--tunnel-addr", "127.0.0.1:0")

pytestmark = [
    pytest.mark.skipif(shutil.which("sh") is None, reason="the examples are shell scripts"),
    pytest.mark.limit(40),  # three processes of Python each, on a machine that may be busy
]


@attrs.frozen
class Example:
    """A script whose server and client are up; `ticket` is the server's, `connected` what the client said."""

    script: str
    environ: dict[str, str]
    ticket: str = attrs.field(repr=False)
    connected: dict[str, Any]

    @property
    def public(self) -> str:
        return str(self.connected["services"][0]["public"])

    async def visit(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """Run the visitor's line."""
        return await self.run("visitor", *arguments, **environ)

    async def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        return await trio.run_process(
            ["sh", str(EXAMPLES / self.script), *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=services.trionat_environ(**{**self.environ, **environ}),
        )


@pytest.fixture(autouse=True)
def _scripts_instead_of_trionat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `trionat_process` run `sh`, and the scripts find the trionat of this interpreter."""
    monkeypatch.setattr(services, "trionat_command", lambda *words: ["sh", *map(str, words)])
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")


@asynccontextmanager
async def running(
    script: str, folder: Path, environ: dict[str, str], server_flags: tuple[str, ...] = ()
) -> AsyncIterator[Example]:
    path = EXAMPLES / script
    async with services.trionat_process(
        path,
        "server",
        "--json",
        *server_flags,
        stdin=b"",
        cwd=folder,
        **environ,
        TRIONAT_STATE_DIR=str(folder / "server"),
    ) as server:
        ready = await server.next_event("ready", within=20)
        async with services.trionat_process(
            path,
            "client",
            "--json",
            stdin=b"",
            cwd=folder,
            **environ,
            TRIONAT_STATE_DIR=str(folder / "client"),
            TRIONAT_TICKET=ready["ticket"],
        ) as client:
            connected = await client.next_event("connected", within=20)
            others = {**environ, "TRIONAT_STATE_DIR": str(folder / "others")}
            yield Example(script, others, ready["ticket"], connected)


async def test_web_service(http_server: Service, tmp_path: Path) -> None:
    services.find_program("curl", package="curl")
    flags = (*ANY_ADDRESS, "--expose-port", "0")
    environ = {"WEB_SERVICE": str(http_server)}
    async with running("web_service.sh", tmp_path, environ, flags) as example:
        answer = await example.visit(PUBLIC_URL=f"http://{example.public}/")
        assert answer.stdout == b"hello", answer.stderr
        lost = await example.visit(PUBLIC_URL=f"http://{example.public}/nowhere")
        assert lost.returncode == 22  # curl's code for what the service itself said: 404


async def test_redis(redis_server: Service, tmp_path: Path) -> None:
    services.find_program("redis-cli", package="redis-tools")
    port = str(services.free_low_port())
    environ = {"REDIS": str(redis_server.port), "VISIT_PORT": port, "PUBLIC_HOST": "127.0.0.1"}
    async with running("redis.sh", tmp_path, environ, ANY_ADDRESS) as example:
        assert example.public == f"127.0.0.1:{port}"
        assert (await example.visit("SET", "login", "hello")).stdout == b"OK\n"
        assert (await example.visit("GET", "login")).stdout == b"hello\n"
        elsewhere = await example.run("client", VISIT_PORT="1", TRIONAT_TICKET=example.ticket)
        assert elsewhere.returncode == 2  # it is that port or none


async def test_ssh(ssh_server: SSHServer, tmp_path: Path) -> None:
    environ = {
        "SSHD": str(ssh_server.port),
        "VISIT_PORT": str(services.free_low_port()),
        "PUBLIC_HOST": "127.0.0.1",
        "MACHINE": "trionat-test",  # the name under which the test's known_hosts has it
    }
    options = (*ssh_server.options, "-l", ssh_server.user)
    async with running("ssh.sh", tmp_path, environ, ANY_ADDRESS) as example:
        answer = await example.visit(*options, "printf %s hello; exit 7")
        assert (answer.returncode, answer.stdout) == (7, b"hello"), answer.stderr
        other = await example.visit(*options, "true", MACHINE="another-machine")
        assert other.returncode == 255  # ssh knows this machine by another name: it does not go on


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
async def test_lan_hiding(http_server: Service, tmp_path: Path) -> None:
    services.find_program("curl", package="curl")
    known = "127.0.0.5"
    environ = {
        "LAN_ADDRESS": known,
        "CONTROL_PORT": "0",
        "TUNNEL_PORT": "0",
        "VISIT_PORT": str(services.free_low_port()),
        "HIDDEN_SERVICE": str(http_server),
    }
    async with running("lan_hiding.sh", tmp_path, environ) as example:
        assert example.public == f"{known}:{environ['VISIT_PORT']}"
        assert (await example.visit()).stdout == b"hello"
        with pytest.raises(OSError, match="connect"):  # where users look, the service is not
            await trio.open_tcp_stream(known, http_server.port)
        with pytest.raises(OSError, match="connect"):  # and the server is nowhere else
            await trio.open_tcp_stream("127.0.0.1", int(environ["VISIT_PORT"]))


async def test_the_fixture_in_a_project_of_its_own(tmp_path: Path) -> None:
    """It must not depend on this project's own configuration of pytest."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", "."]
    result = await trio.run_process(
        [*command, "-c", "pytest.ini", str(EXAMPLES / "pytest_fixture.py")],
        capture_stdout=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout.decode()
    assert b"2 passed" in result.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.sh")))
async def test_a_script_says_what_it_can_be(script: str) -> None:
    for words in ([], ["servant"]):
        result = await trio.run_process(
            ["sh", str(EXAMPLES / script), *words], capture_stderr=True, check=False
        )
        assert result.returncode == 2
        assert b"server, client or visitor" in result.stderr


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert f"({path.name})" in listed or path.name in {"README.md", "__pycache__"}
