"""The answers that an authority looks for at our listeners, while an order is under way.

The listeners ask by plain functions: `http01_answer` for each path on port 80, `alpn01_context` for each name on port 443 whose ClientHello
offers `acme-tls/1` and nothing else.
"""

from __future__ import annotations

import re
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.server.certificates.certificate import server_name
from trionat.server.certificates.store import name_folder
from trionat.store.private_file import make_private_folder, write_private

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

HTTP01: Final = "http-01"
ALPN01: Final = "tls-alpn-01"
ACME_PROTOCOL: Final = "acme-tls/1"
"""What the authority offers by ALPN (RFC 8737 section 6.2)."""

_PATH: Final = "/.well-known/acme-challenge/"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_AUTHORIZATION: Final = re.compile(r"[A-Za-z0-9_-]{16,128}\.[A-Za-z0-9_-]{43}", re.ASCII)
"""The token and the SHA-256 of the account's key (RFC 8555 section 8.1)."""


@attrs.frozen
class Answer:
    """What has to be answered for one name. `pem`, for tls-alpn-01 only, is a key and the certificate that proves it."""

    name: str
    token: str
    authorization: str = attrs.field(repr=False)
    pem: str = attrs.field(default="", repr=False)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Answer:
        """Check what the helper process has written.

        Raises:
            ValueError: It is no answer: it would be served to everybody who asks.
        """
        match values:
            case {
                "name": str(name),
                "token": str(token),
                "authorization": str(authorization),
                "pem": str(pem),
            } if (
                _TOKEN.fullmatch(token)
                and _AUTHORIZATION.fullmatch(authorization)
                and authorization.startswith(f"{token}.")
                and len(pem) < 10_000
            ):
                return cls(name, token, authorization, pem)
            case _:
                raise ValueError("an answer of the wrong form")


@attrs.define(eq=False)
class Challenges:
    """The answers of all orders that are under way; `publish` keeps those of one order there as long as its block runs."""

    _answers: dict[str, bytes] = attrs.field(init=False, factory=lambda: {})
    _contexts: dict[str, ssl.SSLContext] = attrs.field(init=False, factory=lambda: {})

    def http01_answer(self, path: str) -> bytes | None:
        """Return the body to answer a request for `path` with (as `application/octet-stream`), or None where it is nothing of ours."""
        return self._answers.get(path.removeprefix(_PATH)) if path.startswith(_PATH) else None

    def alpn01_context(self, name: str) -> ssl.SSLContext | None:
        """Return what a connection has to be answered with that offers `acme-tls/1`, by the name in its ClientHello; None: refuse it."""
        return self._contexts.get(name.lower())

    @contextmanager
    def publish(
        self, answers: Sequence[Answer], contexts: dict[str, ssl.SSLContext]
    ) -> Generator[None]:
        """Give these answers during the block. `contexts` is what `make_contexts` has made of them."""
        self._contexts.update(contexts)
        texts = {answer.token: answer.authorization.encode() for answer in answers}
        self._answers.update(texts)
        try:
            yield
        finally:
            for token in texts:
                self._answers.pop(token, None)
            for name, context in contexts.items():
                if self._contexts.get(name) is context:
                    del self._contexts[name]


def make_contexts(answers: Sequence[Answer], folder: Path) -> dict[str, ssl.SSLContext]:
    """Return the contexts for tls-alpn-01, by the name that the authority sends. Blocks: OpenSSL reads files only.

    Raises:
        ValueError: A key or a certificate is none.
        StartupError: The folder cannot be written to.
    """
    made: dict[str, ssl.SSLContext] = {}
    for answer in answers:
        if not answer.pem:
            continue
        place = name_folder(folder, answer.name)
        make_private_folder(place)
        file = place / "challenge.pem"
        write_private(file, answer.pem.encode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ACME_PROTOCOL])
        try:
            context.load_cert_chain(file, password="")
        except ssl.SSLError as error:
            raise ValueError("no certificate to answer tls-alpn-01 with") from error
        finally:
            file.unlink(missing_ok=True)
        made[server_name(answer.name)] = context
    return made
