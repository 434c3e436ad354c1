"""The log records of a worker, which become records of the parent: one file, one order of rotation, one terminal."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from trionat.log.record import Event

if TYPE_CHECKING:
    import trio

_READ_BYTES: Final = 16 * 1024
"""At once, so that a crowd's records do not hold up the others: some 60 records, a millisecond."""

_LINE_BYTES: Final = 1024 * 1024


async def relay_log(pipe: trio.lowlevel.FdStream, word: str) -> None:
    """Pass on the records that come through a pipe, as JSON lines, until its end. Each says which worker it is from."""
    rest = b""
    while piece := await pipe.receive_some(_READ_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            _relay(line, word)
        if len(rest) > _LINE_BYTES:
            rest = b""


def _relay(line: bytes, word: str) -> None:
    try:
        values: dict[str, Any] = json.loads(line)
        created = datetime.fromisoformat(values.pop("time"))
        level = logging.getLevelNamesMapping()[values.pop("level").upper()]
        logger = logging.getLogger(values.pop("logger"))
        seconds = created.timestamp()
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError):
        return  # cut off in the middle, as the worker was, or no record at all
    if not logger.isEnabledFor(level):
        return
    event = Event({**values, "worker": word})
    record = logger.makeRecord(logger.name, level, "", 0, event, (), None)
    record.created = seconds
    logger.handle(record)
