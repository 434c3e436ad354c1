"""Running a server or a client until it ends or is told to: signals, exit codes, and errors as one line."""

from __future__ import annotations

import enum
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio
import typer

from trionat.cli.output import printing_aside, say
from trionat.errors import (
    ConfigError,
    IdentityError,
    PeerError,
    Problem,
    RefusedError,
    SessionOverError,
    StartupError,
    StoreError,
    StoreUnavailableError,
    TrionatError,
)
from trionat.log import LogStatistics, escape, get_logger, log_to
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.system import open_file, raise_descriptor_limit
from trionat.text import quoted, strip_around
from trionat.transport.isolation import leaves
from trionat.transport.names import NameResolver

if TYPE_CHECKING:
    from trionat.service_manager.notification import Notification

log = get_logger(__name__)

_HANGUP: Final[int | None] = getattr(signal, "SIGHUP", None)  # Windows has none

_UPGRADE: Final[signal.Signals | None] = getattr(signal, "SIGUSR2", None)

_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_OTHER_WORDS: Final = {"WARN": "WARNING", "FATAL": "CRITICAL"}
"""What other programs call them."""


class ExitCode(enum.IntEnum):
    """What the program ends with; `docs/reference.md` has the same for users."""

    DONE = 0
    BUG = 1
    CONFIGURATION = 2
    STARTUP = 3
    REFUSED = 4
    REPLACED = 5
    FINDINGS = 6
    INTERRUPTED = 130


def run_until_signalled(
    run: Callable[[trio.Event], Awaitable[None]],
    *,
    terminal: bool = True,
    log_file: str | None = None,
    log_mode: int = 0o666,
    reserved: AbstractContextManager[object] | None = None,
    notification: Notification | None = None,
    on_upgrade: Callable[[], None] | None = None,
) -> None:
    """Run the program's main job and exit with its code.

    `run` gets the event that the first SIGINT or SIGTERM sets: it drains and returns. The second one cancels it. SIGHUP
    counts as one where there is a terminal, which has closed then; else it is only told.
    `log_file` is where JSON lines go besides the terminal; `log_mode` is who may read it where it is made. `reserved` is entered before that is opened, and left in the end.
    `notification` is the service manager that hears of a stop, and that the event loop turns; `run` itself tells it the rest. `on_upgrade` is called at each SIGUSR2.
    """
    code = ExitCode.BUG
    raise_descriptor_limit()  # every visitor takes two, and the usual soft limit is only 1024, or 256
    try:
        with (
            reserved or nullcontext(),
            _logging(terminal=terminal, log_file=log_file, log_mode=log_mode),
            printing_aside(),
        ):
            code = trio.run(_run, run, notification, on_upgrade)
    except* TrionatError as group:
        code = tell(leaves(group))
    except* KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    raise typer.Exit(code)


def find_service_manager() -> Notification | None:
    """Return the way to the service manager that has started us, if one has and wants to hear."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from trionat.service_manager.notification import Notification  # noqa: PLC0415 - seldom

    return Notification.take(os.environ)


def _logging(
    *, terminal: bool, log_file: str | None, log_mode: int
) -> AbstractContextManager[LogStatistics | None]:
    if not terminal and log_file is None:
        return nullcontext()
    level = _log_level()
    filename, descriptor = (None, None) if log_file is None else _open_log_file(log_file, log_mode)
    return log_to(
        terminal=sys.stderr if terminal else None,
        filename=filename,
        descriptor=descriptor,
        level=level,
    )


def _open_log_file(log_file: str, mode: int) -> tuple[Path, int | None]:
    """Return the absolute name of a log file that can be opened now: who asked for one should not miss it when it is needed.

    A pipe or a device comes open, as its descriptor: whoever reads a pipe takes the first close for its end.

    Raises:
        StartupError: It cannot be opened.
    """
    try:
        filename = Path(log_file).absolute()
    except OSError as error:
        raise StartupError(
            f"{log_file}: the working directory no longer exists: change to another"
        ) from error
    try:
        # Without waiting for the reader of a pipe.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = open_file(filename, flags, mode, waiting=False)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartupError(
            f"{log_file}: cannot open the log file: {reason}; --log-name (LogFilename) names another"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return filename, descriptor
    os.close(descriptor)
    return filename, None


def _log_level() -> str:
    level = strip_around(os.environ.get("TRIONAT_LOG_LEVEL", "")).upper() or "INFO"
    level = _OTHER_WORDS.get(level, level)
    if level not in _LOG_LEVELS:
        reason = f"{quoted(level)} is not a valid level: write one of {', '.join(_LOG_LEVELS)}"
        raise ConfigError(Problem(where="environment TRIONAT_LOG_LEVEL", reason=reason))
    return level


def _has_terminal() -> bool:
    """Tell whether this process has a controlling terminal: a service has none (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


async def _run(
    run: Callable[[trio.Event], Awaitable[None]],
    notification: Notification | None,
    on_upgrade: Callable[[], None] | None,
) -> ExitCode:
    stopping = trio.Event()
    code = ExitCode.DONE
    trio.socket.set_custom_hostname_resolver(NameResolver())
    has_terminal = _has_terminal()  # when SIGHUP tells that it has closed, nobody can tell any more
    async with trio.open_nursery() as nursery:

        async def watch_signals(
            *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            nonlocal code
            watched = [signal.SIGINT, signal.SIGTERM]
            if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:  # nohup(1)
                watched.append(signal.Signals(_HANGUP))
            if _UPGRADE is not None and on_upgrade is not None:
                watched.append(_UPGRADE)
            with trio.open_signal_receiver(*watched) as signals:
                task_status.started()
                async for number in signals:
                    if number == _UPGRADE and on_upgrade is not None:
                        on_upgrade()
                    elif number == _HANGUP and not has_terminal:
                        log.info(
                            "SIGHUP: the configuration is read at a start only; the log follows its file's name"
                        )
                    elif number == _HANGUP and stopping.is_set():
                        pass  # a shell and the kernel may both tell of a terminal that has closed
                    elif stopping.is_set():
                        code = ExitCode.INTERRUPTED
                        nursery.cancel_scope.cancel("second signal: stop now")
                    else:
                        log.info("stopping: visitors may finish; a second signal stops at once")
                        if notification is not None:
                            notification.stopping()
                        stopping.set()

        await nursery.start(watch_signals, name="signals")
        if notification is not None:
            nursery.start_soon(notification.keep_alive, name="tell that the loop turns")
        await run(stopping)
        nursery.cancel_scope.cancel("done")
    return code


def tell(errors: Iterable[BaseException]) -> ExitCode:
    """Print each error on standard error, one line each, and return the exit code of the first."""
    codes: list[ExitCode] = []
    for error in errors:
        for line in str(error).splitlines():
            say(f"trionat: {escape(line)}", err=True)
        codes.append(_code_of(error))
    return codes[0]


def _code_of(error: BaseException) -> ExitCode:
    match error:
        case StartupError() | StoreUnavailableError():
            return ExitCode.STARTUP
        case ConfigError() | StoreError():
            return ExitCode.CONFIGURATION
        case RefusedError(
            code=RefusalCode.PORT_NOT_OFFERED
            | RefusalCode.NAME_NOT_OFFERED
            | RefusalCode.TOO_MANY_SERVICES
        ):
            return ExitCode.CONFIGURATION
        case RefusedError(code=RefusalCode.EVICTED) | SessionOverError(code=CloseCode.EVICTED):
            return ExitCode.REPLACED
        case (
            RefusedError(
                code=RefusalCode.AUTH_FAILED | RefusalCode.ACCOUNT_EXPIRED | RefusalCode.KICKED
            )
            | IdentityError()
        ):
            return ExitCode.REFUSED
        case SessionOverError(
            code=CloseCode.ACCOUNT_EXPIRED | CloseCode.ACCOUNT_REMOVED | CloseCode.KICKED
        ):
            return ExitCode.REFUSED
        case PeerError():
            return ExitCode.STARTUP
        case _:
            return ExitCode.BUG
