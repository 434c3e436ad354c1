"""A local service that a client makes reachable, and how people write it."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import attrs

from trionat.address import Address, UnixAddress, parse_port
from trionat.config.key import key
from trionat.config.values import (
    BASIC_AUTH,
    BOOLEAN,
    LABEL,
    LOCAL,
    NAME,
    NAME_OR_TRUE,
    NETWORKS,
    PORT,
    PROXY,
    RATE,
    wrong_with_logins,
)
from trionat.hostnames import parse_name
from trionat.text import quoted

if TYPE_CHECKING:
    from trionat.networks import Network

_WITH_VISIT_PORT = re.compile(r"(?P<local>.+):(?P<visit>[0-9]+)", re.ASCII | re.DOTALL)
_BY_NAME = re.compile(r"(?P<kind>https?|tls):(?P<rest>.+)", re.ASCII | re.DOTALL)

ANY_NAME = ""
"""What `http` is where the server makes the name."""


@attrs.frozen(kw_only=True)
class Service:
    """A local service.

    `visit_port` is the visit port that is asked for, None (or 0) leaves it to the server. `name` tells services apart
    in logs; without one it is the local address. `proxy_protocol` is the version in which the service is told where a visitor
    comes from, or `none`; None leaves it to the client's configuration. `str()` gives what `parse_service` takes.

    It is published by name with `http` (a label, a whole name, or `ANY_NAME`) or `tls` (a label, or a whole name), or with `https` at a visit port where the server speaks
    TLS for it. Who may visit such a service is said by `basic_auth`, `allow`, `deny`, `rate` and `approve`; None leaves it to the client's configuration.
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
    http: str | None = attrs.field(
        default=None,
        metadata=key(
            "Http",
            NAME_OR_TRUE,
            "the name at which a web service is; true: one that the server makes",
        ),
    )
    tls: str | None = attrs.field(
        default=None,
        metadata=key("Tls", NAME, "the name at which a service is that speaks TLS itself"),
    )
    https: bool = attrs.field(
        default=False,
        metadata=key("Https", BOOLEAN, "whether the server speaks TLS for it at its visit port"),
    )
    http2: bool = attrs.field(
        default=False,
        metadata=key(
            "Http2", BOOLEAN, "whether the web service speaks HTTP/2 without TLS, as gRPC does"
        ),
    )
    basic_auth: tuple[str, ...] | None = attrs.field(
        default=None,
        repr=False,
        metadata=key(
            "BasicAuth",
            BASIC_AUTH,
            "users and passwords, of which visitors need one",
            many=True,
            unset="those of Client",
        ),
    )
    allow: tuple[Network, ...] | None = attrs.field(
        default=None,
        metadata=key(
            "Allow", NETWORKS, "who alone may visit it by name", many=True, unset="those of Client"
        ),
    )
    deny: tuple[Network, ...] | None = attrs.field(
        default=None,
        metadata=key(
            "Deny", NETWORKS, "who may not visit it by name", many=True, unset="those of Client"
        ),
    )
    rate: float | None = attrs.field(
        default=None,
        metadata=key("Rate", RATE, "requests a second of one visitor", unset="that of Client"),
    )
    approve: bool | None = attrs.field(
        default=None,
        metadata=key(
            "Approve",
            BOOLEAN,
            "whether you are asked for each visitor's address",
            unset="that of Client",
        ),
    )

    def __attrs_post_init__(self) -> None:
        if self.visit_port == 0:
            object.__setattr__(self, "visit_port", None)
        if not self.name:
            object.__setattr__(self, "name", str(self.local))

    def __str__(self) -> str:
        local, is_socket = str(self.local), isinstance(self.local, UnixAddress)
        if is_socket and (local.startswith("//") or _BY_NAME.fullmatch(local)):
            local = f"unix:{local}"  # else it would be a URL, or a kind
        if self.http is not None:
            # A socket with an @ in its path says in so many words that no name is in there.
            return f"http:{local}@{self.http}" if self.http or "@" in local else f"http:{local}"
        if self.tls is not None:
            return f"tls:{local}@{self.tls}"
        prefix = "https:" if self.https else ""
        if self.visit_port is not None:
            return f"{prefix}{local}:{self.visit_port}"
        # The same with a path that ends like a visit port, or has before that what looks like a name.
        looks_like_more = _WITH_VISIT_PORT.fullmatch(local) or (self.https and "@" in local)
        if is_socket and looks_like_more:
            return f"{prefix}{local}:0"
        return f"{prefix}{local}"

    @property
    def hostname(self) -> str | None:
        """The name that it asks for; None where it asks for none, or has none."""
        return self.http or self.tls

    @property
    def by_name(self) -> bool:
        """Whether requests or ClientHellos are looked at for it, so that names and who may visit mean something."""
        return self.http is not None or self.tls is not None or self.https

    def wrong(self) -> str | None:
        """Return what does not go together, None where all does."""
        kinds = [
            kind
            for kind, given in (
                ("Http", self.http is not None),
                ("Tls", self.tls is not None),
                ("Https", self.https),
            )
            if given
        ]
        if not kinds:
            for name, given in (
                ("BasicAuth", self.basic_auth),
                ("Allow", self.allow),
                ("Deny", self.deny),
                ("Rate", self.rate),
                ("Approve", self.approve),
            ):
                if given:
                    return f"{name} is for services with names, and would protect nothing here: add Http, Tls or Https"
        if len(kinds) > 1:
            return f"{' and '.join(kinds)} are different ways to publish it: choose one"
        if self.visit_port is not None and kinds and not self.https:
            return f"{kinds[0]} is for a name, and VisitPort for a port: choose one, or write https:LOCAL:VISIT_PORT"
        if self.http2 and self.http is None:
            return "Http2 is for a service with Http"
        if self.http2 and self.basic_auth:
            return "BasicAuth is for requests, which nobody sees in HTTP/2: choose one of BasicAuth and Http2"
        if self.tls is not None and self.basic_auth:
            return "BasicAuth is for requests, which nobody sees behind Tls: leave it out, or publish it with Http"
        if (reason := wrong_with_logins(self.basic_auth or ())) is not None:
            return f"BasicAuth: {reason}"
        return None


def parse_service(text: str) -> Service:
    """Read `LOCAL`, `LOCAL:VISIT_PORT`, `http:LOCAL`, `http:LOCAL@NAME`, `tls:LOCAL@NAME` or `https:LOCAL:VISIT_PORT`.

    `LOCAL` is what `parse_address` takes: `8080`, `127.0.0.1:22`, `[::1]:22`, `/run/app.sock`, `unix:app.sock`. Two bare
    numbers are a local port and a visit port: `6379:60001`. A socket whose path has an `@` in it, and that has no name, has another one at its end: `http:/run/a@b.sock@`.

    Raises:
        ValueError: It is none of them, or the local port is 0; the message says what would be right.
    """
    if (found := _BY_NAME.fullmatch(text)) is None:
        try:
            return _parse_numbered(text)
        except ValueError:
            if (meant := _meant(text)) is not None:
                raise ValueError(meant) from None
            raise
    kind, rest = found["kind"], found["rest"]
    if rest.startswith("//"):
        raise ValueError(f"{quoted(text)} is a URL: write the service alone, as in {kind}:8080")
    if kind == "https":
        # In the path of a socket there may be an @, and a visit port stands behind it then.
        if "@" in rest and not (_is_path(rest) and _WITH_VISIT_PORT.fullmatch(rest)):
            raise ValueError(
                f"{quoted(text)}: https is for a visit port, as in https:8080:60001; a name has http, as in http:8080@shop, or tls, as in tls:8443@db.example.org, where the service speaks TLS itself"
            )
        return attrs.evolve(_parse_numbered(rest), https=True)
    local, at, name = rest.rpartition("@")
    if not at:
        local, name = rest, ""
    _check_without_visit_port(text, kind, local)
    if kind == "tls":
        if not name:
            raise ValueError(
                f"{quoted(text)}: a service that speaks TLS itself is found by the name in its certificate: write tls:8443@db.example.org"
            )
        return Service(local=LOCAL.read(local), tls=parse_name(name))
    if at and not name and "@" not in local:
        raise ValueError(
            f"{quoted(text)} has no name behind the @: write http:8080@shop, or http:8080 for a name that the server makes"
        )
    return Service(local=LOCAL.read(local), http=parse_name(name) if name else ANY_NAME)


def _meant(text: str) -> str | None:
    """Return what is wrong with a text that has a name, but not its kind; None where it is something else.

    Only what looks like a port is repeated: a text like `ann:secret@host` has a password in it.
    """
    local, at, name = text.rpartition("@")
    kind, colon, port = local.rpartition(":")
    if not at or not _is_name(name) or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII):
        return None
    if not colon:
        return f"{quoted(text)} does not say what it is: did you mean http:{text}?"
    if nearest := difflib.get_close_matches(kind.lower(), ("http", "https", "tls"), n=1):
        known = "tls" if nearest[0] == "tls" else "http"
        return f"{quoted(kind)} is no kind of service: did you mean {known}:{port}@{name}?"
    return "a service with a name begins with its kind, as in http:8080@shop or http:192.168.1.9:80@shop"


def _is_name(text: str) -> bool:
    try:
        parse_name(text)
    except ValueError:
        return False
    return True


def _check_without_visit_port(text: str, kind: str, local: str) -> None:
    """Tell who asks for a name and a visit port what to write for that.

    Raises:
        ValueError: he does.
    """
    alone, visit = _split(local)
    if visit is None or _is_path(local):
        return
    LOCAL.read(alone)  # else something else is wrong
    at_a_port = "https:8080:60001"
    if kind == "tls":
        at_a_port = "8443:60001, as the service speaks TLS itself"
    raise ValueError(
        f"{quoted(text)}: {kind} is for a name, which has no visit port: for a visit port write {at_a_port}"
    )


def _is_path(text: str) -> bool:
    return text.startswith("unix:") or "/" in text


def _split(text: str) -> tuple[str, str | None]:
    """Return the local service and the visit port of a text, which need not have one."""
    if match := _WITH_VISIT_PORT.fullmatch(text):
        head = match["local"]
        bare = head.isascii() and head.isdigit()
        if bare or _is_path(head) or ":" in head.rpartition("]")[2]:
            return head, match["visit"]
    return text, None


def _parse_numbered(text: str) -> Service:
    local, visit = _split(text)
    return Service(local=LOCAL.read(local), visit_port=None if visit is None else parse_port(visit))
