"""The last records of the log."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import trio

from trionat.server.console.operation import Call, Nothing, Operation, Page
from trionat.server.console.shape import field

if TYPE_CHECKING:
    from trionat.log.tail import Tail

_LEVELS: Final = ("debug", "info", "warning", "error")


@attrs.frozen(kw_only=True)
class Record:
    """A record; `keys` are what varies, and `exception` is a traceback."""

    number: int
    time: str
    level: str
    logger: str
    event: str
    keys: dict[str, Any]
    exception: str | None

    @classmethod
    def of(cls, number: int, values: dict[str, Any]) -> Record:
        """Return what the log file has of it."""
        return cls(
            number=number,
            time=str(values.pop("time")),
            level=str(values.pop("level")),
            logger=str(values.pop("logger")),
            event=str(values.pop("event")),
            exception=values.pop("exception", None),
            keys=values,
        )

    def says(self, text: str) -> bool:
        """Tell whether a text is in it, in capitals or not."""
        words = f"{self.event} {self.logger} {self.keys} {self.exception or ''}"
        return text.lower() in words.lower()


@attrs.frozen(kw_only=True)
class Which:
    """Which records. They are the other way round than all other lists: the newest first."""

    level: Literal["debug", "info", "warning", "error"] | None = field(
        None, about="of this level and those above"
    )
    contains: str | None = field(None, about="with this text in them, in capitals or not")
    limit: int = field(100, least=1, most=1000, about="entries at most")
    after: int | None = field(None, about="what `next` of the page before says")

    def includes(self, record: Record) -> bool:
        """Tell whether a record is one of them."""
        enough = self.level is None or record.level not in _LEVELS[: _LEVELS.index(self.level)]
        return enough and (self.contains is None or record.says(self.contains))


def read_records(tail: Tail, *, above: int = 0) -> list[Record]:
    """Return the records above a number. Takes a while: for a thread."""
    return [Record.of(number, values) for number, values in tail.read(above=above)]


def _find(tail: Tail, which: Which) -> Page[Record]:
    """In a thread, since they are put into words."""
    found = [record for record in reversed(read_records(tail)) if which.includes(record)]
    rest = [record for record in found if which.after is None or record.number < which.after]
    part = tuple(rest[: which.limit])
    return Page(part, str(part[-1].number) if len(rest) > len(part) else None)


async def _list(call: Call[Which, Nothing]) -> Page[Record]:
    return await trio.to_thread.run_sync(
        partial(_find, call.context.tail, call.parameters), limiter=call.context.scribe
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/log",
        name="list_log",
        summary="The last records of the log, the newest first",
        is_for_admins=True,
        parameters=Which,
        answer=Page[Record],
        handle=_list,
        is_long=True,
    ),
)
