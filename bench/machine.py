"""What it was measured on: the machine, and the versions of all programs."""

from __future__ import annotations

import os
import platform
import re
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.cargo import ROOT
from bench.program import FailedError, MissingError, find, output_of

_QUIET_LOAD: Final = 0.5
"""The load average below which the figures may be believed."""
_ANSWER_TIMEOUT: Final = 10.0
_GIB: Final = 2**30


def describe() -> dict[str, str]:
    """Return the facts about the machine, by their names; nothing tells whose it is."""
    processor = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return {
        "processor": f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def is_quiet(facts: dict[str, str]) -> bool:
    """Tell whether nothing else was going on."""
    return float(facts["load before"]) < _QUIET_LOAD


async def versions() -> dict[str, str]:
    """Return the versions of all programs that are here."""
    found = {
        "trionat": version("trionat"),
        "Python": platform.python_version(),
        "Trio": version("trio"),
        "OpenSSL of Python": ssl.OPENSSL_VERSION.split()[1],
    }
    for name, package, command, pattern in (
        ("nginx", "nginx-light", ["nginx", "-v"], r"nginx/(\S+)"),
        ("OpenSSH", "openssh-client", ["ssh", "-V"], r"OpenSSH_(\S+)"),
        ("iperf3", "iperf3", ["iperf3", "--version"], r"iperf (\S+)"),
        ("Redis", "redis-server", ["redis-server", "--version"], r"v=(\S+)"),
        ("rathole", None, ["rathole", "--version"], r"Build Version: +(\S+)"),
        ("bore", None, ["bore", "--version"], r"bore-cli (\S+)"),
        ("frp", "", ["frps", "--version"], r"(\d\S+)"),
        ("chisel", "", ["chisel", "--version"], r"(\d\S+)"),
    ):
        program = ROOT / "bin" / command[0]
        try:
            if package is not None:
                program = find(command[0], package=package)
            said = await output_of([program, *command[1:]], within=_ANSWER_TIMEOUT)
        except (MissingError, FailedError, OSError):
            continue  # then it is named among what was left out
        if match := re.search(pattern, said):
            found[name] = match[1]
    return found
