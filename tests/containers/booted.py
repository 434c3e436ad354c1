"""A machine that has booted, without an engine: systemd is process 1 in namespaces of its own, in a folder with a Debian in it.

It has no network but its own loopback.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from tests.containers.dockerfile import MAKE_DEVICES, PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOOT_TIMEOUT: Final = 60.0
"""Seconds until everything is up, and until everything has stopped."""

_NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net")

_BOOT: Final = f"""
set -e
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
# The kernel is everybody's, and the network its own.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
{MAKE_DEVICES}mkdir "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
ip link set lo up
cd "$root"
pivot_root . mnt
umount -l /mnt
mount --make-rshared /  # so that a credential reaches a service that is there already: systemd.exec(5)
exec env -i container=test PATH="$PATH" \\
    setpriv --bounding-set=-sys_module,-sys_time,-sys_boot /lib/systemd/systemd --show-status=no
"""
"""What systemd needs in a container: https://systemd.io/CONTAINER_INTERFACE."""

_JOIN: Final = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'
"""What becomes a process of a machine is in its control groups first: systemd refuses a caller from outside of them."""

POWER_OFF: Final = signal.SIGRTMIN + 4
"""What has systemd stop everything: systemd(1)."""


def why_not() -> str | None:
    """Return why no machine can boot here; None: it can."""
    group = _control_groups()
    if group is None or not os.access(group, os.W_OK):
        return "control groups of version 2 that can be written to"
    words = ["unshare", "--fork", *_NAMESPACES, "mount", "-t", "proc", "proc", "/proc"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    return None if not done.returncode else f"namespaces ({done.stderr.strip()})"


@attrs.define(eq=False)
class Booted:
    """A machine; `leader` is its systemd, as this machine counts processes, and `group` has all of its control groups."""

    root: Path
    group: Path
    leader: int = 0
    _holder: subprocess.Popen[bytes] | None = None
    _cursor: str = ""

    def start(self) -> None:
        """Boot, and return when everything is up. Blocks."""
        words = (
            *("sh", "-c", _JOIN, "sh", str(self.group), "unshare", "--fork", "--kill-child"),
            *(*_NAMESPACES, "sh", "-c", _BOOT, "sh", str(self.root)),
        )
        self._holder = subprocess.Popen(words, env={"PATH": PATH}, stdin=subprocess.DEVNULL)
        wait_for(self._is_up, within=BOOT_TIMEOUT)

    def power_off(self) -> None:
        """Stop everything in order, and wait for it. Blocks."""
        assert self._holder is not None
        os.kill(self.leader, POWER_OFF)
        self._holder.wait(BOOT_TIMEOUT)

    def kill(self) -> None:
        """End everything at once."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(10)

    def run(self, script: str, *, user: str = "root", code: int = 0) -> str:
        """Run lines of a shell as they stand on a page, in the user's home folder; return what they print. Blocks."""
        home = "/root" if user == "root" else f"/home/{user}"
        who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        words = (
            *("sh", "-c", _JOIN, "sh", str(self.group)),
            *("nsenter", f"--target={self.leader}", "--all"),
            *("env", "-i", f"--chdir={home}", f"HOME={home}", f"PATH={PATH}", *who),
            *("sh", "-ec", f"export XDG_RUNTIME_DIR=/run/user/$(id -u)\n{script}"),
        )
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == code, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run(f"systemctl show --property={name} --value {unit}").strip()

    def process(self, unit: str) -> int:
        """Return the main process of a unit, as the machine counts."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> str:
        """Return what a unit has said, and systemd of it, since `turn_page`."""
        words = f"--unit={unit} --after-cursor='{self._cursor}' --output=cat --no-pager"
        return self.run(f"journalctl {words}")

    def turn_page(self) -> None:
        """Have nothing of what the journal has so far come up any more. Boots do not tell it apart: they are all of one kernel."""
        said = self.run("journalctl --lines=1 --show-cursor --quiet --no-pager")
        self._cursor = said.rpartition("-- cursor: ")[2].strip()

    def _is_up(self) -> bool:
        assert self._holder is not None
        assert self._holder.poll() is None, "it ended while it booted"
        pid = self._holder.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        if not children:
            return False
        self.leader = int(children[0])
        if Path(f"/proc/{self.leader}/comm").read_text("ascii") != "systemd\n":
            return False
        return self.run("systemctl is-system-running || true").strip() in {"running", "degraded"}


@contextmanager
def boot(root: Path) -> Iterator[Booted]:
    """Boot what is in a folder, and yield when all is up; in the end all of it is killed."""
    groups = _control_groups()
    assert groups is not None
    machine = Booted(root, Path(tempfile.mkdtemp(prefix="trionat-test-", dir=groups)))
    try:
        machine.group.chmod(0o755)  # users have groups of theirs below
        machine.start()
        yield machine
    finally:
        machine.kill()
        wait_for(lambda: _removed(machine.group))


def wait_for(condition: Callable[[], object], *, within: float = 20.0) -> None:
    """Look every tenth of a second until a condition holds."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it has not come to that"
        time.sleep(0.1)


def _control_groups() -> Path | None:
    """Return where this machine has its control groups of version 2."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(re.sub(r"\\040", " ", before.split()[4]))
    return None


def _removed(group: Path) -> bool:
    """Remove a group and those below; not while a process is on its way out."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
    except OSError:
        return False
    return True
