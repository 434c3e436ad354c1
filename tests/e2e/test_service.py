"""`trionat service` with a real systemd of a user, in a mount namespace of its own, so that it takes this machine for one that systemd has started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import services

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMD = Path("/lib/systemd/systemd")
START_TIMEOUT = 30.0

BOOT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p -m 700 /run/systemd/system /run/user/0
for group in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
    if mkdir "$group/trionat-test-$$" 2>/dev/null; then
        echo $$ > "$group/trionat-test-$$/cgroup.procs" && break
    fi
done
exec "$0" --user --log-target=console --log-level=notice
"""
"""What systemd needs to run for a user: sd_booted(3), and control groups below which it makes its own."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mount namespaces need root"
    ),
]


@attrs.frozen
class UserSystemd:
    """A systemd for a user whose home folder is `home`."""

    pid: int
    home: Path

    def run(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command as that user would."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", f"--wd={self.home}", *words]
        result = subprocess.run(
            inside,
            capture_output=True,
            text=True,
            env=environment(self.home),
            check=False,
            timeout=100,
        )
        assert code is None or result.returncode == code, result.stdout + result.stderr
        return result

    def trionat(self, *words: str, code: int | None = 0) -> str:
        """Run trionat, and return what it has printed; root has to say that it is for itself."""
        if words[0] == "service":
            words = (*words[:2], "--user", *words[2:])
        result = self.run(sys.executable, "-m", "trionat", *words, code=code)
        return result.stdout + result.stderr

    def state(self, name: str) -> dict[str, Any]:
        """Return how a daemon stands."""
        return dict(json.loads(self.trionat("service", "status", "--json", name, code=None)))


def environment(home: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/0", "LANG": "C.UTF-8"}


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[UserSystemd]:
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        services.find_program("systemctl", package="systemd")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with (tmp_path / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", BOOT, str(SYSTEMD)],
            stdout=log,
            stderr=log,
            env=environment(home),
        )
        try:
            it = UserSystemd(process.pid, home)
            wait_for(
                lambda: (
                    "running"
                    in it.run("systemctl", "--user", "is-system-running", code=None).stdout
                )
            )
            yield it
        finally:
            # It ends its services first, as at a logout.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    print((tmp_path / "systemd.log").read_text())


def wait_for(condition: Any, within: float = START_TIMEOUT) -> None:
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it has not come to that"
        time.sleep(0.1)


async def ask(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join([piece async for piece in stream])


@pytest.mark.limit(110)
async def test_a_server_and_a_client_are_kept_up(
    systemd: UserSystemd, http_server: services.Service
) -> None:
    control, visit = services.free_low_port(), services.free_low_port()
    said = await trio.to_thread.run_sync(
        lambda: systemd.trionat(
            *("service", "install", "serve", "-c", f"127.0.0.1:{control}", "-p", str(visit)),
            *("--tunnel-addr", "127.0.0.1:0", "--public-addr", "127.0.0.1"),
        )
    )
    assert "trionat: active, process " in said
    assert f"clients dial 127.0.0.1:{control}" in said
    said = systemd.trionat("user", "ticket", "trionat")
    (ticket,) = (word for word in said.split() if word.startswith("tn1_"))

    said = systemd.trionat("service", "install", "connect", ticket, str(http_server.port))
    assert "trionat-client: active" in said
    assert "loginctl enable-linger" in said
    wait_for(lambda: f"127.0.0.1:{visit} -> " in systemd.state("trionat-client")["text"])
    assert b"hello" in await ask(visit)
    unit = systemd.home / ".config/systemd/user/trionat-client.service"
    assert ticket not in unit.read_text()
    assert (systemd.home / ".config/trionat/trionat-client.ticket").stat().st_mode & 0o777 == 0o600

    # Killed, it is started again, and gets its port back.
    show = systemd.run("systemctl", "--user", "show", "--property=MainPID", "trionat-client")
    os.kill(int(show.stdout.partition("=")[2]), signal.SIGKILL)
    wait_for(lambda: not systemd.state("trionat-client")["active"])
    wait_for(lambda: f"127.0.0.1:{visit} -> " in systemd.state("trionat-client")["text"])
    assert b"hello" in await ask(visit)

    # What nobody can mend by trying again is tried once.
    systemd.trionat("kick", "trionat")
    wait_for(lambda: "exit code 4" in systemd.state("trionat-client")["text"])
    assert "trionat-client: failed" in systemd.trionat("service", "status", code=3)

    for name in ("trionat-client", "trionat"):
        assert f"{name} is gone" in systemd.trionat("service", "uninstall", name)
    assert "nothing is installed here" in systemd.trionat("service", "status", code=3)
    assert not list((systemd.home / ".config").rglob("*trionat*.*"))
    assert (systemd.home / ".local/state/trionat/server.key").exists()


@pytest.mark.limit(110)
async def test_a_start_that_fails_is_told_with_its_reason(systemd: UserSystemd) -> None:
    wrong = "TRIONAT_SERVER_MAX_VISITORS"  # of the manager, which nobody sees who installs
    systemd.run("systemctl", "--user", "set-environment", f"{wrong}=no")
    said = systemd.trionat(
        "service",
        "install",
        "--name",
        "broken",
        "serve",
        "-c",
        "127.0.0.1:1",
        code=3,
    )
    assert "systemctl --user restart broken ended with 1" in said
    assert "broken: failed, exit code 2" in systemd.trionat("service", "status", "broken", code=3)
    # Installing it again, when that is mended, mends it.
    systemd.run("systemctl", "--user", "unset-environment", wrong)
    control = services.free_low_port()
    systemd.trionat(
        "service",
        "install",
        "--name",
        "broken",
        "serve",
        "-c",
        f"127.0.0.1:{control}",
        "-p",
        "0",
        "--tunnel-addr",
        "127.0.0.1:0",
    )
    assert systemd.state("broken")["active"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("connect", "8080", "--password", "x"),
            "--password: what is kept up is shown to everybody",
        ),
        (("connect", "8080", "-Px"), "-P"),
        (("status",), "write serve or connect"),
        (("connect", "--no-such-flag"), "No such option: --no-such-flag"),
        (("--name", "../x", "connect", "8080"), "is not a valid name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_installed_is_refused(words: tuple[str, ...], said: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "trionat", "service", "install", "--dry-run", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stdout
    assert said in result.stderr


def test_paths_are_whole(tmp_path: Path) -> None:
    (tmp_path / "server.yml").touch()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "trionat", "service", "install", "--dry-run", "--user"),
            *("serve", "--config", "server.yml", "--state-dir=state"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert f" serve --config {tmp_path}/server.yml --state-dir={tmp_path}/state" in result.stdout
