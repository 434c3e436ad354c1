"""What these tests need, and an image made once for all of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.dockerfile import Image, build, make_debian

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Return what the Dockerfile makes; a Debian and an image take two minutes. A folder named by `DEBIAN_ROOT` with one from debootstrap spares half of that.

    Where something is missing the test is skipped, except in `nox -s containers`.
    """
    if missing := _missing():
        message = f"no containers without {missing}"
        if os.environ.get("CONTAINERS"):
            raise RuntimeError(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="trionat-image-"))
    try:
        given = os.environ.get("DEBIAN_ROOT")
        debian = Path(given) if given else make_debian("trixie", folder / "debian")
        yield build(ROOT / "Dockerfile", {"debian:trixie-slim": debian}, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "being root on Linux"
    programs = {"debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux"}
    found = [
        f"{program} (Debian: {package})"
        for program, package in {**programs, "ip": "iproute2"}.items()
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    return ", ".join(found) or None
