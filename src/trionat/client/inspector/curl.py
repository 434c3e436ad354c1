"""A request as a command for curl, which a POSIX shell takes as it is meant, whatever a visitor has put into it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trionat.client.inspector.http_view import Message

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_PLAIN: Final = re.compile(r"[ -~]*", re.ASCII)
_LEFT_OUT: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""What curl says by itself, or what belongs to the connection."""


def quote(text: str) -> str:
    """Return a word of a command for text whose characters are bytes (Latin-1). What does not print is written out: a terminal must not obey it."""
    if _PLAIN.fullmatch(text):
        return "'" + text.replace("'", "'\\''") + "'"
    written = "".join(
        each if " " <= each <= "~" and each not in "\\'" else f"\\0{ord(each):03o}" for each in text
    )
    return f"\"$(printf '%b' '{written}')\""


def _quote_body(text: str) -> str | None:
    """Return a word for the text of a body; None: there is something in it that a shell or a terminal would change."""
    if all(each.isprintable() or each in "\n\t" for each in text):
        return "'" + text.replace("'", "'\\''") + "'"
    return None


def as_curl(request: Message, body: bytes, *, url: str) -> str:
    """Return the command. `body` is as it came, but for chunks."""
    method = request.first[0]
    words = ["curl", "--globoff", "--path-as-is"]
    if method == "HEAD":
        words.append("--head")
    elif method != ("POST" if body else "GET"):
        words += ["--request", quote(method)]
    for name, value in request.fields:
        if not _TOKEN.fullmatch(name) or name.lower() in _LEFT_OUT or "\0" in value:
            continue
        words += ["--header", quote(f"{name}: {value}" if value else f"{name};")]
    if request.values("accept-encoding"):
        words.append("--compressed")
    if body and not request.values("content-type"):
        words += ["--header", "'Content-Type:'"]  # else curl says that it is a form
    before = ""
    if body:
        try:
            text = _quote_body(body.decode())
        except UnicodeDecodeError:
            text = None
        if text is not None:
            words += ["--data-raw", text]
        else:
            before = f"printf %s {base64.b64encode(body).decode()} | base64 -d | "
            words += ["--data-binary", "@-"]
    words.append(quote(url))
    return before + " ".join(words)
