"""Rivals from the registry of Rust packages, installed by its own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import platformdirs

from bench.program import FailedError, MissingError, find, output_of

if TYPE_CHECKING:
    from pathlib import Path

ROOT: Final = platformdirs.user_cache_path("trionat") / "bench" / "cargo"
"""Outside of the repository, so that it is done once on a machine. To have newer releases, delete it."""
_INSTALL_TIMEOUT: Final = 3600.0


async def installed(crate: str, program: str) -> Path:
    """Return the path of a crate's program; the first time, have cargo build and install the crate, which takes minutes.

    Raises:
        MissingError: there is no cargo, or it does not come to an end, as when the registry cannot be reached.
    """
    path = ROOT / "bin" / program
    if not path.exists():
        try:
            cargo = find("cargo", package="cargo")
            command = ["nice", "-n", "19", cargo, "install", "--root", ROOT, crate]
            await output_of(command, within=_INSTALL_TIMEOUT)
        except (MissingError, FailedError) as error:
            raise MissingError(f"{crate} cannot be installed: {error}") from None
    return path
