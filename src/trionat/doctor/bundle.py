"""A file for a bug report: what the doctor has found, and what one would ask for next. Every secret in it is masked."""

from __future__ import annotations

import os
import platform
import ssl
import sys
import zipfile
from contextlib import suppress
from importlib import metadata
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

from trionat.errors import StartupError
from trionat.system import is_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from trionat.doctor.masking import Masker

LOG_LINES: Final = 500
_LOG_BYTES: Final = 512 * 1024
"""Of the end of a log that is read."""

_IS_THERE: Final = "{path}: there is such a file already: name another one"

_README: Final = """\
This is for a bug report about trionat: what `trionat doctor` has found, the configuration that holds, versions,
facts about the machine and the end of the log. Passwords, tickets, tokens and keys are masked. Names, addresses and
paths are not: look through it before you give it away.
"""

_FACTS: Final = (
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_local_reserved_ports",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/fs/file-nr",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/self/limits",
    "/etc/os-release",
)


def check_place(path: Path) -> None:
    """Check that a bundle can be written there, as far as that can be known before. Blocks.

    Raises:
        StartupError: It is there already, or there is no such folder.
    """
    try:
        path.parent.stat()
        path.lstat()
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise StartupError(f"{path}: cannot write it: there is no such folder") from error
    except OSError as error:
        raise StartupError(f"{path}: cannot write it: {error.strerror}") from error
    else:
        raise StartupError(_IS_THERE.format(path=path))


def write_bundle(path: Path, texts: Mapping[str, str], masker: Masker) -> None:
    """Write the file (mode 0600), a zip, of these texts by name; each is masked. Blocks.

    Raises:
        StartupError: It is there already, or cannot be written.
    """
    try:
        descriptor = os.open(
            path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600
        )
    except FileExistsError as error:
        raise StartupError(_IS_THERE.format(path=path)) from error
    except OSError as error:
        raise StartupError(f"{path}: cannot write it: {error.strerror}") from error
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle,
        ):
            for name, text in {"README.txt": _README, **texts}.items():
                bundle.writestr(name, masker.mask(text))
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise StartupError(f"{path}: cannot write it: {error.strerror}") from error


def versions() -> str:
    """Return what is installed here of trionat and of what it uses."""
    lines = [
        f"python {sys.version}",
        f"openssl {ssl.OPENSSL_VERSION}",
        f"trionat {metadata.version('trionat')}",
    ]
    for requirement in sorted(metadata.requires("trionat") or ()):
        name = requirement.split(";")[0].strip()
        for mark in "[<>=!~ (":
            name = name.partition(mark)[0]
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def machine(environ: Mapping[str, str]) -> str:
    """Return facts about this machine; of the environment, only what is called after trionat or a proxy, and no value. Blocks."""
    lines = [
        f"platform {platform.platform()}",
        f"machine {platform.machine()}, {os.cpu_count()} processors",
        f"encoding {sys.getfilesystemencoding()}, standard output {getattr(sys.stdout, 'encoding', None)}",
    ]
    lines.append(f"user {'root' if is_root() else 'not root'}")
    names = [
        name for name in environ if name.startswith("TRIONAT_") or name.lower().endswith("_proxy")
    ]
    lines.append(f"environment has {', '.join(sorted(names)) or 'nothing for trionat'}")
    for name in _FACTS:
        with suppress(OSError, UnicodeDecodeError), open(name, encoding="utf-8") as file:  # noqa: PTH123 - a constant
            lines.append(f"\n{name}\n{file.read().strip()}")
    return "\n".join(lines) + "\n"


def last_lines(logs: Iterable[Path]) -> str:
    """Return the end of each log that is there. Blocks."""
    parts: list[str] = []
    for path in logs:
        try:
            if not S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                parts.append(f"{path}\nis no file, but a pipe or a device")
                continue
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LOG_BYTES))
                lines = file.read(_LOG_BYTES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            lines = [f"cannot be read: {error.strerror}"]
        parts.append("\n".join([str(path), *lines[-LOG_LINES:]]))
    return "\n\n".join(parts) + "\n" if parts else "there is no log file\n"
