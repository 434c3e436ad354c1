"""Running a server or a client until it ends or is told to: signals, exit codes, and errors as one line."""

from __future__ import annotations

import enum
import logging
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import trio
import typer

from trionat.cli.output import printing_aside, say
from trionat.cli.screen.choice import stderr_is_terminal
from trionat.config.values import read_level
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
from trionat.interpreter import keep_pauses_short
from trionat.log import LogStatistics, escape, get_logger, log_to
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.system import open_file, raise_descriptor_limit
from trionat.text import strip_around
from trionat.transport.isolation import leaves
from trionat.transport.names import NameResolver

if TYPE_CHECKING:
    from trionat.cli.screen.screen import Screen
    from trionat.config.client import ClientConfig
    from trionat.config.load import Configuration, Role
    from trionat.config.server import ServerConfig
    from trionat.service_manager.notification import Notification

log = get_logger(__name__)

_HANGUP: Final[int | None] = getattr(signal, "SIGHUP", None)  # Windows has none

_UPGRADE: Final[signal.Signals | None] = getattr(signal, "SIGUSR2", None)


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


class Verbosity(enum.Enum):
    """How much is said on the terminal: with `--quiet` only where it is, and what somebody should look at; with `-v` what somebody who looks for a fault wants to know."""

    LESS = enum.auto()
    USUAL = enum.auto()
    MORE = enum.auto()

    @classmethod
    def of(cls, *, quiet: bool, verbose: bool) -> Verbosity:
        """Return what the flags say.

        Raises:
            ConfigError: Both are given.
        """
        if quiet and verbose:
            raise ConfigError(
                Problem("--quiet", "does not go with --verbose: leave one of them out")
            )
        return cls.LESS if quiet else cls.MORE if verbose else cls.USUAL

    @property
    def log_level(self) -> str | None:
        """The level of the log that goes before any other; None: whatever else is said."""
        return "DEBUG" if self is Verbosity.MORE else None


def run_until_signalled(
    run: Callable[[trio.Event], Awaitable[None]],
    *,
    terminal: bool = True,
    log_file: str | None = None,
    log_mode: int = 0o666,
    reserved: AbstractContextManager[object] | None = None,
    notification: Notification | None = None,
    level: str = "INFO",
    on_hangup: Callable[[], None] | None = None,
    on_upgrade: Callable[[], None] | None = None,
    is_quiet: bool = False,
    screen: Screen[Any] | None = None,
) -> None:
    """Run the program's main job and exit with its code.

    `run` gets the event that the first SIGINT or SIGTERM sets: it drains and returns. The second one cancels it. SIGHUP
    counts as one where there is a terminal, which has closed then; else `on_hangup` is called, which has the configuration read again.
    `level` is that of the log; with `is_quiet` the terminal gets warnings only.
    `log_file` is where JSON lines go besides the terminal; `log_mode` is who may read it where it is made. `reserved` is entered before that is opened, and left in the end.
    `notification` is the service manager that hears of a stop, and that the event loop turns; `run` itself tells it the rest. `on_upgrade` is called at each SIGUSR2.
    `screen` is closed before errors are told, in its language where they go to the terminal; its pane takes what else goes there.
    """
    code = ExitCode.BUG
    pane = None if screen is None else screen.pane
    raise_descriptor_limit()  # every visitor takes two, and the usual soft limit is only 1024, or 256
    try:
        with (
            screen or nullcontext(),
            reserved or nullcontext(),
            _logging(
                terminal=terminal,
                pane=pane,
                log_file=log_file,
                log_mode=log_mode,
                level=level,
                is_quiet=is_quiet,
            ),
            printing_aside(pane),
        ):
            code = trio.run(_run, run, notification, on_hangup, on_upgrade)
    except* TrionatError as group:
        in_words = str if screen is None or not stderr_is_terminal() else screen.language.reason
        code = tell(leaves(group), in_words)
    except* KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    raise typer.Exit(code)


def find_service_manager() -> Notification | None:
    """Return the way to the service manager that has started us, if one has and wants to hear."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from trionat.service_manager.notification import Notification  # noqa: PLC0415 - seldom

    return Notification.take(os.environ)


def _complaints(pane: TextIO | None) -> TextIO | None:
    """Return where log records go that are not for the file: standard error, unless that is the terminal on which the pane is."""
    stderr: TextIO | None = sys.stderr  # None: it was closed before the start (`2>&-`)
    return stderr if pane is None or stderr is None or not stderr.isatty() else pane


def _logging(
    *,
    terminal: bool,
    pane: TextIO | None,
    log_file: str | None,
    log_mode: int,
    level: str,
    is_quiet: bool,
) -> AbstractContextManager[LogStatistics | None]:
    if not terminal and log_file is None:
        return nullcontext()
    filename, descriptor = (None, None) if log_file is None else _open_log_file(log_file, log_mode)
    return log_to(
        terminal=_complaints(pane) if terminal else None,
        filename=filename,
        descriptor=descriptor,
        level=level,
        terminal_level=logging.WARNING if is_quiet else logging.NOTSET,
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


def log_level(configuration: Configuration, role: Role) -> str:
    """Return the level of the log: by the key, unless that is in a file, before which TRIONAT_LOG_LEVEL comes.

    Raises:
        ConfigError: the variable has none.
    """
    section: ServerConfig | ClientConfig = getattr(configuration, role)
    text = strip_around(os.environ.get("TRIONAT_LOG_LEVEL", ""))
    try:
        level = read_level(text) if text else "INFO"
    except ValueError as error:
        raise ConfigError(Problem("environment TRIONAT_LOG_LEVEL", str(error))) from None
    origin = configuration.origins[f"{role.capitalize()}.LogLevel"]
    if section.log_level is None or (text and not origin.startswith(("flag", "environment"))):
        return level
    return section.log_level


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
    on_hangup: Callable[[], None] | None,
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
                        log.info("SIGHUP: the configuration is read again")
                        if on_hangup is not None:
                            on_hangup()
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
        nursery.start_soon(keep_pauses_short, name="keep pauses short")
        if notification is not None:
            nursery.start_soon(notification.keep_alive, name="tell that the loop turns")
        await run(stopping)
        nursery.cancel_scope.cancel("done")
    return code


_TWICE: Final = "it runs twice with the same identity: stop one, or give each its own --identity"
"""What to do about another client that took over."""


def tell(errors: Iterable[BaseException], in_words: Callable[[str], str] = str) -> ExitCode:
    """Print each error on standard error, one line each, and return the exit code of the first; `in_words` returns a line as people are told it."""
    codes: list[ExitCode] = []
    for error in errors:
        code = _code_of(error)
        hint = f"; {_TWICE}" if code is ExitCode.REPLACED else ""
        for line in f"{error}{hint}".splitlines():
            say(f"trionat: {escape(in_words(line))}", err=True)
        codes.append(code)
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
