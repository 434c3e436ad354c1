"""A local service that a client makes reachable, and how people write it."""

from __future__ import annotations

import re

import attrs

from trionat.address import Address, UnixAddress, parse_port
from trionat.config.key import key
from trionat.config.values import LABEL, LOCAL, PORT, PROXY

_WITH_VISIT_PORT = re.compile(r"(?P<local>.+):(?P<visit>[0-9]+)", re.ASCII | re.DOTALL)


@attrs.frozen(kw_only=True)
class Service:
    """A local service.

    `visit_port` is the visit port that is asked for, None (or 0) leaves it to the server. `name` tells services apart
    in logs; without one it is the local address. `proxy_protocol` is the version in which the service is told where a visitor
    comes from, or `none`; None leaves it to the client's configuration. `str()` gives what `parse_service` takes.
    """

    local: Address = attrs.field(metadata=key("Local", LOCAL, "where the service listens"))
    visit_port: int | None = attrs.field(
        default=None, metadata=key("VisitPort", PORT, "the visit port that is asked for")
    )
    name: str = attrs.field(
        default="", metadata=key("Name", LABEL, "what the service is called in logs")
    )
    proxy_protocol: str | None = attrs.field(
        default=None,
        metadata=key(
            "ProxyProtocol",
            PROXY,
            "how the service is told a visitor's address",
            unset="that of Client",
        ),
    )

    def __attrs_post_init__(self) -> None:
        if self.visit_port == 0:
            object.__setattr__(self, "visit_port", None)
        if not self.name:
            object.__setattr__(self, "name", str(self.local))

    def __str__(self) -> str:
        local = str(self.local)
        if self.visit_port is not None:
            return f"{local}:{self.visit_port}"
        # A socket whose path ends like a port says in so many words that it wishes for none.
        if isinstance(self.local, UnixAddress) and _WITH_VISIT_PORT.fullmatch(local):
            return f"{local}:0"
        return local


def parse_service(text: str) -> Service:
    """Read `LOCAL` or `LOCAL:VISIT_PORT`.

    `LOCAL` is what `parse_address` takes: `8080`, `127.0.0.1:22`, `[::1]:22`, `/run/app.sock`, `unix:app.sock`. Two bare
    numbers are a local port and a visit port: `6379:60001`.

    Raises:
        ValueError: It is neither, or the local port is 0; the message says what would be right.
    """
    local, visit = text, None
    if match := _WITH_VISIT_PORT.fullmatch(text):
        head = match["local"]
        bare = head.isascii() and head.isdigit()
        has_port = ":" in head.rpartition("]")[2] or head.startswith("unix:") or "/" in head
        if bare or has_port:
            local, visit = head, parse_port(match["visit"])
    return Service(local=LOCAL.read(local), visit_port=visit)
