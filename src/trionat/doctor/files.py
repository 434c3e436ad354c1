"""Whether files that hold secrets are closed to others, and open to us."""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING, Final

import attrs

from trionat.doctor.finding import Finding, fine, wrong
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_AS_ITS_USER: Final = "run trionat doctor as the user that trionat runs as"


@attrs.frozen
class SecretFile:
    """A file, and what is in it. Some belong to a group of the program's, which may read them: `for_group`."""

    path: Path
    what: str
    for_group: bool = False

    @property
    def closed_to(self) -> str:
        """Who may do nothing with it, as chmod calls them."""
        return "o" if self.for_group else "go"


def check_files(files: Iterable[SecretFile]) -> list[Finding]:
    """Look at each; those that are not there are passed over. Blocks."""
    found: list[Finding] = []
    looked = 0
    for file in files:
        try:
            mode = file.path.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(wrong(f"{file.path} ({file.what}): {error.strerror}", _AS_ITS_USER))
            continue
        looked += 1
        closed = stat.S_IRWXO if file.for_group else stat.S_IRWXO | stat.S_IRWXG
        if os.name == "posix" and mode & closed:
            advice = f"chmod {file.closed_to}-rwx {shlex.quote(str(file.path))}; if others may have read it, make a new one"
            found.append(
                wrong(f"{file.path} ({file.what}) is open to others on this machine", advice)
            )
        elif not os.access(file.path, os.R_OK):
            found.append(
                wrong(f"{file.path} ({file.what}) cannot be read by this user", _AS_ITS_USER)
            )
    if found:
        return found
    if not looked:
        return [fine("there are none with secrets")]
    return [fine(f"{counted(looked, 'file')} with secrets, closed to others")]
