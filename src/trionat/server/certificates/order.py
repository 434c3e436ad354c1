"""One order at an authority, done by a helper process that is started for it and gone afterwards.

The helper (`acme_client`) has the library and does the talking. This side gives it the account's key, serves the answers that it names, checks what it
brings, and ends it in time: whatever an authority does, it cannot hold more than this process and `ORDER_TIMEOUT`.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import math
import re
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trionat.errors import StartupError, TrionatError
from trionat.libraries import install_hint
from trionat.log import escape, get_logger
from trionat.server.certificates.certificate import check_issued, read_pair
from trionat.server.certificates.challenges import ALPN01, HTTP01, Answer, make_contexts
from trionat.store.private_file import (
    create_private,
    is_there,
    make_private_folder,
    read_private,
)
from trionat.text import quoted
from trionat.transport.certificate import make_certificate
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    from trionat.config.acme import AcmeConfig
    from trionat.server.certificates.certificate import Certificate
    from trionat.server.certificates.challenges import Challenges

log = get_logger(__name__)

Values: TypeAlias = "dict[str, Any]"
_Streams: TypeAlias = "tuple[trio.abc.SendStream, trio.abc.ReceiveStream, trio.abc.ReceiveStream]"

ORDER_TIMEOUT: Final = 180.0
"""Seconds for an order: authorities take 5 to 30, those that are busy a minute or two."""

WINDOWS_TIMEOUT: Final = 60.0
"""Seconds to ask when certificates are to be renewed."""

MOST_WINDOWS: Final = 100
"""Certificates to ask for at once."""

SHORT_LIVED: Final = "shortlived"
"""The profile under which authorities give certificates for addresses."""

_MOST_BYTES: Final = 2 * 1024 * 1024
"""Of all that a helper says."""

_MOST_COMPLAINT: Final = 20_000
"""Of what a helper that fails writes on its standard error."""

_MOST_WORDS: Final = 400
"""Characters of what an authority said, in a message."""

_LAST_WORDS: Final = 1.0
"""Seconds for a process that has closed its output to end."""

_LAST_MOMENT: Final = 253_402_300_799.0
"""The end of the year 9999, which is the last one that can be written."""

_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+", re.ASCII)

_WORDS: Final = {
    "rateLimited": "it has had too many requests of us",
    "caa": "a CAA record of the domain forbids it (let it in by a CAA record with the authority's name, or remove the record)",
    "dns": "the DNS record of the name cannot be found or is wrong",
    "dnssec": "the DNSSEC of the domain is broken",
    "connection": "it cannot reach this server under that name (ports 80 and 443 have to be open to everybody)",
    "tls": "it cannot reach this server under that name by TLS (port 443 has to be open to everybody)",
    "incorrectResponse": "what answers under that name is not this server",
    "unauthorized": "what answers under that name is not this server, or the authority does not let us",
    "rejectedIdentifier": "it gives no certificate for that name",
    "unsupportedIdentifier": "it gives no certificates for names of that kind",
    "externalAccountRequired": "it wants accounts that were opened elsewhere, which is not built",
    "invalidContact": "it does not take the address in Acme.Email",
    "unsupportedContact": "it does not take the address in Acme.Email",
    "serverInternal": "it has a fault of its own",
}
"""What a code of ACME (RFC 8555 section 6.7) means to an operator."""


class OrderError(TrionatError):
    """There is no certificate; one line says why.

    `code` is one of ACME (`rateLimited`, `caa`, `dns`, `connection`, …), or one of ours: `away` (no answer that is one), `nonsense` (a wrong one), `terms`,
    `method` (no challenge that we can take), `name` (none that can be ordered for), `timeout`. `until`, in seconds since 1970, is when the authority wants to be asked again.
    """

    def __init__(self, code: str, text: str, until: float | None = None) -> None:
        super().__init__(text)
        self.code, self.until = code, until


class HelperError(Exception):
    """The helper process has a bug, or cannot be run at all; the text is its traceback."""


@attrs.frozen(kw_only=True)
class Issued:
    """What an order has brought, checked against it: `key` is secret. `window` is when the authority wants it to be renewed."""

    certificate: Certificate
    key: bytes = attrs.field(repr=False)
    chain: bytes = attrs.field(repr=False)
    window: Window


@attrs.frozen
class Window:
    """When to renew, if the authority says so (ARI, RFC 9773), and when to ask it again; seconds since 1970."""

    renew: float | None
    again: float | None


def require_library() -> None:
    """See that the library of the helper is there, without importing it. This module is to be imported before the loop runs: that takes 80 ms.

    Raises:
        StartupError: It is not installed.
    """
    if importlib.util.find_spec("acme") is None:
        raise StartupError(f"certificates for names need the library acme: {install_hint('names')}")


def wrong_with_name(name: str) -> str | None:
    """Return why no certificate can be ordered for a name or an address, or None where one can."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        if "*" in name:
            return f"{name}: a certificate with a wildcard cannot be ordered here: give its files"
        if len(name) > 253 or not _NAME.fullmatch(name):
            return f"{quoted(name)} is no name of the public DNS in lower case"
        return None
    return None if str(address) == name else f"{name}: write this address as {address}"


def account_key(folder: Path) -> bytes:
    """Return the key of our account at the authority, `account.key` in a folder; both are made where they are missing. Blocks.

    Raises:
        StartupError: It cannot be read, or others can read it.
    """
    path = folder / "account.key"
    if not is_there(path):
        make_private_folder(folder)
        create_private(path, make_certificate()[0])
    content = read_private(path, secret=True)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StartupError(
            f"{path}: this is no key of ours: restore it, or delete it for a new account"
        )
    return content


async def order(
    config: AcmeConfig,
    names: Sequence[str],
    *,
    folder: Path,
    challenges: Challenges,
    method: str = HTTP01,
) -> Issued:
    """Order a certificate for names, or for one address. Cancelled, the helper process is ended.

    Args:
        config: The authority.
        names: In lower case. What an authority gives for addresses is of the profile `shortlived`.
        folder: Where the account's key is.
        challenges: Gets the answers, for as long as they have to be served.
        method: `http-01` or `tls-alpn-01`.

    Raises:
        OrderError: There is none.
        StartupError: The folder cannot be used.
        HelperError: A bug of ours.
    """
    if method not in {HTTP01, ALPN01}:
        raise ValueError(f"{method} is no way to answer")
    for name in names:
        if (wrong := wrong_with_name(name)) is not None:
            raise OrderError("name", wrong)
    key = await trio.to_thread.run_sync(account_key, folder)
    addressed = any(map(_is_address, names))
    task = {
        "what": "order",
        **_who(config, key),
        "names": list(names),
        "method": method,
        "profile": SHORT_LIVED if addressed else None,
    }
    with _timed(config, ORDER_TIMEOUT):
        async with _helper(config, task) as helper:
            message = await helper.receive("answers", "issued")
            if message["what"] == "answers":
                message = await _answer(helper, message, names, folder, challenges)
            return await trio.to_thread.run_sync(_check, config, message, names)


async def ask_windows(
    config: AcmeConfig, certificates: Sequence[Certificate], *, folder: Path
) -> list[Window]:
    """Ask the authority when certificates are to be renewed: at most `MOST_WINDOWS` at once. Cancelled, the helper process is ended.

    Raises:
        OrderError, StartupError, HelperError: As for `order`.
    """
    key = await trio.to_thread.run_sync(account_key, folder)
    pems = [certificate.pem for certificate in certificates[:MOST_WINDOWS]]
    task = {"what": "renewal", **_who(config, key), "certificates": pems}
    with _timed(config, WINDOWS_TIMEOUT):
        async with _helper(config, task) as helper:
            return [_read_window(await helper.receive("window")) for _ in pems]


def _who(config: AcmeConfig, key: bytes) -> Values:
    return {
        "agent": f"trionat/{VERSION}",
        "directory": config.directory,
        "ca_file": None if config.ca_file is None else str(config.ca_file),
        "email": config.email,
        "agree_terms": config.agree_terms,
        "account_key": key.decode(),
    }


async def _answer(
    helper: _Helper, message: Values, names: Sequence[str], folder: Path, challenges: Challenges
) -> Values:
    """Serve the answers of an order until it is over, and return what comes then."""
    try:
        answers = [Answer.read(values) for values in message["answers"][: len(names) + 1]]
        if not {answer.name for answer in answers} <= set(names) or len(answers) > len(names):
            raise ValueError("answers for other names")
        contexts = await trio.to_thread.run_sync(make_contexts, answers, folder)
    except (ValueError, TypeError) as error:
        raise OrderError("nonsense", f"{helper.place}: {error}") from error
    with challenges.publish(answers, contexts):
        await helper.send({"what": "serving"})
        return await helper.receive("issued")


def _check(config: AcmeConfig, message: Values, names: Sequence[str]) -> Issued:
    match message:
        case {"key": str(key_pem), "chain": str(chain_pem)}:
            key, chain = key_pem.encode(), chain_pem.encode()
        case _:
            raise OrderError("nonsense", f"{config.directory}: no certificate came")
    try:
        certificate = read_pair(key, chain)
        check_issued(certificate, names, time.time())
    except ValueError as error:
        raise OrderError(
            "nonsense", f"{config.directory}: the certificate that it gave cannot be used: {error}"
        ) from error
    return Issued(certificate=certificate, key=key, chain=chain, window=_read_window(message))


def _read_window(message: Values) -> Window:
    def moment(value: object) -> float | None:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    return Window(moment(message.get("renew")), moment(message.get("again")))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- the process ---


@contextmanager
def _timed(config: AcmeConfig, seconds: float) -> Generator[None]:
    """A deadline for the block, of which an authority or a helper that hangs knows nothing."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise OrderError(
            "timeout", f"{config.directory}: it has not come to an end within {seconds:g} s"
        ) from None


@asynccontextmanager
async def _helper(config: AcmeConfig, task: Values) -> AsyncGenerator[_Helper]:
    """Run a helper with a task during the block; nothing of it is left then, in whatever way the block ends."""
    try:
        process = await trio.lowlevel.open_process(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise StartupError(
            f"the helper process for certificates cannot be started: {error.strerror or error}"
        ) from error
    streams = process.stdin, process.stdout, process.stderr
    stdin, stdout, stderr = cast("_Streams", streams)
    helper = _Helper(config.directory, process, stdin, stdout, stderr)
    try:
        await helper.send(task)
        yield helper
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (stdin, stdout, stderr):
                await trio.aclose_forcefully(stream)


def _command() -> list[str]:
    """Return how a helper is started. It finds no module in its own folder: names like ours may be those of libraries."""
    return [sys.executable, "-P", str(Path(__file__).with_name("acme_client.py"))]


@attrs.define(eq=False)
class _Helper:
    """The process, as this side talks to it. `place` is the authority, for messages."""

    place: str
    process: trio.Process
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    _heard: bytearray = attrs.field(init=False, factory=bytearray)
    _heard_bytes: int = attrs.field(init=False, default=0)

    async def send(self, message: Values) -> None:
        """Say one line; to a process that has ended it is lost, and `receive` tells."""
        with suppress(trio.BrokenResourceError):
            await self.stdin.send_all(json.dumps(message).encode() + b"\n")

    async def receive(self, *kinds: str) -> Values:
        """Return the next message, which has to be of one of these kinds.

        Raises:
            OrderError: The order has failed.
            HelperError: The process has, or says something else.
        """
        while True:
            line = await self._line()
            try:
                message: Values = json.loads(line)
                what = message["what"]
            except (ValueError, TypeError, KeyError):
                raise HelperError(f"it says {line[:200]!r}") from None
            match message:
                case {"what": "failed", "code": str(code), "text": str(text), "until": until}:
                    raise self._failure(code, text, until)
                case {"what": "bug", "traceback": str(text)}:
                    raise HelperError(text)
                case {"what": "account", "terms": str(terms)}:
                    log.info("opened an account", authority=self.place, agreed_to=terms)
                case _ if what in kinds:
                    return message
                case _:
                    raise HelperError(f"it says {what!r} instead of {' or '.join(kinds)}")

    async def _line(self) -> bytes:
        while (end := self._heard.find(b"\n")) < 0:
            try:
                piece = await self.stdout.receive_some(65_536)
            except trio.BrokenResourceError:
                piece = b""
            self._heard_bytes += len(piece)
            if not piece:
                raise await self._end()
            if self._heard_bytes > _MOST_BYTES:
                raise HelperError(f"it says more than {_MOST_BYTES:,} bytes")
            self._heard += piece
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        return line

    async def _end(self) -> Exception:
        """Return why there is no last word."""
        text = b""
        with trio.move_on_after(_LAST_WORDS):
            text = bytes(await self.stderr.receive_some(_MOST_COMPLAINT))
            await self.process.wait()
        code = self.process.returncode
        if code is not None and code < 0:
            return OrderError(
                "killed", f"the helper process for certificates was killed by signal {-code}"
            )
        return HelperError(f"it ended with code {code}\n{text.decode(errors='replace')}")

    def _failure(self, code: str, text: str, until: object) -> OrderError:
        said = escape(" ".join(text.split()))
        if len(said) > _MOST_WORDS:
            said = f"{said[:_MOST_WORDS]}…"
        when = float(until) if isinstance(until, int | float) and math.isfinite(until) else None
        words = [self.place, *([_WORDS[code]] if code in _WORDS else []), said]
        if when is not None:
            words.insert(-1, f"until {_written(when)}")
        return OrderError(code, ": ".join(words), when)


def _written(moment: float) -> str:
    return (
        f"{datetime.fromtimestamp(min(max(moment, 0.0), _LAST_MOMENT), UTC):%Y-%m-%d %H:%M:%S} UTC"
    )
