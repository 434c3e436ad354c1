"""The examples of docs/library.md, each run as its reader would run it, at a real server in memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import trionat
from bench.program import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXAMPLES = Path(__file__).parents[2] / "examples"
ANY_PORT = trionat.TCPAddress("127.0.0.1", 0)

pytestmark = pytest.mark.limit(40)  # a process of Python, on a machine that may be busy


@pytest.fixture
async def ready() -> AsyncIterator[trionat.Ready]:
    config = trionat.ServerConfig(
        controller_addr=ANY_PORT, tunnel_addr=ANY_PORT, visit_port=(0,), drain_grace=0
    )
    async with trionat.open_server(config) as found:
        yield found


def needs(*libraries: str) -> pytest.MarkDecorator:
    missing = [name for name in libraries if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@asynccontextmanager
async def running(example: str, ready: trionat.Ready) -> AsyncIterator[trio.Process]:
    """Run an example in the block; its end is that of Ctrl-C, and has to be a clean one."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", str(EXAMPLES / example)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TRIONAT_TICKET": ready.ticket or "", "PORT": str(free_port())},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process
        process.send_signal(signal.SIGINT)
        errors = b"".join([piece async for piece in process.stderr])
        status = await process.wait()
        assert status in {0, -signal.SIGINT}, errors.decode()
        assert b"Traceback" not in errors, errors.decode()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def find_public(process: trio.Process) -> tuple[str, int]:
    """Wait until an example tells where it is public."""
    assert process.stdout is not None
    said = b""
    while not (found := re.search(rb"public at (127\.0\.0\.1):(\d+)\n", said)):
        piece = await process.stdout.receive_some()
        assert piece, said
        said += piece
    return found[1].decode(), int(found[2])


async def get(address: tuple[str, int]) -> bytes:
    """Ask for `/` until there is an answer: the service may be public before it listens."""
    while True:
        async with await trio.open_tcp_stream(*address) as visitor:
            await visitor.send_all(b"GET / HTTP/1.0\r\nHost: example\r\n\r\n")
            try:
                answer = b"".join([piece async for piece in visitor])
            except trio.BrokenResourceError:
                answer = b""
        if answer:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b" 200 " in head
            return body
        await trio.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@needs("fastapi", "uvicorn")
async def test_fastapi(ready: trionat.Ready) -> None:
    async with running("fastapi_app.py", ready) as process:
        host, port = await find_public(process)
        assert json.loads(await get((host, port))) == {"public": [f"{host}:{port}"]}


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@needs("flask")
async def test_flask(ready: trionat.Ready) -> None:
    async with running("flask_app.py", ready) as process:
        assert await get(await find_public(process)) == b"hello from behind NAT\n"


async def test_the_cells_of_a_notebook(
    ready: trionat.Ready, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run each as Jupyter does: in a thread whose asyncio loop goes on between two cells."""
    monkeypatch.setenv("TRIONAT_TICKET", ready.ticket or "")
    text = (EXAMPLES / "jupyter_notebook.py").read_text("utf-8")
    cells = [cell for cell in re.split(r"^# %%", text, flags=re.MULTILINE) if cell[:1] == "\n"]
    assert len(cells) == 5
    names: dict[str, object] = {}

    async def notebook() -> bytes:
        answer = b""
        for number, cell in enumerate(cells):
            exec(
                compile(f"from __future__ import annotations\n{cell}", f"cell {number}", "exec"),
                names,
            )
            await asyncio.sleep(0)
            if number == 2:
                host, port = re.findall(r"http://(.+):(\d+)/", capsys.readouterr().out)[0]
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                answer = await reader.read()
                writer.close()
        return answer

    assert b"The result is 42" in await trio.to_thread.run_sync(asyncio.run, notebook())
    folder = names["folder"]
    assert isinstance(folder, Path)
    assert not folder.exists()


async def test_the_plugin_in_a_project_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    found = entry_points(group="pytest11", name="trionat")
    own = () if found else ("-p", "trionat.testing.plugin")  # installed from an older source
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "pytest.ini", *own]
    result = await trio.run_process(
        [*command, "--rootdir", ".", str(EXAMPLES / "pytest_plugin.py")],
        capture_stdout=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout.decode()
    assert b"3 passed" in result.stdout
