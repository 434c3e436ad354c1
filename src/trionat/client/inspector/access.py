"""Who may see the inspector: whoever has the URL with its token, from a page of the inspector's own, on this machine."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from starlette.requests import Request

    from trionat.address import TCPAddress

_TOKEN_BYTES: Final = 24
_SAME: Final = ("same-origin", "none")
"""What a browser says of a request from our own page, and of one that a person has typed (Fetch Metadata)."""

_READS: Final = ("GET", "HEAD")


@attrs.frozen
class Refusal:
    """Why somebody gets nothing."""

    status: int
    text: str


_HINT: Final = "open the whole URL that trionat has printed"


@attrs.frozen
class Access:
    """Decides by the address that is listened on, and a token of this run."""

    address: TCPAddress
    token: str = attrs.field(factory=lambda: secrets.token_urlsafe(_TOKEN_BYTES), repr=False)

    @property
    def url(self) -> str:
        """What to open, with the token."""
        return f"http://{self.address}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """The cookie's name. Browsers tell hosts apart, but not their ports."""
        return f"trionat-inspector-{self.address.port}"

    @property
    def cookie_value(self) -> str:
        """What a browser shows in place of the token."""
        return hashlib.sha256(f"cookie {self.token}".encode()).hexdigest()

    @property
    def hosts(self) -> frozenset[str]:
        """What `Host` may be: another name would be one that somebody has pointed at this machine (DNS rebinding)."""
        port = self.address.port
        names = {"127.0.0.1", "localhost", "[::1]", str(self.address).rpartition(":")[0]}
        return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))

    def admits_token(self, token: str) -> bool:
        """Whether that is the token."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def refuse(self, request: Request) -> Refusal | None:
        """Return why a request is refused whoever it is from; None: it may ask."""
        host = request.headers.get("host", "").lower()
        if host not in self.hosts:
            return Refusal(
                421, f"this is {self.address}, and no other name of it is taken; {_HINT}"
            )
        if request.headers.get("sec-fetch-site", "none") not in _SAME:
            is_navigation = request.headers.get("sec-fetch-mode") == "navigate"
            if not (is_navigation and request.method == "GET" and request.url.path == "/"):
                return Refusal(403, "this request comes from another site's page")
        if request.method not in _READS:
            origin = request.headers.get("origin")
            if origin is not None and origin.lower() != f"http://{host}":
                return Refusal(403, "this request comes from another site's page")
        return None

    def knows(self, request: Request) -> bool:
        """Whether a request has the cookie, or the token as `Authorization: Bearer`."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.admits_token(token.strip()):
            return True
        shown = _cookie(request.headers.get("cookie", ""), self.cookie)
        return hmac.compare_digest(shown.encode(), self.cookie_value.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
