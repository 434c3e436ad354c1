"""The image: small, for a user without name, home or rights, with nothing but its volume to write to."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.containers.dockerfile import Image, command_line, instructions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PORTS = {
    "TRIONAT_SERVER_CONTROLLER_ADDR": "127.0.0.1:0",
    "TRIONAT_SERVER_TUNNEL_ADDR": "127.0.0.1:0",
    "TRIONAT_SERVER_VISIT_PORT": "0",
}


@attrs.frozen
class Container:
    image: Image
    volume: Path
    user: str

    def command(self, *words: str) -> list[str]:
        return command_line(
            self.image, words, environ=PORTS, binds={self.volume: "/state"}, user=self.user
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=60
        )


@contextmanager
def new_container(image: Image, user: str) -> Iterator[Container]:
    volume = Path(tempfile.mkdtemp(prefix="trionat-volume-"))
    try:
        owner = int(user.partition(":")[0])
        os.chown(volume, owner, owner)
        yield Container(image, volume, user)
    finally:
        shutil.rmtree(volume)


@pytest.fixture(params=["its own user", "any other"])
def container(request: pytest.FixtureRequest, image: Image) -> Iterator[Container]:
    user = image.user if request.param == "its own user" else "12345:12345"
    with new_container(image, user) as made:
        yield made


def test_the_demo(container: Container) -> None:
    done = container.run("trionat", "demo", "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_is_healthy_until_it_stops(container: Container) -> None:
    image = container.image
    assert container.run(*image.health).returncode == 1
    process = subprocess.Popen(
        container.command(*image.entrypoint, *image.command), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "trionat connect tn1_" in line:
                break
        healthy = container.run(*image.health)
        assert (healthy.returncode, healthy.stderr) == (0, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert container.run(*image.health).returncode == 1
    assert {"server.key", "trionat.db"} <= {path.name for path in container.volume.iterdir()}


def test_nothing_but_the_volume_can_be_written_to(image: Image) -> None:
    with new_container(image, image.user) as container:
        tried = (
            "for f in / /opt/trionat /etc /etc/trionat /tmp /var/tmp /usr /state /dev/shm;"
            " do touch $f/x 2>/dev/null && echo $f; done; echo ${HOME-none}; id -u; cat /proc/self/status"
        )
        told = container.run("sh", "-c", tried).stdout.splitlines()
    assert told[:4] == ["/state", "/dev/shm", "none", image.user.partition(":")[0]]
    assert "CapBnd:\t0000000000000000" in told
    assert "NoNewPrivs:\t1" in told


def test_it_has_all_extras_and_nothing_to_build_with(image: Image) -> None:
    with new_container(image, image.user) as container:
        extras = container.run(
            "/opt/trionat/bin/python", "-c", "import acme, anycorn, coredis, httptools, starlette"
        )
        assert (extras.returncode, extras.stderr) == (0, "")
        for left_out in ("pip", "ensurepip", "pytest", "tests"):
            assert container.run("/opt/trionat/bin/python", "-c", f"import {left_out}").returncode
        assert container.run("sh", "-c", "command -v gcc cc git curl").returncode


def test_it_is_small(image: Image) -> None:
    """What it has besides Debian and its Python."""
    files = {
        path.stat(follow_symlinks=False).st_ino: path.stat(follow_symlinks=False).st_size
        for path in image.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    own = [path for path in (image.root / "opt/trionat").rglob("*") if path.is_file()]
    ours = sum(path.stat().st_size for path in own) / 1e6
    print(f"the image: {sum(files.values()) / 1e6:.0f} MB, trionat and what it needs {ours:.0f} MB")
    assert ours < 120
    assert not list((image.root / "var/lib/apt/lists").glob("*Packages*"))
    assert not (image.root / "root/.cache").exists()
    assert not (image.root / "build").exists()


def test_it_says_what_it_needs(image: Image) -> None:
    assert image.volumes == ["/state"]
    assert image.environ["TRIONAT_STATE_DIR"] == "/state"
    assert image.ports == ["8007", "8008", "60000-60003"]


def test_a_dockerfile_is_read_as_an_engine_does() -> None:
    text = "# a\nARG A=1\nFROM debian:$A AS x\nRUN one \\\n    # said of two\n    && two\n"
    assert instructions(text) == [("ARG", "A=1"), ("FROM", "debian:$A AS x"), ("RUN", "one && two")]
