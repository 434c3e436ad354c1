"""Telling when files have changed (`ReloadOnChange`): the only place that knows watchfiles. Imported only where that is wanted.

Folders are watched, since editors and Kubernetes put another file, or link, in a file's place. Whatever happens there, the files themselves are looked at.
"""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from watchfiles import awatch

from trionat.log import get_logger
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

log = get_logger(__name__)

_LOOK_INTERVAL: Final = 5.0
"""Seconds after which the files are looked at anyway: on some network drives nothing is told."""

_SETTLED: Final = 400
"""Milliseconds for which what happens is put together: an editor makes several steps of one."""

_Stamp: TypeAlias = tuple[int, int, int] | None


async def watch(files: Callable[[], Collection[Path]], on_change: Callable[[], None]) -> None:
    """Call `on_change` whenever one of `files`, which are asked for again each time, has changed; until cancelled. One that is gone is waited for."""
    seen: Mapping[Path, _Stamp] = await trio.to_thread.run_sync(
        _look, files(), abandon_on_cancel=True
    )
    while True:  # noqa: ASYNC913 - whatever comes of the watch, it was waited for
        reason = ""
        try:
            folders = {path.absolute().parent for path in files()}
            seen = await _watch_folders(folders, files, on_change, seen)
        except* (OSError, RuntimeError) as group:
            # A folder that is not there now; or nothing is left to watch one with (fs.inotify.max_user_instances), for which the library has a private kind of RuntimeError.
            reason = str(next(leaves(group)))
        if reason:
            log.debug("a folder cannot be watched now, but is looked at", reason=reason)
            await trio.sleep(_LOOK_INTERVAL)
            seen = await _compare(files, on_change, seen)


async def _watch_folders(
    folders: Collection[Path],
    files: Callable[[], Collection[Path]],
    on_change: Callable[[], None],
    seen: Mapping[Path, _Stamp],
) -> Mapping[Path, _Stamp]:
    """Watch these folders until others are to be watched; return how the files were seen last."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_set_when_cancelled, stop, name="stop watching")
        changes = awatch(
            *folders,
            watch_filter=None,
            recursive=False,
            debounce=_SETTLED,
            stop_event=stop,
            rust_timeout=int(_LOOK_INTERVAL * 1000),
            yield_on_timeout=True,
        )
        async with aclosing(changes):
            async for _ in changes:
                seen = await _compare(files, on_change, seen)
                if {path.absolute().parent for path in files()} != folders:
                    break
        nursery.cancel_scope.cancel("other folders")
    return seen


async def _set_when_cancelled(stop: trio.Event) -> None:
    """The library waits in a thread, which asks for this event, and cannot be cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


async def _compare(
    files: Callable[[], Collection[Path]],
    on_change: Callable[[], None],
    seen: Mapping[Path, _Stamp],
) -> Mapping[Path, _Stamp]:
    now = await trio.to_thread.run_sync(_look, files(), abandon_on_cancel=True)
    changed = [path for path, stamp in now.items() if stamp is not None and seen.get(path) != stamp]
    if any(path in seen for path in changed):
        log.info("files have changed", files=", ".join(map(str, changed)))
        on_change()
    # One that is gone for a moment counts as it was: it is there again when its successor is.
    return {path: stamp or seen.get(path) for path, stamp in now.items()}


def _look(files: Collection[Path]) -> dict[Path, _Stamp]:
    """Return what tells one content of each file from another. Blocks."""
    stamps: dict[Path, _Stamp] = {}
    for path in files:
        try:
            status = path.stat()
            stamps[path] = status.st_mtime_ns, status.st_size, status.st_ino
        except OSError:
            stamps[path] = None
    return stamps
