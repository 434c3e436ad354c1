"""Whether there is room where trionat writes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, unknown, warning, wrong
from trionat.system import count_free_files

if TYPE_CHECKING:
    from pathlib import Path

_LEAST: Final = 16 * 1024 * 1024
"""Bytes without which accounts, traffic and certificates may not be written. Chosen."""

_LITTLE: Final = 256 * 1024 * 1024
"""Bytes below which a log may fill the rest soon. Chosen."""

_LEAST_FILES: Final = 100


def check_disk(folder: Path, what: str) -> list[Finding]:
    """Look at the file system of a folder, or of the one in which it would be made; `what` is for. Blocks."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        files = count_free_files(place)
    except OSError as error:
        return [unknown(f"{place}: {error.strerror}")]
    if not os.access(place, os.W_OK):
        return [
            wrong(
                f"{place}: nothing can be written there by this user ({what})",
                "run it as the user that trionat runs as, or give that user the folder",
            )
        ]
    told = f"{free / 2**20:,.0f} MiB free for {what}"
    if free < _LEAST:
        return [wrong(f"{place}: {told}", "make room there: what cannot be written is lost")]
    if files is not None and files < _LEAST_FILES:
        return [wrong(f"{place}: no more than {files} files can be made", "remove some there")]
    if free < _LITTLE:
        return [warning(f"{place}: {told}", "make room there soon")]
    return [fine(f"{place}: {told}")]
