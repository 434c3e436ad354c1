"""What is said through the socket of a server: one request, one answer, each a line of JSON. Bytes and values only.

A request names what is asked for; an answer has either `answer`, or `error` with a text.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from trionat.config.reload import PATIENCE as RELOAD_PATIENCE
from trionat.errors import RemoteProtocolError
from trionat.protocol.fields import Fields, write_json

REQUEST_BYTES: Final = 4096
"""What a request has at most, with its line end. The longest name is 255 characters, each of at most 12 bytes in JSON."""

_encoder: Final = json.JSONEncoder(separators=(",", ":"))

FOR_RELOAD: Final = RELOAD_PATIENCE + 5.0
"""Seconds for a reload, which has a deadline of its own: a command that waits hears what came of it."""

FOR_UPGRADE: Final = 150.0
"""Seconds for an upgrade: it takes as long as a start does, and at most what the new process has for all of its steps."""

_HIGHEST_NUMBER: Final = 2**63 - 1


class CommandRefusedError(RemoteProtocolError):
    """The server has understood what was asked for, or not, and says why it does not do it."""


@attrs.frozen
class AskStatus:
    """Asks for a `Snapshot`."""

    word: ClassVar[str] = "status"


@attrs.frozen
class AskTasks:
    """Asks for the `Branch` of the main task."""

    word: ClassVar[str] = "tasks"


@attrs.frozen
class AskDrain:
    """Asks that the server be drained, if it is not yet, and for a `Drained`."""

    word: ClassVar[str] = "drain"


@attrs.frozen
class AskWhere:
    """Asks at which nodes of the cluster a user's clients are, for a `Whereabouts`."""

    word: ClassVar[str] = "where"
    name: str


@attrs.frozen
class KickUser:
    """Asks that all of a user's clients be sent away; as the others, for a `Kicked`."""

    word: ClassVar[str] = "kick-user"
    name: str


@attrs.frozen
class KickSession:
    """Asks that a session be ended, and its ports be free."""

    word: ClassVar[str] = "kick-session"
    uid: int


@attrs.frozen
class KickVisitor:
    """Asks that a visitor's connection be reset."""

    word: ClassVar[str] = "kick-visitor"
    number: int


@attrs.frozen
class LiftBan:
    """Asks that the ban of a network be lifted, as `status` names it, and for a `Lifted`."""

    word: ClassVar[str] = "lift-ban"
    network: str


@attrs.frozen
class AskReload:
    """Asks that the configuration be read again, for a `Reloaded`."""

    word: ClassVar[str] = "reload"


@attrs.frozen
class AskUpgrade:
    """Asks that a new process take the place of this one, for an `Upgraded`."""

    word: ClassVar[str] = "upgrade"


Kick: TypeAlias = KickUser | KickSession | KickVisitor
Request: TypeAlias = (
    AskStatus | AskTasks | AskDrain | AskWhere | AskReload | AskUpgrade | Kick | LiftBan
)


@attrs.frozen(kw_only=True)
class Kicked:
    """Who was sent away: the sessions, by uid, the visitors, by number, how many from the queue, and which ports and names that stood reserved are free.

    `told` is how many other nodes of the cluster were asked to do the same, `elsewhere` how many sessions of the user's, and ports that are kept for
    one, they had as far as this node knew; None where nobody was asked.
    """

    sessions: tuple[int, ...] = ()
    visitors: tuple[int, ...] = ()
    queued: int = 0
    reserved: tuple[int, ...] = ()
    told: int = 0
    names: tuple[str, ...] = ()
    elsewhere: int | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Kicked:
        """Return what `attrs.asdict` has made these values of."""
        return cls(
            sessions=tuple(values["sessions"]),
            visitors=tuple(values["visitors"]),
            queued=values["queued"],
            reserved=tuple(values["reserved"]),
            told=values.get("told", 0),
            names=tuple(values.get("names", ())),
            elsewhere=values.get("elsewhere"),
        )

    @property
    def anybody(self) -> bool:
        """Whether there was anybody at all, or other nodes may have somebody."""
        return self != Kicked()

    @property
    def anybody_here(self) -> bool:
        """Whether this server had anybody."""
        return attrs.evolve(self, told=0, elsewhere=None) != Kicked()


@attrs.frozen(kw_only=True)
class Drained:
    """How far a drain has come: sessions that are still up, how many of their clients have `moved` elsewhere by now, visitors that are here.

    `reserved` counts lost clients whose ports are kept, `others` are the servers that clients are told of, `waits_for` says what has to be there first.
    """

    sessions: int
    moved: int = 0
    visitors: int = 0
    reserved: int = 0
    others: tuple[str, ...] = ()
    waits_for: str | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Drained:
        """Return what `attrs.asdict` has made these values of."""
        parts: dict[str, Any] = {"others": tuple(values["others"])}
        return cls(**values | parts)

    @property
    def is_done(self) -> bool:
        """Whether nobody is left."""
        return not self.sessions and not self.reserved


@attrs.frozen(kw_only=True)
class Lifted:
    """Whether a ban was lifted: it is not where there was none."""

    is_lifted: bool

    @classmethod
    def of(cls, values: dict[str, Any]) -> Lifted:
        """Return what `attrs.asdict` has made these values of."""
        return cls(**values)


@attrs.frozen(kw_only=True)
class Holding:
    """What one client has, or a group, at a node: visit ports and names. A client of a group has none of its own."""

    node: str
    points: tuple[int | str, ...]
    is_group: bool = False

    @classmethod
    def of(cls, values: dict[str, Any]) -> Holding:
        """Return what `attrs.asdict` has made these values of."""
        parts: dict[str, Any] = {"points": tuple(values["points"])}
        return cls(**values | parts)


@attrs.frozen(kw_only=True)
class Whereabouts:
    """Where a user's clients are, as `node` knows it, which is None where the server is no node of a cluster.

    `holdings` has the first ones, by node, and `more` says how many are left out. What is kept for a client that was lost counts as its own. `away` says
    why Redis cannot be asked, and is None where it can: what is known may be old then.
    """

    node: str | None
    away: str | None = None
    holdings: tuple[Holding, ...] = ()
    more: int = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> Whereabouts:
        """Return what `attrs.asdict` has made these values of."""
        parts: dict[str, Any] = {"holdings": tuple(map(Holding.of, values["holdings"]))}
        return cls(**values | parts)


def encode_request(request: Request) -> bytes:
    """Return the line."""
    return _line({"request": request.word, **attrs.asdict(request)})


def decode_request(line: bytes) -> Request:
    """Read a line.

    Raises:
        RemoteProtocolError: it is no request; the message is for whoever has sent it.
    """
    fields = Fields.parse("the request", line)
    match fields.text("request"):
        case AskStatus.word:
            return AskStatus()
        case AskTasks.word:
            return AskTasks()
        case AskDrain.word:
            return AskDrain()
        case AskWhere.word:
            return AskWhere(fields.text("name"))
        case AskReload.word:
            return AskReload()
        case AskUpgrade.word:
            return AskUpgrade()
        case KickUser.word:
            return KickUser(fields.text("name"))
        case KickSession.word:
            return KickSession(fields.integer("uid", 1, _HIGHEST_NUMBER))
        case KickVisitor.word:
            return KickVisitor(fields.integer("number", 1, _HIGHEST_NUMBER))
        case LiftBan.word:
            return LiftBan(fields.text("network"))
        case other:
            raise RemoteProtocolError(f"this server knows no request {other!r}")


def encode_answer(answer: attrs.AttrsInstance) -> bytes:
    """Return the line for an attrs value. May take a while: for a thread of its own."""
    return b'{"answer":%b}\n' % write_json(answer, _encode)


def encode_error(text: str) -> bytes:
    """Return the line."""
    return _line({"error": text})


def decode_answer(line: bytes) -> dict[str, Any]:
    """Read a line.

    Raises:
        CommandRefusedError: it is an error.
        RemoteProtocolError: it is no answer.
    """
    fields = Fields.parse("the answer", line)
    if (error := fields.values.get("error")) is not None:
        raise CommandRefusedError(str(error))
    return dict(Fields("the answer", fields.values.get("answer")).values)


def _line(values: dict[str, Any]) -> bytes:
    return _encode(values) + b"\n"


def _encode(value: object) -> bytes:
    """ASCII only, since names out of a configuration need not be Unicode."""
    return _encoder.encode(value).encode()
