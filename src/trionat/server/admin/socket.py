"""The Unix socket in the state folder: where a server listens for its operator, and how a command gets there.

Whoever may open the socket may do everything that can be asked for, so it is the owner's alone (0600).
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.system import has_unix_sockets, open_unix_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator
    from pathlib import Path

log = get_logger(__name__)

SOCKET_NAME: Final = "status.sock"
"""In the state folder."""

ANSWER_BYTES: Final = 256 * 1024 * 1024
"""The longest answer that is read: more than a million visitors."""

_PATH_BYTES: Final = 103
"""What every system takes as a socket's path (sun_path of unix(7): 108 on Linux, 104 on macOS and the BSDs, a zero included)."""

_DESCRIPTORS: Final = "/proc/self/fd"

_PATIENCE: Final = 15.0
"""Seconds for each step of a server that answers; it takes 10 s for all of them."""


@contextmanager
def open_admin_socket(
    folder: Path,
    given: socket.socket | None = None,
    is_elsewhere: Callable[[], bool] = lambda: False,
) -> Generator[socket.socket | None]:
    """Listen on the socket in a folder that the caller has locked, and remove it at the end. Blocks for a moment.

    A socket that a server left behind which was killed is replaced. Where there can be none, gives None: the server does
    not need it. With `given`, another process has listened there so far; one that `is_elsewhere` at the end stays where it is.
    """
    if given is not None:
        with given:
            yield given
            if not is_elsewhere():
                with suppress(OSError):
                    (folder / SOCKET_NAME).unlink(missing_ok=True)
        return
    if not has_unix_sockets():
        yield None
        return
    with open_unix_socket() as listening:
        path = folder / SOCKET_NAME
        try:
            path.unlink(missing_ok=True)
            with _reachable(folder) as name:
                listening.bind(name)
            path.chmod(0o600)
            listening.listen()  # before that nobody can connect, whatever the mode was
        except OSError as error:
            log.warning(
                "trionat status, tasks and kick will not reach this server",
                socket=str(path),
                error=error.strerror or str(error),
            )
            yield None
            return
        try:
            yield listening
        finally:
            if not is_elsewhere():
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def call(folder: Path, request: bytes, *, patience: float | None = None) -> bytes:
    """Send a line to the server that runs on a state folder, and return the line that it answers. Blocks, at each step for so many seconds at most, or as long as most answers take.

    Raises:
        StartupError: there is no server, or it does not answer.
    """
    if not has_unix_sockets():
        raise StartupError(
            "this needs Unix sockets, which Python does not have on Windows: see the server's log"
        )
    patience = _PATIENCE if patience is None else patience
    with open_unix_socket() as sock:
        sock.settimeout(patience)
        try:
            with _reachable(folder) as name:
                sock.connect(name)
            sock.sendall(request)
            answer = _read_line(sock)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise StartupError(
                f"{folder}: no server is up on this state folder: start it, or name another one (--state-dir)"
            ) from error
        except TimeoutError as error:
            raise StartupError(
                f"{folder}: the server does not answer within {patience:g} s"
            ) from error
        except OSError as error:
            raise StartupError(
                f"{folder / SOCKET_NAME}: cannot ask the server: {error.strerror or error}"
            ) from error
    if not answer.endswith(b"\n"):
        raise StartupError(f"{folder}: the server's answer was cut off: has it stopped?")
    return answer


def _read_line(sock: socket.socket) -> bytes:
    answer = bytearray()
    while len(answer) < ANSWER_BYTES and (piece := sock.recv(1 << 20)):
        answer += piece
    return bytes(answer)


@contextmanager
def _reachable(folder: Path) -> Generator[str]:
    """Give a name for the socket that a system takes, which a long path is not; valid in the block only.

    Raises:
        OSError: there is none, or no such folder.
    """
    path = str(folder / SOCKET_NAME)
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield path
        return
    if not os.path.isdir(_DESCRIPTORS):  # noqa: PTH112 - a constant
        raise OSError(
            f"the path is longer than the {_PATH_BYTES} bytes that a Unix socket may have: choose a shorter --state-dir"
        )
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"{_DESCRIPTORS}/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
