"""A server that is asked over its API: `trionat --server URL --token-file FILE COMMAND`."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import ssl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import attrs

from trionat.errors import (
    ConfigError,
    IdentityError,
    Problem,
    RefusedError,
    StartupError,
    StoreError,
    StoreUnavailableError,
)
from trionat.fingerprint import format_fingerprint, parse_fingerprint
from trionat.protocol.messages import RefusalCode
from trionat.server.admin.messages import (
    AskDrain,
    AskReload,
    AskStatus,
    AskTasks,
    AskUpgrade,
    AskWhere,
    Drained,
    Kicked,
    KickSession,
    KickUser,
    KickVisitor,
    LiftBan,
    Lifted,
)
from trionat.server.admin.snapshot import Snapshot
from trionat.store.private_file import read_private
from trionat.store.tokens import digest_token
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from trionat.server.admin.messages import Request

_ROOT: Final = "/api/v1"
_SILENCE: Final = 15.0
_PATIENCE: Final = 60.0
"""Seconds for the next bytes, and for the whole answer."""

_MOST_PAGES: Final = 1000
"""Of a list: a million entries."""

_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST"})
"""What OpenSSL says of a peer that speaks something else."""

_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""As of the server's socket: what 10,000 visitors take some hundred times."""


@attrs.frozen(kw_only=True)
class Remote:
    """The API of a server. Every call blocks; nothing but the token says who asks.

    With a `fingerprint` the server has to show just that certificate, else one that the system's authorities have signed. Without TLS only a server on loopback is asked,
    since anybody on the way could read the token.
    """

    host: str
    port: int
    encrypted: bool
    token: str = attrs.field(repr=False)
    fingerprint: bytes | None = None

    @classmethod
    def read(cls, url: str, token_file: Path | None, fingerprint: str | None) -> Remote:
        """Read what was given on the command line.

        Raises:
            ConfigError: It is wrong, or there is no token.
            StartupError: The token cannot be read, or others can read it.
        """
        if token_file is None:
            reason = "say where the token is: trionat token add NAME > FILE, made for you alone"
            raise ConfigError(Problem("--token-file", reason))
        where = "--server"
        try:
            host, port, encrypted = _read_url(url)
            where = "--server-fingerprint"
            pinned = None if fingerprint is None else parse_fingerprint(fingerprint)
            if pinned is not None and not encrypted:
                raise ValueError("there is no certificate without https")
            where = str(token_file)
            content = read_private(token_file, secret=True, what="this token")
            token = content.decode("utf-8", "replace").strip()
            digest_token(token)
        except ValueError as error:
            raise ConfigError(Problem(where, str(error))) from None
        return cls(host=host, port=port, encrypted=encrypted, token=token, fingerprint=pinned)

    def __str__(self) -> str:
        """Return its URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.encrypted else ''}://{host}:{self.port}"

    def answer(self, request: Request) -> dict[str, Any]:
        """Do what the server's own socket does; return the same values.

        Raises:
            StartupError: It cannot be reached.
            ConfigError: That is not for servers elsewhere.
        """
        match request:
            case AskStatus():
                with self.understood():
                    values = dict(self.ask("GET", "/status"))
                    Snapshot.of(values)
                return values
            case AskTasks():
                with self.understood():
                    return dict(self.ask("GET", "/tasks"))
            case AskWhere(name):
                with self.understood():
                    return dict(self.ask("GET", f"/whereabouts?user={quoted_path(name)}"))
            case AskDrain():
                with self.understood():
                    values = dict(self.ask("POST", "/drain"))
                    del values["draining"]
                    Drained.of(values)
                return values
            case LiftBan(network):
                return self._lift(network)
            case KickUser(name):
                return self._kick_user(name)
            case KickSession(uid):
                return self._kick(f"/sessions/{uid}", sessions=(uid,))
            case KickVisitor(number):
                return self._kick(f"/visitors/{number}", visitors=(number,))
            case AskReload():  # the command line says so before; see `FROM_AFAR`
                raise ConfigError(Problem("--server", "reload does not go with it"))
            case AskUpgrade():
                raise StartupError("a server is upgraded on its own machine")

    def _kick_user(self, name: str) -> dict[str, Any]:
        try:
            with self.understood():
                values = dict(self.ask("POST", f"{user_path(name)}/kick"))
                Kicked.of(values)
        except MissingError:
            return attrs.asdict(Kicked())
        return values

    def _lift(self, network: str) -> dict[str, Any]:
        try:
            self.ask("DELETE", f"/bans/{quoted_path(network)}")
        except MissingError:
            return attrs.asdict(Lifted(is_lifted=False))
        return attrs.asdict(Lifted(is_lifted=True))

    def _kick(self, path: str, **whom: tuple[int, ...]) -> dict[str, Any]:
        try:
            self.ask("DELETE", path)
        except MissingError:
            return attrs.asdict(Kicked())
        return attrs.asdict(Kicked(**whom))  # type: ignore[arg-type]  # one of its tuples

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """Return everything of a list.

        Raises:
            StartupError: It has no end; and what `ask` raises.
        """
        query, joint = path, "&" if "?" in path else "?"
        for _ in range(_MOST_PAGES):
            with self.understood():
                page = self.ask("GET", f"{query}{'&' if '?' in query else '?'}limit=1000")
                items, following = list(page["items"]), page["next"]
                if following is not None:
                    query = f"{path}{joint}after={quoted_path(following)}"
            yield from items
            if following is None:
                return
        raise StartupError(f"{self}: the list has no end")

    @contextmanager
    def understood(self) -> Generator[None]:
        """Say that the server is no trionat, or not of this version, where an answer is of another shape than is read in the block.

        Raises:
            StartupError: It is.
        """
        try:
            yield
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StartupError(
                f"{self}: what answers there is no trionat, or of another version"
            ) from error

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send one request, and return the values that are answered, None where there are none.

        Raises:
            StoreError: It is refused; `MissingError` where there is no such thing.
            ConfigError: A value is wrong.
            RefusedError: The token is not good for that.
            IdentityError: This is not the server.
            StartupError: It does not answer, or not as it has to.
        """
        try:
            status, text = self._exchange(method, path, body)
            values = json.loads(text) if text else None
        except TimeoutError:
            raise StartupError(f"{self}: the server does not answer") from None
        except ssl.SSLCertVerificationError as error:
            raise IdentityError(
                f"{self}: its certificate does not check out: {error.verify_message}. If it is the server's own, give its fingerprint, as trionat serve"
                " prints it: --server-fingerprint SHA256:…"
            ) from error
        except ssl.SSLError as error:
            raise StartupError(f"{self}: {_why_no_tls(self, error)}") from error
        except OSError as error:
            raise StartupError(f"{self}: {_why_no_answer(self, error)}") from error
        except (http.client.HTTPException, ValueError, RecursionError) as error:
            raise StartupError(f"{self}: what answers there is no trionat") from error
        if not 200 <= status < 300:
            self._raise(status, values)
        return values

    def _exchange(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        connection = self._connection()
        deadline = time.monotonic() + _PATIENCE
        try:
            connection.connect()
            if self.fingerprint is not None:
                self._check(connection.sock, self.fingerprint)
            headers = {"Authorization": f"Bearer {self.token}"}
            data = None
            if body is not None:
                data = json.dumps(body).encode()
                headers["Content-Type"] = "application/json"
            connection.request(method, _ROOT + path, data, headers)
            response = connection.getresponse()
            answer = bytearray()
            while piece := response.read1(1 << 20):
                answer += piece
                if len(answer) > _ANSWER_BYTES or time.monotonic() > deadline:
                    raise TimeoutError
            return response.status, bytes(answer)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self.encrypted:
            return http.client.HTTPConnection(self.host, self.port, timeout=_SILENCE)
        context = ssl.create_default_context()
        if self.fingerprint is not None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self.host, self.port, timeout=_SILENCE, context=context)

    def _check(self, sock: Any, expected: bytes) -> None:
        """Check whose certificate it is, before anything is sent."""
        shown = hashlib.sha256(sock.getpeercert(binary_form=True)).digest()
        if not hmac.compare_digest(shown, expected):
            raise IdentityError(
                f"WRONG SERVER at {self}: it shows {format_fingerprint(shown)} but has to show {format_fingerprint(expected)}; nothing was sent to it"
            )

    def _raise(self, status: int, values: Any) -> None:
        """Say what was refused, as the same command would at the server."""
        try:
            code, detail = str(values["code"]), " ".join(str(values["detail"]).split())
            field = str(values.get("field") or "")
        except (TypeError, LookupError):
            raise StartupError(f"{self}: what answers there is no trionat") from None
        match code:
            case "not_found":
                raise MissingError(detail)
            case "conflict":
                raise StoreError(detail)
            case "invalid":
                reason = detail.removeprefix(f"{field}: ").removeprefix(f"{field} ")
                raise ConfigError(Problem(field, reason))
            case "unauthorized" | "forbidden":
                raise RefusedError(RefusalCode.AUTH_FAILED, f"{self}: {detail}")
            case "store_unavailable":
                raise StoreUnavailableError(f"{self}: {detail}")
            case _:
                raise StartupError(f"{self}: {detail} ({status})")


class MissingError(StoreError):
    """The server knows no such thing."""


def _why_no_tls(remote: Remote, error: ssl.SSLError) -> str:
    """Say what to do where TLS was not spoken."""
    if error.reason not in _NOT_TLS:
        return f"{error.reason or error}: is the console up there?"
    if _is_loopback(remote.host):
        plain = attrs.evolve(remote, encrypted=False)
        return (
            f"what answers there does not speak TLS: if it is the console, write --server {plain}"
        )
    return "what answers there does not speak TLS: is it another port, or a proxy on the way?"


def _why_no_answer(remote: Remote, error: OSError) -> str:
    """Say what to do where nothing was answered: TLS ends a connection that begins with a request."""
    if isinstance(error, ConnectionResetError) and not remote.encrypted:
        encrypted = attrs.evolve(remote, encrypted=True)
        return f"it has ended the connection without an answer: if it speaks TLS, write --server {encrypted}"
    return f"{error.strerror or error}: is the console up there?"


def _read_url(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{quoted(url)} is not a valid URL: write https://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{quoted(url)} has a path: write https://HOST:PORT")
    encrypted = parts.scheme == "https"
    if not encrypted and not _is_loopback(parts.hostname):
        raise ValueError("anybody on the way could read the token: write https://")
    return parts.hostname, parts.port or (443 if encrypted else 80), encrypted


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def user_path(name: str) -> str:
    """Return where an account is."""
    return f"/users/{quoted_path(name)}"


def quoted_path(text: str) -> str:
    """Return a part of a path, or a value of a query.

    Raises:
        MissingError: It is not UTF-8, as an argument may be: nothing at a server is called so.
    """
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise MissingError(f"there is nothing that is called {text!r}") from None
