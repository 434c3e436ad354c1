"""Authorities that limit, refuse, hang, talk nonsense or lie: each is one clear line, and nothing of it is served."""

from __future__ import annotations

import base64
import gzip
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography import x509

from tests.certificates.conftest import listening
from tests.certificates.front import Request, Response, front, problem
from tests.certificates.made import DAY, Maker
from trionat.server.certificates import order as order_module
from trionat.server.certificates.challenges import Challenges
from trionat.server.certificates.order import OrderError, order

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.certificates.pebble import Pebble

NAME = "shop.example.org"
MAKER = Maker()
HTML = {"content-type": "text/html"}

pytestmark = pytest.mark.usefixtures("nothing_left")


async def fails(pebble: Pebble, folder: Path, change: Any) -> OrderError:
    """Order, and return how it has failed."""
    challenges = Challenges()
    async with listening(pebble, challenges), front(pebble, change) as config:
        with pytest.raises(OrderError) as caught:
            await order(config, [NAME], folder=folder, challenges=challenges)
    error = caught.value
    assert config.directory in str(error)
    assert len(str(error)) < 700
    assert "\n" not in str(error)
    assert "PRIVATE" not in str(error)
    return error


def at(path: str, make: Callable[[Response], Response]) -> Any:
    """Change what is answered at one path."""

    async def change(request: Request) -> Response:
        response = await request.forward()
        if response.status >= 400:  # a nonce that is refused
            return response
        return make(response) if request.path.startswith(path) else response

    return change


def always(*given: Any) -> Callable[[Response], Response]:
    return lambda _: Response(*given)


def limited(kind: str) -> Response:
    match kind:
        case "with a document":
            after = {"retry-after": "5000"}
            return problem("rateLimited", "too many certificates\nalready issued", 429, **after)
        case "without":
            return Response(429, {**HTML, "retry-after": "5000"}, b"<h1>slow down</h1>")
        case _:
            date = formatdate(time.time() + 5000, usegmt=True)
            return problem("rateLimited", "busy", 503, **{"retry-after": date})


@pytest.mark.limit(30)
@pytest.mark.parametrize("kind", ["with a document", "without", "until a date"])
async def test_limits_are_told_with_their_end(tmp_path: Path, pebble: Pebble, kind: str) -> None:
    error = await fails(pebble, tmp_path, at("/order-plz", lambda _: limited(kind)))
    assert error.code == "rateLimited"
    assert error.until is not None
    assert error.until == pytest.approx(time.time() + 5000, abs=30)
    assert ": until 20" in str(error)
    assert " UTC: " in str(error)


@pytest.mark.limit(30)
async def test_an_order_that_fails_at_the_end(tmp_path: Path, pebble: Pebble) -> None:
    failed = {"type": "urn:ietf:params:acme:error:caa", "detail": f"CAA record for {NAME}"}

    async def change(request: Request) -> Response:
        response = await request.forward()
        if response.status >= 400:  # a nonce that is refused
            return response
        if request.path.startswith(("/finalize-order/", "/my-order/")):
            return response.change(status="invalid", error=failed)
        return response

    error = await fails(pebble, tmp_path, change)
    assert error.code == "caa"
    assert "a CAA record of the domain forbids it" in str(error)
    assert NAME in str(error)


NONSENSE = {
    "away": ("/dir", always(503, HTML, b"<h1>sorry</h1>"), "away", "status 503"),
    "a page": ("/dir", always(200, HTML, b"<h1>welcome</h1>"), "nonsense", "makes no sense"),
    "a list": ("/dir", always(200, {}, b"[]"), "nonsense", "no object"),
    "no directory": ("/dir", always(200, {}, b"{}"), "nonsense", "no directory of ACME"),
    "not encrypted": (
        "/dir",
        lambda response: response.change(newNonce="http://127.0.0.1:1/"),
        "away",
        "http://127.0.0.1:1/",
    ),
    "a file": (
        "/dir",
        lambda response: response.change(newNonce="file:///etc/passwd"),
        "away",
        "file:///etc/passwd",
    ),
    "a ring": ("/dir", always(302, {"location": "/dir"}, b""), "away", "30 redirects"),
    "too much": ("/dir", always(200, {}, b" " * 20_000_000), "nonsense", "more than 1,000,000"),
    "packed": (
        "/dir",
        always(200, {"content-encoding": "gzip"}, gzip.compress(b" " * 100_000_000)),
        "nonsense",
        "more than 1,000,000",
    ),
    "cut": ("/dir", always(200, {"content-length": "500"}, b'{"a":'), "away", ""),
    "no nonce": ("/nonce-plz", always(200, {}, b""), "nonsense", "makes no sense"),
    "bad nonces": (
        "/sign-me-up",
        lambda _: problem("badNonce", "never", 400, **{"replay-nonce": "AAAA"}),
        "badNonce",
        "",  # the last word may be pebble's own
    ),
    "no account": ("/sign-me-up", always(200, {}, b"{}"), "nonsense", "makes no sense"),
    "no authorizations": (
        "/order-plz",
        lambda response: response.change(authorizations=7),
        "nonsense",
        "makes no sense",
    ),
    "another name": (
        "/authZ/",
        lambda response: response.change(identifier={"type": "dns", "value": "evil.example"}),
        "nonsense",
        "for another name",
    ),
    "no challenge": (
        "/authZ/",
        lambda response: response.change(challenges=[3, {}, {"type": "dns-01", "url": "x"}]),
        "nonsense",
        "",
    ),
    "a path": (
        "/authZ/",
        lambda response: response.change(
            challenges=[{**one, "token": "../" * 9} for one in response.json["challenges"]]
        ),
        "nonsense",
        "makes no sense",
    ),
    "null": ("/authZ/", always(200, {"replay-nonce": "AAAA"}, b"null"), "nonsense", ""),
}


@pytest.mark.limit(30)
@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense(tmp_path: Path, pebble: Pebble, kind: str) -> None:
    path, make, code, words = NONSENSE[kind]
    error = await fails(pebble, tmp_path, at(path, make))
    assert (error.code, words in str(error)) == (code, True), str(error)


LIES: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "another name": (lambda key: MAKER.chain("evil.example", key=key)[1], f"not for {NAME}"),
    "another key": (lambda _: MAKER.chain(NAME)[1], "the key is not the one of the certificate"),
    "run out": (
        lambda key: MAKER.chain(NAME, key=key, begins=0, ends=time.time() - DAY)[1],
        "it has run out already",
    ),
    "another signer": (
        lambda key: MAKER.chain(NAME, key=key)[1].replace(MAKER.pem, Maker().pem) + Maker().pem,
        "the chain is in disorder",
    ),
    "garbage": (lambda _: b"garbage", "there is no certificate in it"),
    "nothing": (lambda _: b"", "there is no certificate in it"),
    "100 MB": (lambda _: b" " * 100_000_000, "more than 1,000,000 bytes"),
    "half a MB": (lambda _: b" " * 500_000, "more than 100,000 bytes"),
}


@pytest.mark.limit(40)
@pytest.mark.parametrize("kind", LIES)
async def test_lies(tmp_path: Path, pebble: Pebble, kind: str) -> None:
    """The key is that of the request: an authority has it, and can sign whatever it likes."""
    make, words = LIES[kind]
    keys: list[Any] = []

    async def change(request: Request) -> Response:
        response = await request.forward()
        if response.status >= 400:  # a nonce that is refused
            return response
        if text := request.payload.get("csr"):
            csr = x509.load_der_x509_csr(base64.urlsafe_b64decode(text + "==="))
            keys.append(csr.public_key())
        if request.path.startswith("/certZ/"):
            response.body = make(keys[0])
        return response

    error = await fails(pebble, tmp_path, change)
    assert (error.code, words in str(error)) == ("nonsense", True), str(error)


@pytest.mark.limit(30)
@pytest.mark.parametrize("path", ["/chalZ/", "/authZ/", "/certZ/"])
async def test_an_authority_that_comes_to_no_end(
    tmp_path: Path, pebble: Pebble, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(order_module, "ORDER_TIMEOUT", 2.5)

    async def change(request: Request) -> Response:
        response = await request.forward()
        if response.status >= 400:  # a nonce that is refused
            return response
        if request.path.startswith(path):
            if path == "/authZ/":
                return response.change(status="pending")
            await trio.sleep_forever()
        return response

    error = await fails(pebble, tmp_path, change)
    assert error.code == "timeout"
