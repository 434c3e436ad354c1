"""The last records of this process, kept in memory for whoever looks at the log from afar."""

from __future__ import annotations

import json
import logging
from collections import deque
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.log.record import Event, mask_secrets, render_json, without_references

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

RECORDS: Final = 1000
"""How many are kept: some 1 MiB."""


@attrs.define(eq=False)
class Tail:
    """The last records, each with its number. Records come from any thread; but for exceptions, they are put into words only when somebody reads them."""

    _records: deque[tuple[int, logging.LogRecord]] = attrs.field(
        init=False, factory=lambda: deque(maxlen=RECORDS)
    )
    _numbers: Iterator[int] = attrs.field(init=False, factory=lambda: count(1))
    newest: int = attrs.field(init=False, default=0)
    """The number of the last one."""

    def add(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        number = next(self._numbers)
        self._records.append((number, record))
        self.newest = number

    def read(self, *, above: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """Return the records above a number, as they stand in the log file, without secrets. Takes some 20 us for each: for a thread."""
        records = [each for each in self._records.copy() if each[0] > above]
        return [(number, json.loads(render_json(record))) for number, record in records]


class _Keep(logging.Handler):
    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self._tail = tail

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(record.msg, Event):  # another library's
            event = Event({"event": record.getMessage()})
            mask_secrets(event)
            record = logging.makeLogRecord({**record.__dict__, "msg": event, "args": None})
        self._tail.add(without_references(record))


@contextmanager
def keep_tail() -> Generator[Tail]:
    """Keep the last records of this process while the block runs."""
    tail = Tail()
    handler = _Keep(tail)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield tail
    finally:
        root.removeHandler(handler)
        handler.close()
