"""docs/service.md, word for word, on machines that have booted: what is kept up comes with the machine, and comes back after everything that may happen to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import pages
from tests.containers.booted import Booted, boot, wait_for, why_not
from tests.containers.dockerfile import begin, run_line
from tests.containers.requirement import give_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pages import Block

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = "/opt/trionat/bin/trionat"
STATE = "--state-dir /var/lib/trionat"
PUBLIC = "tunnel.example.com"
PACKAGES = "curl dbus dbus-user-session libpam-systemd procps python3-venv sudo systemd-sysv"

WEB = """
[Service]
WorkingDirectory=/srv
ExecStart=python3 -m http.server --bind 127.0.0.1 8080
[Install]
WantedBy=multi-user.target
"""
"""The service beside the client: it has a small page, and a large file for a visitor who is to stay for a while."""

LARGE_BYTES = 40_000_000


def block(section: str, word: str) -> Block:
    """Return the one block under a heading that has a word in it; '' is the beginning of the page."""
    [found] = [
        each
        for each in pages.blocks("docs/service.md")
        if each.section == section and word in each.text
    ]
    return found


@pytest.fixture(scope="module")
def root(debian: Path) -> Iterator[Path]:
    """Return a Debian with trionat, as the page has it installed, and the user `you`. Where no machine boots the test is skipped, as `debian` says."""
    if reason := why_not():
        give_up(f"no machine boots without {reason}")
    root = Path(tempfile.mkdtemp(prefix="trionat-booted-"))
    try:
        root.chmod(0o755)
        image = begin(debian, root)
        run_line(image, f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}")
        checkout = root / "srv/trionat"
        checkout.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "man", "src"):
            source = pages.ROOT / name
            if source.is_dir():
                shutil.copytree(source, checkout / name)
            else:
                shutil.copy2(source, checkout)
        run_line(image, f"cd /srv/trionat && {block('The whole machine', 'pip').typed[0]}")
        run_line(image, "useradd --create-home --shell /bin/sh you")
        (root / "etc/hostname").write_text("debian\n")
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost debian {PUBLIC}\n")
        (root / "srv/page").write_text("hello\n")
        (root / "srv/large").write_bytes(os.urandom(LARGE_BYTES))
        (root / "etc/systemd/system/web.service").write_text(WEB)
        run_line(image, "systemctl enable web")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def machine(root: Path) -> Iterator[Booted]:
    with boot(root) as booted:
        yield booted


@contextmanager
def server(machine: Booted, arguments: str = f"--public-addr {PUBLIC}") -> Iterator[str]:
    """Install a server of the whole machine, yield a ticket of its, and take it away again, with its state."""
    machine.turn_page()
    machine.run(f"{PROGRAM} service install serve {arguments}")
    try:
        said = machine.run(f"sudo -u trionat {PROGRAM} user ticket trionat {STATE}")
        [ticket] = re.findall(r"tn1_\S+", said)
        yield ticket
    finally:
        machine.run(f"{PROGRAM} service uninstall trionat; rm -r /var/lib/trionat")


@contextmanager
def client(machine: Booted, ticket: str) -> Iterator[None]:
    """Install a client of the whole machine, wait until it is connected, and take it away again."""
    machine.run(f"{PROGRAM} service install connect {ticket} 8080")
    try:
        wait_for(lambda: is_visited(machine))
        yield
    finally:
        machine.run(f"{PROGRAM} service uninstall trionat-client; rm -r /var/lib/trionat-client")


def is_visited(machine: Booted) -> bool:
    return (
        machine.run(f"curl --silent --max-time 9 http://{PUBLIC}:60000/page || true") == "hello\n"
    )


def without_numbers(text: str) -> list[str]:
    """Return lines without what is another one each time."""
    return re.sub(r"process \d+", "process N", text).splitlines()


def test_the_whole_machine(machine: Booted) -> None:
    page = block("The whole machine", "pip")
    install = page.typed[1]
    said = machine.run(install)
    try:
        assert without_numbers(said) == without_numbers("\n".join(page.shown))
        note = page.shown[-1].partition("more: ")[2]
        assert machine.run(note).startswith("trionat  added ")

        # What it may, and what not.
        told = machine.run(f"cat /proc/{machine.process('trionat')}/status")
        assert "CapBnd:\t0000000000000400\n" in told
        assert "NoNewPrivs:\t1\n" in told
        assert "Seccomp:\t2\n" in told
        rated = machine.run("systemd-analyze security --no-pager trionat | tail -n 1")
        assert "1.4 OK" in rated
        assert "it rates a server 1.4 of 10" in (pages.ROOT / "docs/service.md").read_text("utf-8")

        # An account of the machine is asked without being root, and may not change anything.
        state = machine.run(f"{PROGRAM} service status --system", user="you")
        assert state.startswith("trionat: active, process ")
        refused = machine.run(f"{PROGRAM} service uninstall --system trionat", user="you", code=3)
        assert "only root may change what the whole machine keeps up" in refused

        sysctl = block("The whole machine", "sysctl")
        assert "60000-60003" in machine.run("\n".join(sysctl.typed))
    finally:
        assert machine.run(f"{PROGRAM} service uninstall") == "trionat is gone\n"
    assert "nothing is installed here" in machine.run(f"{PROGRAM} service status", code=3)
    assert machine.run("ls /etc/systemd/system/*.wants /etc/systemd/system").count("trionat") == 0
    assert "server.key" in machine.run("ls /var/lib/trionat && rm -r /var/lib/trionat")


def test_a_configuration_file(machine: Booted) -> None:
    [line] = re.findall(
        r"`(install -\S+ .+server\.yml)`", (pages.ROOT / "docs/service.md").read_text("utf-8")
    )
    text = f"Server:\n  PublicAddr: {PUBLIC}\n  Workers: 2\n  VisitPort: [60000, 443]\n"
    (machine.root / "root/server.yml").write_text(text)
    machine.run(f"{PROGRAM} service install --no-start serve")  # makes the account
    machine.run(line)
    with (
        server(machine, "--config /etc/trionat/server.yml") as ticket,
        client(machine, ticket),
    ):
        machine.run("systemctl reload trionat")
        wait_for(lambda: "configuration reloaded" in machine.journal("trionat"))
        follow_an_upgrade(machine)
        worker = machine.run(f"pgrep --parent {machine.process('trionat')} | head -n 1")
        machine.run(f"kill -KILL {worker}")
        wait_for(lambda: is_visited(machine))


def has_visitors(machine: Booted) -> bool:
    status = json.loads(machine.run(f"{PROGRAM} status --json {STATE}"))
    return any(session["visitors"] for session in status["sessions"])


def follow_an_upgrade(machine: Booted) -> None:
    """Have another process take the place of the server while a visitor is there; systemd looks after that one from then on."""
    before = machine.process("trionat")
    machine.run(
        f"systemd-run --quiet --unit=visitor --property=Type=oneshot --property=RemainAfterExit=yes --no-block"
        f" sh -c 'curl --fail --limit-rate 2M http://{PUBLIC}:60000/large | cmp - /srv/large'"
    )
    try:
        wait_for(lambda: has_visitors(machine))
        said = machine.run(f"sudo -u trionat {PROGRAM} upgrade {STATE}")
        after = machine.process("trionat")
        assert f"serves as process {after}, in place of" in said
        assert f"({before}): 1 client and 1 visitor were handed over" in said
        wait_for(lambda: machine.show("visitor", "SubState") == "exited", within=60)
    finally:
        machine.run("systemctl stop visitor; systemctl reset-failed visitor || true")
    assert machine.show("trionat", "NRestarts") == "0"


def test_another_process_takes_its_place(machine: Booted) -> None:
    with server(machine) as ticket, client(machine, ticket):
        follow_an_upgrade(machine)
        before = machine.process("trionat")
        machine.run("systemctl kill --kill-whom=main --signal=USR2 trionat")
        wait_for(lambda: machine.process("trionat") != before)
        assert is_visited(machine)
        machine.run("systemctl reload trionat")
        wait_for(lambda: "configuration reloaded" in machine.journal("trionat"))

        # Whoever has taken over is started again like any other, and ends like any other.
        before = machine.process("trionat")
        machine.run(f"kill -KILL {before}")
        wait_for(lambda: machine.process("trionat") not in {0, before})
        wait_for(lambda: is_visited(machine))
        assert machine.show("trionat", "NRestarts") == "1"
        machine.run(f"{PROGRAM} upgrade {STATE}\nsystemctl stop trionat")
        assert machine.show("trionat", "Result") == "success"
        assert "visit ports closed" in machine.journal("trionat")
        assert "not our child" not in machine.journal("trionat")
        machine.run("systemctl start trionat")


def test_one_that_stands_still_is_started_again(machine: Booted) -> None:
    with server(machine) as ticket, client(machine, ticket):
        machine.run(f"{PROGRAM} upgrade {STATE}")  # its watchdog is the same
        frozen = machine.process("trionat")
        machine.run(f"kill -{signal.SIGSTOP} {frozen}")
        wait_for(lambda: machine.process("trionat") not in {0, frozen}, within=60)
        assert "Watchdog timeout (limit 30s)" in machine.journal("trionat")
        wait_for(lambda: is_visited(machine))


def test_a_client_of_the_whole_machine(machine: Booted) -> None:
    with server(machine) as ticket, client(machine, ticket):
        process = machine.process("trionat-client")
        told = machine.run(f"cat /proc/{process}/status /proc/{process}/cmdline | tr '\\0' ' '")
        assert "CapBnd:\t0000000000000000\n" in told
        assert "Seccomp:\t2\n" in told
        assert "tn1_" not in told
        assert "tn1_" not in machine.run("cat /etc/systemd/system/trionat-client.service")
        machine.run("cat /etc/trionat/trionat-client.ticket", user="you", code=1)
        rated = machine.run("systemd-analyze security --no-pager trionat-client | tail -n 1")
        assert "1.1 OK" in rated
        machine.run(f"kill -KILL {process}")
        wait_for(lambda: machine.process("trionat-client") not in {0, process})
        wait_for(lambda: is_visited(machine))
        # It does not come back against the word of an operator.
        machine.run(f"sudo -u trionat {PROGRAM} kick trionat {STATE}")
        wait_for(lambda: machine.show("trionat-client", "ActiveState") == "failed")
        said = machine.run(f"{PROGRAM} service status trionat-client", code=3)
        assert said.startswith("trionat-client: failed, exit code 4")


def test_a_client_of_yours(machine: Booted) -> None:
    page = block("", "service install connect")
    with server(machine) as ticket:
        machine.run("loginctl enable-linger you && systemctl start user@$(id -u you)")
        [line] = page.typed
        line = re.sub(r"tn1_\S+", ticket, line).replace("trionat ", f"{PROGRAM} ", 1)
        said = re.sub(f", {PUBLIC}.*", "", machine.run(line, user="you"))  # it may be up already
        assert without_numbers(said) == without_numbers("\n".join(page.shown))
        wait_for(lambda: is_visited(machine))
        page = block("", "service status")
        told = "".join(
            machine.run(line.replace("trionat ", f"{PROGRAM} ", 1), user="you")
            for line in page.typed
        )
        assert without_numbers(told) == without_numbers("\n".join(page.shown))


def test_it_is_there_after_the_next_boot(machine: Booted) -> None:
    with server(machine) as ticket, client(machine, ticket):
        machine.power_off()
        machine.start()
        wait_for(lambda: is_visited(machine))
        assert machine.run(f"{PROGRAM} service status").count(": active, process ") == 2
