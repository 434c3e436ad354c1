"""Whether files that hold secrets are closed to others, and open to us."""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING

from trionat.doctor.finding import Finding, fine, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def check_files(
    secrets: Iterable[tuple[Path, str]], *, group_may_read: bool = False
) -> list[Finding]:
    """Look at files with what is in them; those that are not there are passed over. Blocks. `group_may_read`: a group of its own is as good."""
    found: list[Finding] = []
    looked = 0
    closed = stat.S_IRWXO | (0 if group_may_read else stat.S_IRWXG)
    for path, what in secrets:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(wrong(f"{path} ({what}): {error.strerror}", _AS_ITS_USER))
            continue
        looked += 1
        if os.name == "posix" and status.st_mode & closed:
            advice = f"chmod {'o-rwx' if group_may_read else 'go-rwx'} {shlex.quote(str(path))}; if others may have read it, make a new one"
            found.append(wrong(f"{path} ({what}) is open to others on this machine", advice))
        elif not os.access(path, os.R_OK):
            found.append(wrong(f"{path} ({what}) cannot be read by this user", _AS_ITS_USER))
    if found:
        return found
    return [
        fine(
            f"{looked} files with secrets, closed to others"
            if looked
            else "there are none with secrets"
        )
    ]


_AS_ITS_USER = "run trionat doctor as the user that trionat runs as"
