"""The head of a request: checked so that no two readers can take it for different requests, and written anew for the service."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import attrs

from trionat.protocol.http.fields import (
    FIELD,
    FRAMING,
    HOP_BY_HOP,
    MOST_FIELDS,
    HttpError,
    check_head,
    find_framing,
    parse_options,
    take_out,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST_LINE: Final = re.compile(rb"([A-Z-]{1,32}) ([!\"$-~]+) HTTP/1\.([01])")
_ANY_VERSION: Final = re.compile(rb"[A-Z-]{1,32} [!\"$-~]+ HTTP/[0-9]+(?:\.[0-9]+)?")
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
_AUTHORITY: Final = re.compile(
    rb"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_][A-Za-z0-9._-]{0,253})(?::([0-9]{1,5}))?"
)

# `proxy` makes services that follow CGI send their own requests elsewhere (httpoxy, CVE-2016-5385).
_DROPPED: Final = HOP_BY_HOP | {b"proxy"}
_FORWARDED: Final = (b"x-forwarded-", b"forwarded", b"x-real-ip")
FROM_PROXY: Final[tuple[bytes, ...]] = (b"x-forwarded-for", b"x-forwarded-proto")
"""What is taken of a trusted peer."""

# What does not go on as it came. The last kind are names with an underscore, which some services take for a dash.
_NOT_PLAIN: Final = re.compile(
    FIELD
    % rb"|".join(
        [
            *sorted(FRAMING | _DROPPED),
            rb"x-forwarded-[^:]*|forwarded|x-real-ip",
            rb"[^:\r_]*_[^:\r]*",
        ]
    )
)
_NOT_IN_TRAILERS: Final = _DROPPED | {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"max-forwards",
    b"range",
    b"set-cookie",
    b"trailer",
}


@attrs.frozen
class Origin:
    """Where a connection's requests come from, as their service is told: the visitor's numeric address, and `http` or `https`.

    A `trusted` peer is a proxy of the operator's: it is believed what is in `FROM_PROXY`. All else of that kind its visitor may have written, since a proxy
    passes on what it does not know.
    """

    address: str
    scheme: str
    trusted: bool = False

    def lines(self, request: RequestHead) -> list[bytes]:
        """Return the fields that tell it of a request."""
        address, scheme = self.address.encode("ascii"), self.scheme.encode("ascii")
        forwarded = _forwarded(self.address, request.authority, scheme)
        if self.trusted and request.forwarded:
            addresses = [*request.forwarded.get(b"x-forwarded-for", []), address]
            address = b", ".join(addresses)
            scheme = (request.proxied_scheme or self.scheme).encode("ascii")
            if (visitor := request.proxied_host) is not None:
                seen = _forwarded(visitor, request.authority, scheme)
                forwarded = seen + b", " + forwarded
        return [
            b"X-Forwarded-For: " + address,
            b"X-Forwarded-Proto: " + scheme,
            b"X-Forwarded-Host: " + request.authority,
            b"Forwarded: " + forwarded,
        ]


def _forwarded(host: str, authority: bytes, scheme: bytes) -> bytes:
    """Return what one who passes a request on says of it (RFC 7239)."""
    node = f'"[{host}]"' if ":" in host else host
    return b'for=%b;host="%b";proto=%b' % (node.encode("ascii"), authority, scheme)


@attrs.define(eq=False)  # frozen, it takes 2 us more to make
class RequestHead:
    """A request as its service is to see it. Nobody changes it.

    `host` is the name in small letters, without a port or a dot at its end, or a numeric address without brackets; `authority` is the whole of
    `Host` as it came. `target` is a path with its query, or `*`. `plain` has the fields that go on as they came, each with CRLF before it. A body
    has `length` bytes, or is `chunked`; neither means that there is none. `keep_alive` says that the visitor may ask for more. `upgrade` is what the
    connection is to become, if the service agrees. `forwarded` has what came of `FROM_PROXY`, which counts only from a trusted peer.
    """

    method: bytes
    target: bytes
    minor: int
    host: str
    authority: bytes
    plain: bytes
    length: int | None
    chunked: bool
    keep_alive: bool
    upgrade: bytes
    takes_trailers: bool
    forwarded: dict[bytes, list[bytes]]

    @property
    def has_body(self) -> bool:
        """Whether anything comes behind the head."""
        return self.chunked or bool(self.length)

    @property
    def proxied_host(self) -> str | None:
        """The numeric address that the nearest proxy has seen; None: it says none that can be read."""
        try:
            address = ipaddress.ip_address(self._last_of(b"x-forwarded-for").partition("%")[0])
        except ValueError:
            return None
        mapped = address.ipv4_mapped if address.version == 6 else None
        return str(mapped or address)

    @property
    def proxied_scheme(self) -> str | None:
        """`http` or `https`, as the nearest proxy says; None: it says neither."""
        scheme = self._last_of(b"x-forwarded-proto").lower()
        return scheme if scheme in {"http", "https"} else None

    def _last_of(self, name: bytes) -> str:
        """Return the last one of a list, which the nearest proxy has written; those before it may be anybody's."""
        values = b",".join(self.forwarded.get(name, []))
        return values.rpartition(b",")[2].strip(b" \t").decode("latin-1")

    @property
    def authorization(self) -> bytes | None:
        """What the visitor has logged in with; None: nothing, or more than one thing."""
        values = self.values(b"authorization")
        return values[0] if len(values) == 1 else None

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field that goes on as it came, by its name in small letters."""
        return [
            value.strip(b" \t")
            for line in self.plain.split(b"\r\n")[1:]
            for field, _, value in (line.partition(b":"),)
            if field.lower() == name
        ]

    def dropping(self, names: Sequence[bytes]) -> RequestHead:
        """Return the request without these fields, which are in small letters."""
        return attrs.evolve(self, plain=without(self.plain, names))

    def encode(self, origin: Origin) -> bytes:
        """Write it anew for the service."""
        lines = [
            b"%b %b HTTP/1.%d\r\nHost: %b%b"
            % (self.method, self.target, self.minor, self.authority, self.plain),
            *origin.lines(self),
        ]
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif self.length is not None:
            lines.append(b"Content-Length: %d" % self.length)
        options: list[bytes] = []
        if self.takes_trailers:
            lines.append(b"TE: trailers")
            options.append(b"TE")
        if self.upgrade:
            lines.append(b"Upgrade: " + self.upgrade)
            options.append(b"Upgrade")
        if not self.keep_alive:
            options.append(b"close")
        elif self.minor == 0:
            options.append(b"keep-alive")
        if options:
            lines.append(b"Connection: " + b", ".join(options))
        lines.append(b"\r\n")
        return b"\r\n".join(lines)


def check_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Return the method, the target and the minor version of HTTP/1.

    Raises:
        HttpError: it is none (400), of another version (505), or CONNECT (405).
    """
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        if _ANY_VERSION.fullmatch(line):
            raise HttpError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise HttpError(400, "no request line")
    method, target, minor = found.groups()
    if method == b"CONNECT":
        raise HttpError(405, "CONNECT is not for a server of names")
    return method, target, int(minor)


def parse_request(head: bytes, *, most_fields: int = MOST_FIELDS) -> RequestHead:
    """Read a whole head, with the empty line at its end.

    Raises:
        HttpError: it is not well-formed, could be taken for another request, or is not ours to carry; `status` says which.
    """
    method, target, minor = check_request_line(head[: head.index(b"\r\n")])
    if head.count(b"\n") - 2 > most_fields:
        raise HttpError(431, f"the head has more than {most_fields} fields")
    check_head(head, request=True, status=400)
    plain, special = take_out(_NOT_PLAIN, head)
    hosts = special.get(b"host", [])
    if len(hosts) != 1:
        raise HttpError(400, "more than one Host" if hosts else "no Host")
    authority = hosts[0]
    # Most requests have nothing of this, and who looks for all of it takes 3 us longer.
    length, chunked = None, False
    if b"content-length" in special or b"transfer-encoding" in special:
        length, chunked = find_framing(
            special.get(b"content-length", []),
            special.get(b"transfer-encoding", []),
            minor=minor,
            status=400,
        )
    forwarded: dict[bytes, list[bytes]] = {}
    for name in FROM_PROXY:
        if name in special:
            forwarded[name] = special[name]
    keep_alive, upgrade, takes_trailers = minor == 1, b"", False
    if b"te" in special:
        takes_trailers = minor == 1 and any(v.lower() == b"trailers" for v in special[b"te"])
    if b"connection" in special:
        options = parse_options(special[b"connection"], 400)
        keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
        if options != [b"keep-alive"]:
            plain = without(plain, options)
            for option in options:
                forwarded.pop(option, None)
        if b"upgrade" in options and minor == 1:
            upgrade = _upgrade(special.get(b"upgrade", []))
    return RequestHead(
        method,
        _origin_form(method, target, authority),
        minor,
        parse_authority(authority),
        authority,
        plain,
        length,
        chunked,
        keep_alive,
        upgrade,
        takes_trailers,
        forwarded,
    )


@lru_cache(512)
def parse_authority(authority: bytes) -> str:
    """Return the host that a `Host` names: a name in small letters, or a numeric address.

    Raises:
        HttpError: it names none, or one that readers could take apart differently.
    """
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise HttpError(400, "Host is no name with or without a port")
    host, port = found.groups()
    if port is not None and int(port) > 65535:
        raise HttpError(400, "the port of Host is out of range")
    if host.startswith(b"["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1].decode("ascii")))
        except ValueError as error:
            raise HttpError(400, "Host is no address of IPv6") from error
    if b".." in host:
        raise HttpError(400, "Host is no name")
    return host.decode("ascii").lower().removesuffix(".")


def _origin_form(method: bytes, target: bytes, authority: bytes) -> bytes:
    """Return the target as a service of its own host sees it (RFC 9112 3.2)."""
    if target.startswith(b"/"):
        return target
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise HttpError(400, "the target is neither a path nor an address")
    if found[1].lower() != authority.lower():
        raise HttpError(400, "the target is on another host than Host says")
    path: bytes = found[2]
    if not path and method == b"OPTIONS":
        return b"*"
    return path if path.startswith(b"/") else b"/" + path


def _upgrade(values: list[bytes]) -> bytes:
    """Return what the connection may become. Not HTTP/2: behind that nobody would look at the requests any more."""
    protocols = [each.strip(b" \t") for value in values for each in value.split(b",")]
    return b", ".join(each for each in protocols if each and not each.lower().startswith(b"h2"))


def keep_trailers(lines: list[bytes]) -> list[bytes]:
    """Return those of the fields behind a body that a service may see; llhttp has judged them.

    Raises:
        HttpError: one of them says how a message is framed, or for whom it is.
    """
    kept: list[bytes] = []
    for line in lines:
        name = line.partition(b":")[0].lower()
        if name in FRAMING:
            raise HttpError(400, "a field behind the body that belongs to the head")
        if not (b"_" in name or name in _NOT_IN_TRAILERS or name.startswith(_FORWARDED)):
            kept.append(line)
    return kept
