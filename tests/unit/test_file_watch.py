"""Watching files where the system does not play along: the program goes on, and the files are looked at anyway."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import trio

pytest.importorskip("watchfiles")

from watchfiles import awatch

from trionat.cli import file_watch
from trionat.signals import AutoResetEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_LOOK_INTERVAL", 0.05)


@pytest.fixture
def changed() -> AutoResetEvent:
    return AutoResetEvent()


@pytest.mark.usefixtures("look_often")
async def test_a_folder_that_is_gone_is_waited_for(tmp_path: Path, changed: AutoResetEvent) -> None:
    """As when a deployment removes the folder of a configuration and makes it anew; on a machine whose network drive comes later, at the start."""
    file = tmp_path / "etc" / "server.yml"
    file.parent.mkdir()
    file.write_text("Server: {}\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_watch.watch, lambda: [file], changed.notify)
        await trio.sleep(0.3)
        shutil.rmtree(file.parent)
        await trio.sleep(0.3)
        file.parent.mkdir()
        file.write_text("Server: {MaxVisitors: 1}\n")
        with trio.fail_after(5):
            await changed.wait()
        nursery.cancel_scope.cancel("seen")


@pytest.mark.usefixtures("look_often")
async def test_a_folder_that_is_not_there_at_the_start(
    tmp_path: Path, changed: AutoResetEvent
) -> None:
    file = tmp_path / "later" / "server.yml"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_watch.watch, lambda: [file], changed.notify)
        await trio.sleep(0.3)
        file.parent.mkdir()
        file.write_text("Server: {}\n")
        with trio.fail_after(5):
            await changed.wait()
        nursery.cancel_scope.cancel("seen")


@pytest.mark.usefixtures("look_often")
async def test_files_are_looked_at_where_the_system_watches_none(
    tmp_path: Path, changed: AutoResetEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of one user may have 128 watches of folders (fs.inotify.max_user_instances), which others may have taken; the library has an error of its own for that."""
    resource = pytest.importorskip("resource")
    asked = 0

    def without_descriptors(*arguments: str, **options: Any) -> AsyncIterator[object]:
        nonlocal asked
        asked += 1
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)

        async def watched() -> AsyncIterator[object]:  # noqa: ASYNC900 - as awatch itself, and closed
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            try:
                async for each in awatch(*arguments, **options):
                    yield each
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

        return watched()

    monkeypatch.setattr(file_watch, "awatch", without_descriptors)
    file = tmp_path / "server.yml"
    file.write_text("Server: {}\n")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file_watch.watch, lambda: [file], changed.notify)
        await trio.sleep(0.3)
        file.write_text("Server: {MaxVisitors: 1}\n")
        with trio.fail_after(5):
            await changed.wait()
        nursery.cancel_scope.cancel("seen")
    assert asked > 1
