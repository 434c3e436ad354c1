"""What a log record says: the event and its keys, without secrets, as a line for people or for machines.

Knows nothing of where the lines go. Whatever a peer sent is hostile here: it may hold line ends, escape sequences and tickets.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import time
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from trionat.text import MASK, mask_tickets

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXT_CHARACTERS: Final = 2000
"""Longer texts are cut: what a peer sends must not fill the memory by way of the queue. Chosen, not measured."""

_TRACEBACK_CHARACTERS: Final = 16_000
"""Of a traceback that is kept; its end says what it is. Chosen."""

_SECRET_KEYS: Final = ("password", "ticket", "token", "secret")
_BARE: Final = re.compile(r"""[^ ="']+""")
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


class Event(dict[str, Any]):
    """What a module logged: `event` and the keys. It is the `msg` of the `logging` record.

    Rendered as text only when somebody asks for the text, which is where a library user's handlers get a readable message.
    """

    def __str__(self) -> str:
        keys = " ".join(
            f"{key}={_plain(value)}"
            for key, value in self.items()
            if key != "event" and value is not None
        )
        return mask_tickets(f"{escape(str(self.get('event')))} {keys}".rstrip())


def render_json(record: logging.LogRecord) -> str:
    """Return one line: a JSON object in ASCII, so that no reader needs to know an encoding."""
    created = dt.datetime.fromtimestamp(record.created, dt.UTC)
    event = cast("Event", record.msg)
    frame = {
        "time": created.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.get("event"),
    }
    # The frame twice: it comes first in the line, and no key can take its place.
    line = {**frame, **event, **frame}
    if record.exc_info:
        line["exception"] = _traceback(record)
    return mask_tickets(_json.encode(line))


def render_text(record: logging.LogRecord, *, colours: bool = False) -> str:
    """Return one line for people, and under it the traceback, indented so that no line of it can pass for a record."""
    clock = _clock(int(record.created))
    level = record.levelname.lower()
    if colours:
        clock = f"\x1b[2m{clock}\x1b[0m"
        level = f"\x1b[{_COLOURS.get(level, '0')}m{level}\x1b[0m" + " " * (7 - len(level))
    origin = "" if record.name.startswith("trionat") else f"{escape(record.name)}: "
    line = f"{clock} {level:7} {origin}{record.msg}"
    if record.exc_info:
        line += "".join(f"\n  | {escape(part)}" for part in _traceback(record).splitlines())
    return mask_tickets(line)


def mask_secrets(event: Event) -> None:
    """Hide secrets in an event, by key and by look, and cut long texts. The renderers look once more, inside nested values."""
    for key, value in event.items():
        if _is_secret(key):
            event[key] = MASK
        elif isinstance(value, str):
            value = mask_tickets(value)  # noqa: PLW2901 (the same value, made fit)
            event[key] = value if len(value) <= TEXT_CHARACTERS else value[:TEXT_CHARACTERS] + "..."


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return key.lower().endswith(_SECRET_KEYS)


@lru_cache(maxsize=1)
def _clock(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _plain(value: object) -> str:
    """Return a value as it stands in a line of text: bare where that is unmistakable, else quoted."""
    if type(value) is int or type(value) is float:
        return str(value)
    if isinstance(value, tuple | list):
        text = ",".join(map(_text, cast("Iterable[object]", value)))
    elif isinstance(value, set | frozenset):
        text = ",".join(sorted(map(_text, cast("Iterable[object]", value))))
    elif isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = _text(value)
    return text if text.isprintable() and _BARE.fullmatch(text) else repr(text)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (a broken __str__ must not cost the record)
        return f"<{type(value).__name__}>"


_json: Final = json.JSONEncoder(default=_text, skipkeys=True)


def without_references(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record that can be kept: its exceptions in words, cut like other texts, since they hold frames, and so whatever a peer has sent."""
    event = Event(
        {
            key: _text(value)[:TEXT_CHARACTERS] if isinstance(value, BaseException) else value
            for key, value in cast("Event", record.msg).items()
        }
    )
    if record.exc_info:
        text = _traceback(record)
        event["exception"] = (
            text if len(text) <= _TRACEBACK_CHARACTERS else f"...{text[-_TRACEBACK_CHARACTERS:]}"
        )
    kept = logging.makeLogRecord({**record.__dict__, "msg": event})
    kept.exc_info = kept.exc_text = None
    return kept


def escape(text: str) -> str:
    """Return the text with line ends, escape sequences and direction marks spelt out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _traceback(record: logging.LogRecord) -> str:
    _, error, _ = record.exc_info or (None, None, None)
    return "".join(traceback.format_exception(error)).rstrip("\n") if error else ""
