"""HTTP/1 as it stands in recorded bytes: requests, their answers, and bodies as they were meant.

Read only when somebody looks, and leniently: what is shown is what was said, well-formed or not. Whatever the bytes are, nothing here raises, and what it makes of them is
bounded: heads, messages, and what compressed bodies become.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

import attrs

MOST_EXCHANGES: Final = 1000
MOST_HEAD_BYTES: Final = 64 * 1024
MOST_FIELDS: Final = 500
MOST_INTERIM: Final = 20
"""Answers of 1xx before the one that counts."""

MOST_BODY_BYTES: Final = 4 * 1024 * 1024
"""What a body may become when it is decompressed."""

_MOST_CODINGS: Final = 3
_MOST_MEMBERS: Final = 1000
"""Parts of a gzip file, each compressed by itself."""

_MOST_CHUNK_LINE: Final = 4096
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE: Final = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) (\S{1,65536}) HTTP/(1\.[01])", re.ASCII
)
_STATUS_LINE: Final = re.compile(r"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: (.*))?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\n]*)?\r?$")

SECRET_FIELDS: Final = frozenset(
    {"authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"}
)
"""Fields whose values are hidden until somebody wants to see them."""

_SECRET: Final = re.compile(
    rb"(?im)^(?:%b)[ \t]*:[ \t]*([^\r\n]+(?:\r?\n[ \t][^\r\n]*)*)"
    % b"|".join(f.encode() for f in sorted(SECRET_FIELDS))
)
_MOST_SECRETS: Final = 2000


@attrs.frozen(kw_only=True)
class Message:
    """A request or an answer, by its place in the bytes of its direction: the head begins at `start`, the body at `body`, and `end` is behind it.

    `first` has the three parts of the first line. `is_whole` says that all of it is there. `framing` is how the end of the body is told: `none`, `length`, `chunked` or `close`.
    """

    start: int
    body: int
    end: int
    first: tuple[str, str, str]
    fields: tuple[tuple[str, str], ...]
    framing: str
    is_whole: bool

    def values(self, name: str) -> list[str]:
        """Return the values of a field, whose name is given in small letters."""
        return [value for field, value in self.fields if field.lower() == name]

    def words(self, name: str) -> list[str]:
        """Return the words of a field that is a list, in small letters."""
        listed = ",".join(self.values(name)).lower().split(",")
        return [word for each in listed if (word := each.strip())]


@attrs.frozen(kw_only=True)
class Exchange:
    """A request, the answers of 1xx before its answer, and that answer, if there is one by now."""

    request: Message
    interim: tuple[Message, ...] = ()
    answer: Message | None = None

    @property
    def is_switched(self) -> bool:
        """Whether the connection is something else from here on."""
        if self.answer is None:
            return False
        method, status = self.request.first[0], self.answer.first[1]
        return status == "101" or (method == "CONNECT" and status.startswith("2"))

    @property
    def is_websocket(self) -> bool:
        """Whether that is WebSocket."""
        return (
            self.is_switched
            and self.answer is not None
            and "websocket" in self.answer.words("upgrade")
        )


@attrs.frozen(kw_only=True)
class Conversation:
    """What one connection has carried. `rest` says why the reading stops before the end of what is there; empty where it does not."""

    exchanges: tuple[Exchange, ...]
    rest: str = ""


def read_conversation(
    received: bytes, sent: bytes, *, sent_ended: bool = False, is_cut: bool = False
) -> Conversation:
    """Read what a visitor has sent, and what it was answered. `sent_ended`: the service says no more; `is_cut`: not all of what it said is there."""
    exchanges: list[Exchange] = []
    asked, answered = 0, 0
    while len(exchanges) < MOST_EXCHANGES:
        request = _read_message(received, asked, _REQUEST_LINE, None)
        if request is None:
            left = received[asked:].lstrip(b"\r\n")
            return Conversation(exchanges=tuple(exchanges), rest="no HTTP" if left else "")
        interim: list[Message] = []
        answer = _read_message(sent, answered, _STATUS_LINE, request.first[0])
        while (
            answer is not None
            and answer.first[1][0] == "1"
            and answer.first[1] != "101"
            and len(interim) < MOST_INTERIM
        ):
            interim.append(answer)
            answer = _read_message(sent, answer.end, _STATUS_LINE, request.first[0])
        if answer is not None and answer.framing == "close":
            answer = attrs.evolve(answer, is_whole=sent_ended and not is_cut)
        exchange = Exchange(request=request, interim=tuple(interim), answer=answer)
        exchanges.append(exchange)
        if exchange.is_switched:
            rest = "WebSocket" if exchange.is_websocket else "the connection is no HTTP any more"
            return Conversation(exchanges=tuple(exchanges), rest=rest)
        if not request.is_whole:
            return Conversation(exchanges=tuple(exchanges))
        asked = request.end
        # Without an answer: requests that are still to be answered follow each other.
        answered = len(sent) if answer is None else answer.end
    return Conversation(exchanges=tuple(exchanges), rest=f"more than {MOST_EXCHANGES} requests")


def _read_message(
    data: bytes, at: int, first_line: re.Pattern[str], method: str | None
) -> Message | None:
    """Read a message; `method` is what an answer answers, and None for a request. None: there is none, or its head is not there as a whole."""
    while data.startswith((b"\r\n", b"\n"), at):
        at = data.index(b"\n", at) + 1
    found = _HEAD_END.search(data, at, at + MOST_HEAD_BYTES)
    if found is None:
        return None
    lines = data[at : found.start()].decode("latin-1").split("\n")
    line = first_line.fullmatch(lines[0].removesuffix("\r"))
    if line is None:
        return None
    fields = _read_fields(lines[1 : MOST_FIELDS + 1])
    message = Message(
        start=at,
        body=found.end(),
        end=found.end(),
        first=(line[1], line[2], line[3] or ""),
        fields=fields,
        framing="none",
        is_whole=True,
    )
    if method is not None:
        status = line[2]
        if method == "HEAD" or status[0] == "1" or status in ("204", "304"):
            return message
        if method == "CONNECT" and status[0] == "2":
            return message
    if "chunked" in message.words("transfer-encoding"):
        end, is_whole = _chunks_end(data, message.body)
        return attrs.evolve(message, end=end, framing="chunked", is_whole=is_whole)
    lengths = message.values("content-length")
    if lengths and _NUMBER.fullmatch(lengths[0]):
        end = message.body + int(lengths[0])
        is_whole = end <= len(data)
        return attrs.evolve(message, end=min(end, len(data)), framing="length", is_whole=is_whole)
    if method is not None:
        return attrs.evolve(message, end=len(data), framing="close", is_whole=False)
    return message


def _read_fields(lines: list[str]) -> tuple[tuple[str, str], ...]:
    """Return names and values; a line that begins with a space goes on with the value before (RFC 9112 5.2)."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith((" ", "\t")) and found:
            name, value = found[-1]
            found[-1] = (name, " ".join((value, line.strip(" \t\r"))))
        else:
            found.append(_split_field(line))
    return tuple(found)


def is_secret(name: str) -> bool:
    """Tell whether the value of a field is hidden until somebody wants to see it, however its name is written."""
    return name.strip().lower() in SECRET_FIELDS


def _split_field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    return (name, value.strip(" \t\r")) if colon else ("", line.strip(" \t\r"))


def _chunks_end(data: bytes, at: int) -> tuple[int, bool]:
    """Return where a body in chunks ends, and whether it does; what is no chunk counts as its end."""
    while True:
        line = data.find(b"\n", at, at + _MOST_CHUNK_LINE)
        if line < 0:
            return len(data), False
        size = _CHUNK_SIZE.match(data[at:line])
        if size is None:
            return at, False
        count = int(size[1], 16)
        at = line + 1
        if not count:
            break
        at += count
        if at >= len(data):
            return len(data), False
        if data.startswith(b"\r\n", at):
            at += 2
        elif data.startswith(b"\n", at):
            at += 1
    while (line := data.find(b"\n", at, at + _MOST_CHUNK_LINE)) >= 0:  # trailers
        is_empty = data[at:line] in (b"", b"\r")
        at = line + 1
        if is_empty:
            return at, True
    return len(data), False


# -- bodies --------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Body:
    """What a body says. `notes` tell what was not done with it."""

    data: bytes
    notes: tuple[str, ...] = ()


def raw_body(data: bytes, message: Message) -> bytes:
    """Return a body as it came, but for its chunks."""
    body = data[message.body : message.end]
    return _join_chunks(body) if message.framing == "chunked" else body


def read_body(data: bytes, message: Message) -> Body:
    """Take a body out of its chunks, and decompress it."""
    body, notes = raw_body(data, message), list[str]()
    if not message.is_whole:
        notes.append("not all of it is here")
    codings = [coding for coding in message.words("content-encoding") if coding != "identity"]
    if len(codings) > _MOST_CODINGS:
        return Body(data=body, notes=(*notes, f"{len(codings)} codings, which are left alone"))
    for coding in reversed(codings):
        if coding in ("gzip", "x-gzip"):
            body, note = _inflate(body, (zlib.MAX_WBITS | 16,))
        elif (
            coding == "deflate"
        ):  # with a head, and as some servers have it, without (RFC 9110 8.4.1.2)
            body, note = _inflate(body, (zlib.MAX_WBITS, -zlib.MAX_WBITS))
        else:
            return Body(data=body, notes=(*notes, f"compressed ({coding}), and left alone"))
        if note:
            notes.append(note)
    return Body(data=body, notes=tuple(notes))


def _join_chunks(body: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while (line := body.find(b"\n", at, at + _MOST_CHUNK_LINE)) >= 0:
        size = _CHUNK_SIZE.match(body[at:line])
        if size is None or not (count := int(size[1], 16)):
            break
        pieces.append(body[line + 1 : line + 1 + count])
        at = line + 1 + count
        at += 2 if body.startswith(b"\r\n", at) else 1
    return b"".join(pieces)


def _inflate(body: bytes, windows: tuple[int, ...]) -> tuple[bytes, str]:
    """Decompress at most `MOST_BODY_BYTES`; return also what there is to say about it. What cannot be decompressed stays as it is."""
    for window in windows:
        pieces: list[bytes] = []
        room, rest = MOST_BODY_BYTES, body
        try:
            for _ in range(_MOST_MEMBERS):
                engine = zlib.decompressobj(window)
                piece = engine.decompress(rest, room)
                pieces.append(piece)
                room -= len(piece)
                if room <= 0:
                    return b"".join(
                        pieces
                    ), f"only the first {MOST_BODY_BYTES // 2**20} MiB are shown"
                rest = engine.unused_data
                if not engine.eof or not rest or window != zlib.MAX_WBITS | 16:
                    break
        except zlib.error:
            if any(pieces):
                return b"".join(pieces), "damaged behind what is shown"
            continue
        return b"".join(pieces), ""
    return body, "cannot be decompressed, and is shown as it came"


_CHARSETS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
    "utf-16": "utf-16",
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5",
    "shift_jis": "shift_jis",
    "euc-jp": "euc_jp",
    "euc-kr": "euc_kr",
}
_CHARSET: Final = re.compile(r"charset=\"?([A-Za-z0-9_-]{1,40})", re.ASCII)
_NO_TEXT: Final = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def charset_of(message: Message) -> str:
    """Return Python's name of the encoding in which a body is, where it is a text: UTF-8 unless the message names another one that is known."""
    found = _CHARSET.search(",".join(message.values("content-type")).lower())
    return _CHARSETS.get(found[1], "utf-8") if found else "utf-8"


def read_text(body: bytes, message: Message) -> str | None:
    """Return a body as text; None: it is none."""
    charset = charset_of(message)
    try:
        text = body.decode(charset)
    except UnicodeDecodeError as error:
        # A character at the end may be cut off.
        if charset != "utf-8" or error.start < len(body) - 3:
            return None
        text = body[: error.start].decode()
    except UnicodeError:
        return None
    return None if _NO_TEXT.search(text) else text


def find_secrets(data: bytes) -> list[tuple[int, int]]:
    """Return where the values of fields with secrets are, in whatever stands in these bytes."""
    found: list[tuple[int, int]] = []
    for each in _SECRET.finditer(data):
        found.append(each.span(1))
        if len(found) == _MOST_SECRETS:
            break
    return found
