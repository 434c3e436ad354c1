"""Who may see the inspector: whoever has the token of its URL, from a page of the inspector's own, on this machine.

There is no cookie: browsers send those to all ports of a host, and so to every other web service of this machine. The token is in the fragment of the URL, which no browser
sends; the page keeps it for its own port, and says it in a header that is sent nowhere else.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.address import TCPAddress

_TOKEN_BYTES: Final = 16
_SAME: Final = ("same-origin", "none")
"""What a browser says of a request from our own page, and of one that a person has typed (Fetch Metadata)."""

_READS: Final = ("GET", "HEAD")
_OPEN: Final = re.compile(r"/|/pages/.*", re.DOTALL)
"""What can be had without a token: the files of the pages, which are the same for everybody."""


@attrs.frozen
class Refusal:
    """Why somebody gets nothing. `code` is a stable word."""

    status: int
    code: str
    text: str


_HINT: Final = "open the whole URL that trionat has printed"


def _new_token() -> str:
    # Hexadecimal: where a URL ends in a dash, some terminals leave that out of what a click opens.
    return secrets.token_hex(_TOKEN_BYTES)


@attrs.frozen
class Access:
    """Decides by the address that is listened on, and a token of this run."""

    address: TCPAddress
    token: str = attrs.field(factory=_new_token, repr=False)

    @property
    def url(self) -> str:
        """What to open, with the token."""
        return f"http://{self.address}/#token={self.token}"

    @property
    def hosts(self) -> frozenset[str]:
        """What `Host` may be: another name would be one that somebody has pointed at this machine (DNS rebinding)."""
        port = self.address.port
        names = {"127.0.0.1", "localhost", "[::1]", str(self.address).rpartition(":")[0]}
        return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))

    def knows(self, request: Request) -> bool:
        """Whether a request has the token, as `Authorization: Bearer`."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode(), self.token.encode()
        )

    def refuse(self, request: Request) -> Refusal | None:
        """Return why a request is refused; None: it may ask."""
        host, path = request.headers.get("host", "").lower(), request.scope["path"]
        if host not in self.hosts:
            return Refusal(
                421,
                "misdirected",
                f"this is {self.address}, and no other name of it is taken; {_HINT}",
            )
        if request.headers.get("sec-fetch-site", "none") not in _SAME:
            is_navigation = request.headers.get("sec-fetch-mode") == "navigate"
            if not (is_navigation and request.method == "GET" and path == "/"):
                return _from_elsewhere()
        if request.method not in _READS:
            origin = request.headers.get("origin")
            if origin is not None and origin.lower() != f"http://{host}":
                return _from_elsewhere()
        if not _OPEN.fullmatch(path) and not self.knows(request):
            return Refusal(401, "unauthorized", _HINT)
        return None


def _from_elsewhere() -> Refusal:
    return Refusal(403, "forbidden", "this request comes from another site's page")
