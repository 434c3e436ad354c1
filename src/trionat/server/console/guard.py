"""What every request has to pass, before anybody looks what it wants: an ASGI application around another one."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio
from starlette.datastructures import Headers, MutableHeaders

from trionat.address import parse_public_address
from trionat.config.server import LOOPBACK
from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.networks import Networks, plain_host
from trionat.server.console.authentication import SAFE_METHODS
from trionat.server.console.problem import Code, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from trionat.config.server import ServerConfig
    from trionat.events import Ready

log = get_logger(__name__)

BODY_BYTES: Final = 64 * 1024
_BODY_PATIENCE: Final = 20.0
"""Seconds for the whole body of a request."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""

_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def hosts_of(config: ServerConfig, ready: Ready) -> frozenset[str]:
    """Return by which names browsers reach the console.

    A page of somebody else's, whose name is led to this address (DNS rebinding), has that name in Host. The port does not matter for that, and is another one where `ssh -L` leads here.
    """
    own = set[str]() if config.console_addr is None else {config.console_addr.host}
    others = {config.public_host, ready.public.host, config.domain, *config.console_hosts}
    return frozenset(host.lower() for host in (*_LOCAL, *own, *filter(None, others)))


@attrs.define(eq=False)
class Guard:
    """See the module. `trusted` are proxies that say in `X-Forwarded-For` who asks; they are believed only where the operator has named them."""

    app: ASGIApp
    hosts: frozenset[str]
    trusted: Networks

    @classmethod
    def of(cls, app: ASGIApp, config: ServerConfig, ready: Ready) -> Guard:
        """Make one by the configuration."""
        named = config.trusted_proxies if config.trusted_proxies != LOOPBACK else ()
        return cls(app, hosts_of(config, ready), Networks(named))

    def take_config(self, config: ServerConfig, ready: Ready) -> None:
        """This one counts from now on."""
        again = self.of(self.app, config, ready)
        self.hosts, self.trusted = again.hosts, again.trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        answer = _Answer(send)
        try:
            self._check(scope["method"], headers)
            host = self._host_of(scope["client"][0], headers)
            passed: Scope = {
                **scope,
                "client": (host, 0),
                "extensions": {},
            }  # no files past our stream
            await self.app(passed, _Body(receive).receive, answer.send)
        except Problem as problem:
            await self._tell(problem, answer, scope, receive)
        except PeerError:
            raise
        except Exception:
            log.exception("internal error", path=scope["path"], method=scope["method"])
            bug = Problem(Code.INTERNAL, "this is a bug: the server's log has more")
            await self._tell(bug, answer, scope, receive)

    async def _tell(
        self, problem: Problem, answer: _Answer, scope: Scope, receive: Receive
    ) -> None:
        if not answer.has_begun:
            await problem.response()(scope, receive, answer.send)

    def _check(self, method: str, headers: Headers) -> None:
        names = headers.getlist("host")
        if len(names) != 1 or _name_in(names[0]) not in self.hosts:
            raise Problem(
                Code.MISDIRECTED,
                "the console is not called so: name it in Server.ConsoleHosts (--console-host)",
            )
        if method in SAFE_METHODS:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc.lower() != names[0].lower()
        ):
            raise Problem(Code.FORBIDDEN, "this comes from a page of another site")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > BODY_BYTES:
            raise _too_large()

    def _host_of(self, peer: str, headers: Headers) -> str:
        if self.trusted and peer in self.trusted:
            said = headers.getlist("x-forwarded-for")
            last = said[-1].rpartition(",")[2].strip() if said else ""
            try:
                return str(ipaddress.ip_address(plain_host(last)))
            except ValueError:
                return peer
        return peer


def _name_in(host: str) -> str:
    try:
        name, _ = parse_public_address(host)
    except ValueError:
        return ""
    return name.lower().removesuffix(".")


def _too_large() -> Problem:
    return Problem(Code.TOO_LARGE, f"a body has at most {BODY_BYTES} bytes")


@attrs.define(eq=False)
class _Body:
    """A request's body, as it comes in: counted, and with one deadline for all of it."""

    source: Receive
    _bytes: int = attrs.field(init=False, default=0)
    _deadline: float = attrs.field(init=False, factory=lambda: trio.current_time() + _BODY_PATIENCE)
    _is_whole: bool = attrs.field(init=False, default=False)

    async def receive(self) -> Message:
        if self._is_whole:  # what comes now is the end of the connection
            return await self.source()
        try:
            with trio.fail_at(self._deadline):
                message = await self.source()
        except trio.TooSlowError:
            text = f"the body was not there within {_BODY_PATIENCE:g} s"
            raise Problem(Code.TIMEOUT, text) from None
        self._bytes += len(message.get("body", b""))
        if self._bytes > BODY_BYTES:
            raise _too_large()
        self._is_whole = not message.get("more_body", False)
        return message


@attrs.define(eq=False)
class _Answer:
    target: Send
    has_begun: bool = attrs.field(init=False, default=False)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self.target(message)
