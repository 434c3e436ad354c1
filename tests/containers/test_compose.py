"""docs/containers.md, word for word: each of its set-ups comes up, and a visitor gets through."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.compose import Compose, name_all
from tests.faults.machines import open_site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.containers.dockerfile import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
FILE = (ROOT / "compose.yml").read_text(encoding="utf-8")
PUBLIC = "tunnel.example.com"


def steps(heading: str) -> list[list[str]]:
    """Return the lines of each block of commands under a heading."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [block.splitlines() for block in re.findall(r"```sh\n(.+?)```", section, re.DOTALL)]


@contextmanager
def set_up(image: Image, public: tuple[str, ...], *names: str) -> Iterator[Compose]:
    """Give the file on machines of these names; `public` is which of them the public name leads to."""
    folder = Path(tempfile.mkdtemp(prefix="trionat-compose-"))
    addresses = {name: f"10.0.0.{number}" for number, name in enumerate(names, 1)}
    try:
        with open_site(folder / "machines", addresses) as site:
            name_all(site, {PUBLIC: tuple(site[name].address for name in public)})
            compose = Compose(FILE, image, site, folder)
            try:
                yield compose
            finally:
                compose.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(condition: Callable[[], object], compose: Compose, *names: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        ended = [name for name in names if compose.up[name].poll() is not None]
        if ended or time.monotonic() > deadline:
            pytest.fail("\n".join(f"{name}:\n{compose.log(name)}" for name in names))
        time.sleep(0.1)


def address_in(compose: Compose, name: str) -> str:
    """Wait for where a client's service can be visited."""
    shown = re.compile(rf"({PUBLIC}:\d+) -> web:8080")
    wait_for(lambda: shown.search(compose.log(name)), compose, name)
    found = shown.search(compose.log(name))
    assert found is not None
    return found[1]


def visit(compose: Compose, address: str, *resolve: str) -> str:
    """Fetch the page of the service from the machine of a visitor; nothing where that fails."""
    options = [word for host in resolve for word in ("--resolve", f"{address}:{host}")]
    command = ["curl", "-sS", "--fail", "--max-time", "20", *options, f"http://{address}/"]
    inside = compose.site["visitor"].inside
    return subprocess.run(
        [*inside, *command], capture_output=True, text=True, check=False, timeout=30
    ).stdout


def wait_for_page(compose: Compose, address: str, *resolve: str) -> None:
    wait_for(
        lambda: "Directory listing" in visit(compose, address, *resolve), compose, "client", "web"
    )


def test_a_server_and_a_client_beside_a_service(image: Image) -> None:
    with set_up(image, ("server",), "server", "client", "web", "visitor") as compose:
        told = ""
        for block in steps("A server"):
            for line in block:
                told = compose.run(line)
                if " up " in line:
                    wait_for(
                        lambda: "trionat connect tn1_" in compose.log("server"), compose, "server"
                    )
                    wait_for(lambda: compose.is_healthy("server"), compose, "server")
        assert PUBLIC in compose.log("server")
        compose.exports["PUBLIC_ADDR"] = ""
        [block] = steps("A client beside a service")
        for line in block:
            compose.run(re.sub("TICKET=.*", f"TICKET={told.strip()}", line))
        address = address_in(compose, "client")
        wait_for_page(compose, address)

        assert compose.stop("client") == 0
        compose.run("docker compose --profile client up -d")
        assert address_in(compose, "client") == address
        wait_for_page(compose, address)
        assert compose.stop("server") == 0
        compose.run("docker compose --profile server up -d")
        wait_for(lambda: compose.is_healthy("server"), compose, "server")
        wait_for_page(compose, address)


def test_a_cluster(image: Image) -> None:
    names = ("node1", "node2", "redis", "db", "client", "web", "visitor")
    with set_up(image, ("node1", "node2"), *names) as compose:
        first, second = steps("A cluster")
        for line in first:
            compose.run(line)
        told = []
        for line in second:
            if "exec" in line:
                for node in ("node1", "node2"):
                    wait_for(partial(compose.is_healthy, node), compose, node)
            told.append(compose.run(line))
        assert "nodes: 2" in told[1]
        compose.exports["TICKET"] = told[2].strip()
        compose.run("docker compose --profile client up -d")
        address = address_in(compose, "client")
        for node in ("node1", "node2"):
            wait_for_page(compose, address, compose.site[node].address)

        compose.stop("node1")
        wait_for_page(compose, address, compose.site["node2"].address)


def test_the_file_shows_what_a_server_needs() -> None:
    """Ports and keys are those of the page, and nothing in the file is secret."""
    for port in ("8007", "60000-60003"):
        assert port in PAGE
        assert f'"{port}:{port}"' in FILE
    assert "tn1_" not in FILE
