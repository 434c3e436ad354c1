"""Every exception that trionat raises on purpose.

The tree says who is to blame, because that decides what happens: a `PeerError` costs one connection and one log line, a
`ConfigError` or `StartupError` ends the program with its exit code, and whatever is not in this tree is a bug of ours and
keeps its traceback. Messages are one line: what was wrong, where, and what to do. None of them shows a ticket or
the password of a URL, whatever it quotes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.text import mask_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable


class TrionatError(Exception):
    """The base of all; never raised itself."""

    def __str__(self) -> str:
        return mask_secrets(super().__str__())


@attrs.frozen
class Problem:
    """One mistake in the configuration.

    `where` is a file, an environment variable, a flag, or the class of a section that a program has made; `line` counts from 1 and is None outside files; `key` is the path of
    the key, such as `Server.VisitPort[2]`, or empty where the whole source is meant; `reason` says what is wrong and what
    would be right. `str()` shows no secret, whichever part has one.
    """

    where: str
    reason: str
    key: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        text = f"{place}: {self.key}: {self.reason}" if self.key else f"{place}: {self.reason}"
        return mask_secrets(text)


class ConfigError(TrionatError):
    """The configuration is wrong; `problems` has every mistake that was found, in the order of the sources."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StartupError(TrionatError):
    """Something outside of us is missing to start: an address cannot be bound, a server reached, a file read."""


class EventLoopError(TrionatError, RuntimeError):
    """What runs under Trio was asked for under another event loop, or the other way round: a mistake of the program that uses the library.

    The message names what was called, and what to write instead. It is a RuntimeError as well, as are those of Trio itself and of asyncio.
    """


class StoreError(TrionatError):
    """The user store refused: no such user, or one that exists already."""


class StoreUnavailableError(StoreError):
    """The user store cannot be asked now: its file or its database does not answer. Sessions that are up go on."""


class StoreDataError(StoreUnavailableError):
    """The user store does not take what it was given, such as a name in characters that a column cannot hold.

    Nothing of it was stored. The same data is refused again until somebody mends the store; other data may be taken.
    """


class NameTakenError(StoreError):
    """A name is another account's; `name` is which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} belongs to another account")
        self.name = name


class LastAdministratorError(StoreError):
    """Nobody would be left who is an administrator and may log in."""

    def __init__(self) -> None:
        super().__init__("this is the last administrator that may log in: make another one first")


class RegistryAwayError(TrionatError):
    """What this server shares with others cannot be asked for now. What is up goes on; trying again later helps."""


class PeerError(TrionatError):
    """Whatever the other side can cause. It costs that connection and one line in the log, never a traceback."""


class RemoteProtocolError(PeerError):
    """The peer sent what the protocol does not allow."""


class ConnectionLostError(PeerError):
    """The connection ended, without a word or in the middle of one."""


class PeerTimeoutError(PeerError):
    """The peer did not do in time what it had to do."""


class IdentityError(PeerError):
    """The server at the other end is not the one that it has to be."""


class RefusedError(PeerError):
    """The server refused us.

    `code` is one of `RefusalCode`'s values (a newer server may send others), `text` is for people. `route` leads to
    the process that would take us, and `servers` are others, by their control addresses, as text.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        route: str | None = None,
        servers: Iterable[object] = (),
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.route = route
        self.servers = tuple(map(str, servers))


class SessionOverError(ConnectionLostError):
    """The server has ended the session, and said why; `code` is one of `CloseCode`'s values."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class LocalProtocolError(TrionatError):
    """We broke the protocol ourselves: a bug, so it escapes."""
