"""What modules log through: an event with keys, and the keys that a task and its children share."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from trionat.log.record import Event, mask_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

_context: Final[ContextVar[Mapping[str, object] | None]] = ContextVar("trionat_log", default=None)


def bind_context(**values: object) -> None:
    """Add keys to all records of this task from now on, and of the tasks that it starts; a record's own keys win."""
    _context.set({**context(), **values})


def unbind_context(*keys: str) -> None:
    """Take keys away again, from this task and from those that it will start."""
    _context.set({key: value for key, value in context().items() if key not in keys})


def context() -> Mapping[str, object]:
    """Return the keys that hold for this task."""
    return _context.get() or {}


class Logger:
    """Logs for one module. A call never blocks and never raises; everything but the event is passed by keyword."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **values: object) -> None:
        """Log what only somebody who looks for a fault wants to know."""
        self._log(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        """Log what a user wants to read: who came, who left and why."""
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Log what somebody should look at, while the program goes on as it was."""
        self._log(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        """Log what somebody has to mend before it hurts, and what is no bug of ours."""
        self._log(logging.ERROR, event, values)

    def exception(
        self, event: str, *, exc_info: BaseException | None = None, **values: object
    ) -> None:
        """Log a bug of ours with the traceback of `exc_info`, or else of the exception that is being handled."""
        self._log(logging.ERROR, event, values, error=exc_info or sys.exception())

    def _log(
        self,
        level: int,
        event: str,
        values: dict[str, object],
        *,
        error: BaseException | None = None,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        message = Event({**values, **context(), **values, "event": event})
        mask_secrets(message)
        # Whoever called `info`, for a host program whose lines name the place. `logging` itself looks for it with
        # path names, which costs as much as all the rest.
        caller = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as `logging` does
        code = caller.f_code
        record = self._logger.makeRecord(
            self._logger.name,
            level,
            code.co_filename,
            caller.f_lineno,
            message,
            (),
            None if error is None else (type(error), error, error.__traceback__),
            code.co_name,
        )
        self._logger.handle(record)


def get_logger(name: str) -> Logger:
    """Return the logger of a module; `name` is its `__name__`."""
    return Logger(name)
