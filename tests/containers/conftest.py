"""What these tests need: a Debian and an image, made once for all of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.dockerfile import Image, build, make_debian
from tests.containers.requirement import give_up

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def debian() -> Iterator[Path]:
    """Return a folder with the smallest Debian, which takes a minute. One that `DEBIAN_ROOT` names, from debootstrap, spares that.

    Where something is missing the test is skipped, except in `nox -s containers`.
    """
    if missing := _missing():
        give_up(f"no containers without {missing}")
    if given := os.environ.get("DEBIAN_ROOT"):
        yield Path(given)
        return
    with _folder("debian") as folder:
        yield make_debian("trixie", folder)


@pytest.fixture(scope="session")
def image(debian: Path) -> Iterator[Image]:
    """Return what the Dockerfile makes; it takes a minute."""
    with _folder("image") as folder:
        yield build(ROOT / "Dockerfile", {"debian:trixie-slim": debian}, folder)


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Make a folder for what belongs to many users, and remove it with all of that."""
    folder = Path(tempfile.mkdtemp(prefix=f"trionat-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
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
