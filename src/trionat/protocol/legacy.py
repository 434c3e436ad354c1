"""The two dialects of the Go program: its messages, into frames and back.

`nat-doc` has little-endian headers, `nat-v1` big-endian ones and a uid in front of the credentials; payloads are big-endian in
both. A control connection runs like this (`NEW_CONNECTION` and so on are these messages' names in the specification)::

    client                                server
    Credentials               ->
                              <-          AuthSuccess | AuthFail          where the server asks for a login
                              <-          ConnectionFull                  no place in the queue
                              <-          UserInformation(uid, port)      after any time in the queue, in silence
                              <-          KeepAlive                       every second
                              <-          NewConnection                   one per visitor

For each `NewConnection` the client opens a tunnel: one `UserInformation(uid, port)` from the client, then raw bytes.

Nothing is encrypted and a uid is guessed easily: whoever trusts these messages says so in the configuration.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeAlias

import attrs

from trionat.errors import RemoteProtocolError
from trionat.protocol.dialect import Dialect
from trionat.protocol.fields import NAME_CHARACTERS, TEXT_CHARACTERS
from trionat.protocol.frames import BIG_ENDIAN, LITTLE_ENDIAN, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trionat.protocol.frames import Frame

HEADERS: Final[Mapping[Dialect, struct.Struct]] = {
    Dialect.NAT_DOC: LITTLE_ENDIAN,
    Dialect.NAT_V1: BIG_ENDIAN,
}

# 0001-01-01, the zero time of Go: what a client sends that has no expiry to tell.
NO_EXPIRY: Final = -62135596800


class UnknownMessageError(RemoteProtocolError):
    """A whole frame, but with an id that is not known here: the next one can be read all the same."""


_LENGTH: Final = struct.Struct(">i")
_LONG: Final = struct.Struct(">q")
_UID_AND_PORT: Final = struct.Struct(">qi")


@attrs.frozen(kw_only=True)
class Credentials:
    """USER_REQUEST_AUTH, a client's first frame, sent whether the server asks for a login or not.

    `uid` is 0 from a client and travels in `nat-v1` only; `expiry` is in Unix seconds, the client's opinion, and decides
    nothing. A name has at most 255 characters, a password 1024.
    """

    id: ClassVar[int] = 60001
    username: str
    password: str = attrs.field(repr=False)
    expiry: int = NO_EXPIRY
    uid: int = 0

    def payload(self, dialect: Dialect) -> bytes:
        """Return the payload, whose layout is the one that depends on the dialect."""
        username, password = self.username.encode(), self.password.encode()
        return b"".join(
            (
                _LONG.pack(self.uid) if dialect is Dialect.NAT_V1 else b"",
                _LENGTH.pack(len(username)),
                username,
                _LENGTH.pack(len(password)),
                password,
                _LONG.pack(self.expiry),
            )
        )

    @classmethod
    def from_payload(cls, payload: bytes, dialect: Dialect) -> Self:
        """Parse and check the payload."""
        fields = _Fields("USER_REQUEST_AUTH", payload)
        uid = fields.long() if dialect is Dialect.NAT_V1 else 0
        username = fields.text("username", longest=NAME_CHARACTERS)
        password = fields.text("password", longest=TEXT_CHARACTERS)
        expiry = fields.long()
        fields.finish()
        return cls(username=username, password=password, expiry=expiry, uid=uid)


@attrs.frozen
class UserInformation:
    """USER_INFORMATION: from a server, the session's number and its visit port; from a client, what a tunnel belongs to."""

    id: ClassVar[int] = 20002
    uid: int
    port: int

    def payload(self, _dialect: Dialect) -> bytes:
        """Return the 12-byte payload."""
        return _UID_AND_PORT.pack(self.uid, self.port)

    @classmethod
    def from_payload(cls, payload: bytes, _dialect: Dialect) -> Self:
        """Parse and check the payload."""
        if len(payload) != _UID_AND_PORT.size:
            raise RemoteProtocolError(
                f"USER_INFORMATION: the payload is not {_UID_AND_PORT.size} bytes long"
            )
        uid, port = _UID_AND_PORT.unpack(payload)
        if not 1 <= port <= 65535:
            raise RemoteProtocolError(f"USER_INFORMATION: {port} is not a valid port")
        return cls(uid, port)


class _Word:
    """A message that says everything by its id; the text behind it is for people, so what a peer writes there is not looked at."""

    TEXT: ClassVar[str]

    def payload(self, _dialect: Dialect) -> bytes:
        """Return the text."""
        return self.TEXT.encode()

    @classmethod
    def from_payload(cls, _payload: bytes, _dialect: Dialect) -> Self:
        """Take any payload."""
        return cls()


@attrs.frozen
class AuthSuccess(_Word):
    """USER_AUTHENTICATION_SUCCESSFULLY: the credentials were right; the queue comes next."""

    id: ClassVar[int] = 10001
    TEXT: ClassVar[str] = ""


@attrs.frozen
class AuthFail(_Word):
    """AUTH_FAIL: they were not; the server closes."""

    id: ClassVar[int] = 30005
    TEXT: ClassVar[str] = ""


@attrs.frozen
class NewConnection(_Word):
    """NEW_CONNECTION: a visitor waits for a tunnel."""

    id: ClassVar[int] = 20001
    TEXT: ClassVar[str] = "NEW_CONNECTION"


@attrs.frozen
class KeepAlive(_Word):
    """KEEP_ALIVE: the server is still there."""

    id: ClassVar[int] = 20003
    TEXT: ClassVar[str] = "ping"


@attrs.frozen
class ConnectionFull(_Word):
    """CONNECTION_IF_FULL: no place in the server's queue; it closes, and the client comes again later."""

    id: ClassVar[int] = 20004
    TEXT: ClassVar[str] = "the-connection-is-full."


class Reason(enum.IntEnum):
    """The refusals that the specification reserves; the names are its own."""

    USER_NOT_EXIST = 30001
    USER_ALREADY_EXIST = 30002
    USER_EXPIRED = 30003
    PASSWORD_INCORRET = 30004


_REASON_TEXTS: Final[Mapping[Reason, str]] = {
    Reason.USER_NOT_EXIST: "user not exist.",
    Reason.USER_ALREADY_EXIST: "user already exist!",
    Reason.USER_EXPIRED: "user not expired.",
    Reason.PASSWORD_INCORRET: "The password is incorrect.",
}


@attrs.frozen
class Refusal:
    """One of the reserved refusals, with its text, at most 1024 characters: a server may send them, ours does not."""

    reason: Reason
    text: str

    @classmethod
    def of(cls, reason: Reason) -> Self:
        """Return the refusal with the text that the specification gives it."""
        return cls(reason, _REASON_TEXTS[reason])

    @property
    def id(self) -> int:
        """The message id, which is the reason."""
        return self.reason

    def payload(self, _dialect: Dialect) -> bytes:
        """Return the text."""
        return self.text.encode()

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        """Read the frame, whose id is one of the reasons."""
        text = frame.payload.decode(errors="replace")[:TEXT_CHARACTERS]
        return cls(Reason(frame.id), text)


LegacyMessage: TypeAlias = (
    Credentials
    | UserInformation
    | AuthSuccess
    | AuthFail
    | NewConnection
    | KeepAlive
    | ConnectionFull
    | Refusal
)

_DECODERS: Final[Mapping[int, Callable[[bytes, Dialect], LegacyMessage]]] = {
    kind.id: kind.from_payload
    for kind in (
        Credentials,
        UserInformation,
        AuthSuccess,
        AuthFail,
        NewConnection,
        KeepAlive,
        ConnectionFull,
    )
}


def encode(message: LegacyMessage, dialect: Dialect) -> bytes:
    """Return the whole frame of a message in one of the dialects of `HEADERS`."""
    return encode_frame(message.id, message.payload(dialect), header=HEADERS[dialect])


def decode(frame: Frame, dialect: Dialect) -> LegacyMessage:
    """Return the message in a frame that was read with the header of `dialect`.

    Raises:
        UnknownMessageError: the id is none of these messages'.
        RemoteProtocolError: the payload is not as it must be.
    """
    if frame.id in _REASON_TEXTS:
        return Refusal.decode(frame)
    decoder = _DECODERS.get(frame.id)
    if decoder is None:
        raise UnknownMessageError(f"unknown message id {frame.id}")
    return decoder(frame.payload, dialect)


class _Fields:
    """The fields of a binary payload, taken from front to back; every error names `message`."""

    def __init__(self, message: str, payload: bytes) -> None:
        self._message = message
        self._left = payload

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._left):
            raise RemoteProtocolError(f"{self._message}: the payload is not as long as its parts")
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def long(self) -> int:
        value: int = _LONG.unpack(self._take(_LONG.size))[0]
        return value

    def text(self, what: str, *, longest: int) -> str:
        length: int = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        try:
            text = self._take(length).decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError(f"{self._message}: the {what} is not UTF-8") from None
        if len(text) > longest:
            raise RemoteProtocolError(
                f"{self._message}: the {what} has more than {longest} characters"
            )
        return text

    def finish(self) -> None:
        if self._left:
            raise RemoteProtocolError(f"{self._message}: bytes behind the last field")
