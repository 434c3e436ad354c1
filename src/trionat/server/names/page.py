"""What a visitor sees where no service answers: pages of ours, or the operator's."""

from __future__ import annotations

import html
import json
import re
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StartupError
from trionat.hostnames import RESERVED_LABELS, label_below
from trionat.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.protocol.http.head import RequestHead

log = get_logger(__name__)

_TEXTS: Final = {
    400: (
        "This request cannot be understood",
        "A program has sent something that is no request. A browser that is up to date does not do that.",
    ),
    401: ("Please log in", "This page asks for a name and a password."),
    403: ("You may not see this", "Whoever runs this service has decided who may visit it."),
    404: ("There is nothing here", "Nobody has this name at the moment."),
    405: ("This cannot be done here", "The method of this request is not for a web site."),
    408: ("That took too long", "The request did not arrive in time."),
    421: ("The wrong door", "This connection was made for another name. A new one leads there."),
    429: (
        "Too much at once",
        "There were more requests from your address than are let in. Try again in a moment.",
    ),
    431: ("Too much to read", "The head of the request is too large."),
    501: ("This is not known here", "The method of this request is not one that we know."),
    502: ("The service does not answer", "The tunnel is there, but the service behind it is down."),
    503: (
        "Nobody is at home",
        "The machine that this name belongs to is away. Try again in a moment.",
    ),
    505: ("Another language", "Only HTTP/1 and HTTP/2 are spoken here."),
}
"""A title and a sentence for the visitor, by status."""

_OWNER: Final = {
    502: "If it is yours: look whether the service listens where the client says.",
    503: "If it is yours: look whether trionat connect runs, and what it says.",
}
"""What its owner can do."""

_START: Final = "If it is yours: start trionat connect with http:8080@{label}."
"""The same, where nobody has a name below the domain."""

_PAGE: Final = re.compile(r"(?:[45][0-9]{2}|error)\.html", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9.:-]{1,253}", re.ASCII)

_STYLE: Final = (
    ":root{color-scheme:light dark;--back:#f6f7f9;--text:#1d2430;--soft:#5b6676;--line:#c9d1db;--mark:#2f6fde}"
    "@media(prefers-color-scheme:dark){:root{--back:#14181f;--text:#e7ebf1;--soft:#9aa6b6;--line:#394351;--mark:#7aa7ff}}"
    "*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--back);"
    "color:var(--text);font:1.05rem/1.5 system-ui,sans-serif}main{width:min(34rem,100%);padding:2rem 1.5rem}"
    "svg{width:11rem;max-width:60%;display:block;margin-bottom:1.2rem}h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0 .6rem}"
    "p{margin:.4rem 0}.status{color:var(--mark);font-weight:600;letter-spacing:.06em}.name{overflow-wrap:anywhere;font-weight:600}"
    ".owner{color:var(--soft);font-size:.9rem;border-top:1px solid var(--line);margin-top:1.6rem;padding-top:.8rem}"
)
_DRAWING: Final = (
    '<svg viewBox="0 0 176 80" fill="none" stroke="currentColor" stroke-width="4" stroke-linecap="round" aria-hidden="true">'
    '<path d="M8 72h160" stroke="var(--line)"/><path d="M28 72V48a32 32 0 0 1 64 0v24"/><path d="M44 72V50a16 16 0 0 1 32 0v22" stroke="var(--soft)"/>'
    '<path d="M104 60h10m12 0h10m12 0h10" stroke="var(--mark)"/></svg>'
)


_MOST_BYTES: Final = 256 * 1024
"""Of a page of the operator's."""

_WATCH_INTERVAL: Final = 5.0
"""Seconds between two looks at the operator's folder."""

_PLACE: Final = re.compile(r"\{(status|title|detail|name)\}")


@attrs.define(eq=False)
class Pages:
    """See the module. `folder` has the operator's: `404.html` and the like, and `error.html` for all others; it is read by `load`, and again by `watch`, which has to run. `domain` is that below which there are names."""

    folder: Path | None = None
    domain: str = ""
    _own: dict[str, str] = attrs.field(init=False, factory=lambda: {})
    _told: set[str] = attrs.field(init=False, factory=lambda: set())

    def load(self) -> None:
        """Read the operator's pages. Blocks.

        Raises:
            StartupError: there is no such folder, or it cannot be read.
        """
        if self.folder is None:
            return
        try:
            self._own = self._read(self.folder)
        except OSError as error:
            raise StartupError(
                f"{self.folder}: cannot read the pages: {error.strerror or error} (PagesDir)"
            ) from error

    def become(self, other: Pages) -> None:
        """Take over the folder of others, and what was read there."""
        self.folder, self._own = other.folder, other._own
        self._told.clear()

    async def watch(self) -> None:
        """Look for changes until cancelled; what cannot be read leaves the pages as they are."""
        while True:
            await trio.sleep(_WATCH_INTERVAL)
            if (folder := self.folder) is None:
                continue
            try:
                own = await trio.to_thread.run_sync(self._read, folder, abandon_on_cancel=True)
            except OSError as error:
                self._tell(folder.name, error.strerror or str(error))
            else:
                if folder == self.folder:  # still
                    self._own = own

    def _read(self, folder: Path) -> dict[str, str]:
        pages: dict[str, str] = {}
        for file in folder.iterdir():
            if not _PAGE.fullmatch(file.name):
                continue
            try:
                if not file.is_file():  # a pipe would be waited for
                    raise ValueError("it is no file")
                with file.open("rb") as opened:
                    content = opened.read(_MOST_BYTES + 1)
                if len(content) > _MOST_BYTES:
                    raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
                pages[file.stem] = content.decode()
                self._told.discard(file.name)
            except (OSError, ValueError) as error:
                self._tell(file.name, str(error))
        return pages

    def _tell(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.warning("a page of yours cannot be used", page=name, reason=reason)

    def answer(
        self,
        status: int,
        request: RequestHead | None,
        *,
        name: str = "",
        retry_after: int | None = None,
        fields: tuple[tuple[str, str], ...] = (),
        title: str = "",
        text: str = "",
        owner: str = "",
    ) -> bytes:
        """Return a whole answer, the last one on its connection.

        Args:
            status: One of HTTP's.
            request: What is answered; None where it could not be read. It says whether HTML, JSON or a line of text is wanted, and whether there is a body.
            name: The name that was asked for; shown where it is one.
            retry_after: Seconds after which it is worth trying again.
            fields: More fields of the head, of ours.
            title: Words in the place of the usual ones.
            text: The same, of the sentence below.
            owner: The same, of what its owner can do.
        """
        usual, sentence = _TEXTS.get(status, (HTTPStatus(status).phrase, ""))
        title = title or usual
        name = name if _NAME.fullmatch(name) else ""
        sentence, owner = text or sentence, owner or _OWNER.get(status, "")
        if status == HTTPStatus.NOT_FOUND and (label := self._free_label(name)):
            owner = owner or _START.format(label=label)
        kind = _wanted(request)
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        if kind == "json":
            media = "application/problem+json"
            problem = {"type": "about:blank", "status": status, "title": title, "detail": sentence}
            body = json.dumps({**problem, "name": name} if name else problem) + "\n"
        elif kind == "html":
            media = "text/html; charset=utf-8"
            own = self._own.get(str(status)) or self._own.get("error")
            if own is None:
                body = _html(status, title, sentence, owner, name)
            else:
                policy = "frame-ancestors 'none'"  # what else it may do is the operator's to say
                values = {"status": str(status), "title": title, "detail": sentence, "name": name}
                body = _PLACE.sub(lambda found: html.escape(values[found[1]]), own)
        else:
            media = "text/plain; charset=utf-8"
            body = f"{status} {title}: {name + ': ' if name else ''}{sentence}\n{owner + chr(10) if owner else ''}"
        head = [
            ("Content-Type", media),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            *((("Retry-After", str(retry_after)),) if retry_after is not None else ()),
            *fields,
        ]
        return _encode(status, head, body.encode(), request)

    def _free_label(self, name: str) -> str | None:
        """Return the label of a name that anybody may have: the domain itself, an address or a name of elsewhere is none."""
        label = label_below(name, self.domain) if "." in name else None
        return None if label in RESERVED_LABELS else label

    def redirect(self, request: RequestHead, location: str) -> bytes:
        """Return an answer that sends the visitor on for good, with the same method; `location` is a URL in ASCII."""
        return _encode(
            HTTPStatus.PERMANENT_REDIRECT,
            [("Location", location), ("Cache-Control", "max-age=60")],
            b"",
            request,
        )


def _encode(
    status: int, head: list[tuple[str, str]], body: bytes, request: RequestHead | None
) -> bytes:
    lines = [
        f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        *(f"{field}: {value}" for field, value in head),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    encoded = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return encoded if request is not None and request.method == b"HEAD" else encoded + body


def _wanted(request: RequestHead | None) -> str:
    """Return what a visitor wants to read: a browser HTML, a program that says so JSON, everybody else a line of text."""
    if request is None:
        return "text"
    accept = b",".join(request.values(b"accept")).lower()
    if b"text/html" in accept:
        return "html"
    return "json" if b"json" in accept else "text"


def _html(status: int, title: str, sentence: str, owner: str, name: str) -> str:
    named = f'<p class="name">{html.escape(name)}</p>' if name else ""
    told = f'<p class="owner">{html.escape(owner)}</p>' if owner else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="robots" content="noindex"><title>{status} {html.escape(title)}</title><style>{_STYLE}</style>'
        f'<main>{_DRAWING}<p class="status">{status}</p><h1>{html.escape(title)}</h1>{named}<p>{html.escape(sentence)}</p>{told}</main></html>\n'
    )
