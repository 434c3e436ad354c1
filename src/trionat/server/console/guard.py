"""What every request has to pass, before anybody looks what it wants: an ASGI application around another one."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
from starlette.datastructures import Headers

from trionat.address import parse_public_address
from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.networks import Networks, plain_host
from trionat.server.console.authentication import SAFE_METHODS
from trionat.server.console.problem import Code, Problem
from trionat.transport.web_answer import GuardedAnswer
from trionat.transport.web_body import MOST_PIECES, BoundedBody

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

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
_LENGTH: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
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
        return cls(app, hosts_of(config, ready), Networks(config.named_proxies))

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
        answer = GuardedAnswer(send, _POLICY)
        try:
            self._check(scope["method"], headers)
            host = self._host_of(scope["client"][0], headers)
            passed: Scope = {
                **scope,
                "client": (host, 0),
                "extensions": {},
            }  # no files past our stream
            body = BoundedBody(
                source=receive,
                most=BODY_BYTES,
                seconds=_BODY_PATIENCE,
                too_large=_too_large,
                too_slow=_too_slow,
            )
            await self.app(passed, body.receive, answer.send)
        except Problem as problem:
            await self._tell(problem, answer, scope, receive)
        except PeerError:
            raise
        except Exception:
            log.exception("internal error", path=scope["path"], method=scope["method"])
            bug = Problem(Code.INTERNAL, "this is a bug: the server's log has more")
            await self._tell(bug, answer, scope, receive)

    async def _tell(
        self, problem: Problem, answer: GuardedAnswer, scope: Scope, receive: Receive
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
            origin is not None and _site_in(origin) != names[0].lower()
        ):
            raise Problem(Code.FORBIDDEN, "this comes from a page of another site")
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > BODY_BYTES:
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


def _site_in(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name_in(host: str) -> str:
    try:
        name, _ = parse_public_address(host)
    except ValueError:
        return ""
    return name.lower().removesuffix(".")


def _too_large() -> Problem:
    return Problem(
        Code.TOO_LARGE, f"a body has at most {BODY_BYTES} bytes, in {MOST_PIECES} pieces"
    )


def _too_slow() -> Problem:
    return Problem(Code.TIMEOUT, f"the body was not there within {_BODY_PATIENCE:g} s")
