"""What no request gets past: other names and pages, sizes, times, methods, and paths."""

from __future__ import annotations

import http.client
import json
import logging
import pickle
import re
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import h11
import pytest
import trio

from tests.console.browsing import Browser, ask, read_answer, served
from tests.console.serving import send, serving
from trionat.address import TCPAddress
from trionat.config.server import ServerConfig
from trionat.server.console import guard
from trionat.server.console.application import OPERATIONS
from trionat.server.console.console import is_loopback
from trionat.transport import web_connection

if TYPE_CHECKING:
    from pathlib import Path

    from tests.console.browsing import Served

pytestmark = pytest.mark.limit(30)


async def exchange(port: int, said: bytes, *, within: float = 5.0) -> bytes:
    """Say something that no client would, and return all that is answered."""
    heard = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        with trio.move_on_after(within), suppress(trio.BrokenResourceError):
            await stream.send_all(said)
            async for piece in stream:
                heard += piece
    return heard


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 401),
        ("localhost:9999", 401),  # as ssh -L leads here
        ("[::1]:{port}", 401),
        ("LOCALHOST.", 401),
        ("console.example.com", 401),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:{port}", 421),
        ("127.0.0.2:{port}", 421),
        ("", 421),
        ("localhost@evil.example", 421),
    ],
)
async def test_a_name_that_was_led_here_is_not_answered(
    tmp_path: Path, host: str, status: int
) -> None:
    async with served(tmp_path, console_hosts=("console.example.com",)) as server:
        given = {"Host": host.format(port=server.port)}
        answer = await ask(server.port, "GET", "/api/v1/me", headers=given)
        assert answer.status == status
        assert answer.code == ("misdirected" if status == 421 else "unauthorized")


async def test_a_page_of_another_site_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        own = f"http://127.0.0.1:{server.port}"
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{server.port + 1}"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": own, "X-CSRF-Token": ""},
            {"Origin": own, "X-CSRF-Token": "é"},
            {"Origin": own, "X-CSRF-Token": browser.csrf[:-1]},
        ):
            assert (await browser.post("/api/v1/drain", **headers)).code == "forbidden"
        login = {"username": "trionat", "password": server.password}
        answer = await browser.post("/api/v1/login", login, Origin="https://evil.example")
        assert answer.code == "forbidden"
        assert not (await browser.get("/api/v1/drain")).values["draining"]
        answer = await browser.post(
            "/api/v1/drain", Origin=own, **{"Sec-Fetch-Site": "same-origin"}
        )
        assert answer.values["draining"]


async def test_the_cookie_alone_is_nobody(tmp_path: Path) -> None:
    """A browser sends it to all ports of the host: whoever runs a service there has it."""
    async with served(tmp_path) as server:
        browser = await server.browser()
        stolen = {"Cookie": browser.cookie}
        for path in ("/api/v1/me", "/metrics", "/api/v1/live", "/api/v1/live?csrf=x"):
            answer = await ask(server.port, "GET", path, headers=stolen)
            assert answer.code == "unauthorized", path
        answer = await ask(server.port, "GET", f"/api/v1/me?csrf={browser.csrf}", headers=stolen)
        assert answer.code == "invalid", "the query is for the stream alone"
        planted = Browser(server.port, browser.cookie, "of another login")
        assert (await planted.get("/api/v1/me")).code == "unauthorized"
        assert (await browser.get("/api/v1/me")).status == 200


async def test_nothing_at_all_is_done_by_the_cookie_alone(tmp_path: Path) -> None:
    """Whoever has got it at another port is no browser, and says in all other headers what the pages say."""
    async with served(tmp_path) as server:
        browser = await server.browser()
        stolen = {
            "Cookie": browser.cookie,
            "Origin": f"http://127.0.0.1:{server.port}",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
        }
        asked = 0
        for operation in OPERATIONS:
            if not operation.needs_login:
                continue
            path = re.sub(r"\{.*?\}", "1", operation.whole_path)
            for guess in ({}, {"X-CSRF-Token": "guess"}, {"X-CSRF-Token": browser.cookie}):
                answer = await ask(
                    server.port, operation.method, path, headers={**stolen, **guess}, body=b"{}"
                )
                refused = (401, 403) if operation.method == "GET" else (403,)
                assert answer.status in refused, (operation.method, path)
                assert answer.code in ("unauthorized", "forbidden")
                asked += 1
        assert asked > 90
        assert (await browser.get("/api/v1/me")).status == 200, "it has logged out"


async def test_methods_are_what_they_are(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        for method in ("POST", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"):
            answer = await ask(server.port, method, "/api/v1/sessions", headers=browser.headers)
            assert (answer.status, answer.headers["allow"]) == (405, "GET")
        for path in ("/healthz", "/metrics"):
            answer = await ask(server.port, "HEAD", path, headers=browser.headers)
            assert (answer.status, answer.body) == (200, b"")
            answer = await ask(server.port, "POST", path, headers=browser.headers)
            assert answer.headers["allow"] == "GET, HEAD"
        for headers in ({"X-HTTP-Method-Override": "DELETE"}, {"X-Method-Override": "POST"}):
            assert (await browser.get("/api/v1/drain?_method=POST", **headers)).status == 422
            assert not (await browser.get("/api/v1/drain", **headers)).values["draining"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/v1/sessions/..%2f..%2fserver.key",
        "//etc/passwd",
        "/api/v1/",
        "/api/v1/sessions/",
        "/api/v1//sessions",
        "/..%5c..%5cserver.key",
        "/%00",
    ],
)
async def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as server:
        browser = await server.browser()
        answer = await browser.get(path)
        assert answer.code == "not_found"
        assert b"PRIVATE" not in answer.body


async def test_every_answer_has_the_headers(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        for path in ("/healthz", "/api/v1/me", "/nowhere", "/api/v1/openapi.json"):
            headers = (await ask(server.port, "GET", path)).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("text/plain", b"{}", "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"username=a&password=b", "unsupported_media_type"),
        ("application/json", b"", "no_json"),
        ("application/json", b"{", "no_json"),
        ("application/json", b"\xff\xfe", "no_json"),
        ("application/json", b"[" * 60000, "no_json"),
        ("application/json", b'{"username": NaN, "password": 1}', "no_json"),
        ("application/json", b"[]", "invalid"),
        ("application/json", b'{"username": 1, "password": "x"}', "invalid"),
        ("application/json", b'{"username": "a"}', "invalid"),
        ("application/json", b'{"username": "a", "password": "b", "admin": true}', "invalid"),
        ("application/json", b'{"username": "\\ud800", "password": "b"}', "invalid"),
        ("application/json", b'{"username": "a\\u0000", "password": "b"}', "invalid"),
        ("application/json", b'"' + b"x" * 65536 + b'"', "too_large"),
    ],
)
async def test_only_json_of_the_right_shape_comes_in(
    tmp_path: Path, kind: str, body: bytes, code: str
) -> None:
    async with served(tmp_path) as server:
        answer = await ask(
            server.port, "POST", "/api/v1/login", headers={"Content-Type": kind}, body=body
        )
        assert answer.code == code
        if code == "invalid" and body != b"[]":
            assert answer.values["field"] in {"username", "password", "admin"}


async def test_a_body_without_a_length_is_counted_too(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        head = "POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        heard = await exchange(server.port, head.encode() + 40 * chunk)
        assert heard.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"too_large"' in heard


async def test_a_body_in_too_many_pieces_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        head = "POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        heard = await exchange(server.port, head.encode() + b"1\r\n \r\n" * 60_000)
        assert heard.startswith(b"HTTP/1.1 413 ")
        few = b"1\r\n \r\n" * 4000 + b"0\r\n\r\n"
        assert (await exchange(server.port, head.encode() + few)).startswith(b"HTTP/1.1 400 ")


async def test_slow_heads_and_bodies_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_connection, "_HEAD_PATIENCE", 0.5)
    monkeypatch.setattr(guard, "_BODY_PATIENCE", 0.5)
    async with served(tmp_path) as server:
        began = trio.current_time()
        assert await exchange(server.port, b"GET / HTTP/1.1\r\nHost: loc") == b""
        head = b"POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        assert (await exchange(server.port, head)).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began < 5
        # One that says a byte now and then gains nothing by that.
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"G")
                    await trio.sleep(0.05)


async def test_long_heads_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        head = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 5000
        heard = await exchange(server.port, head)
        assert heard.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    "said",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\xff\xff\xff\xff",
        b"GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\0" * 100,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
    ],
)
async def test_nonsense_costs_its_connection_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    caplog.set_level(logging.DEBUG, logger="trionat")
    async with served(tmp_path) as server:
        heard = await exchange(server.port, said, within=1.0)
        assert b" 101 " not in heard
        assert (await ask(server.port, "GET", "/healthz")).status == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_two_lengths_end_the_connection(tmp_path: Path) -> None:
    """What follows may be a request to one, and a body to another who stands between (RFC 9112 6.1)."""
    async with served(tmp_path) as server:
        both = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        after = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        heard = await exchange(server.port, both + after)
        assert heard.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in heard.lower()


async def test_a_proxy_that_is_named_tells_who_asks(tmp_path: Path) -> None:
    from ipaddress import ip_network  # noqa: PLC0415

    async def guess(server: Served, said: str) -> int:
        browser = Browser(server.port)
        body = json.dumps({"username": "trionat", "password": "x"}).encode()
        headers = {"Content-Type": "application/json", "X-Forwarded-For": said}
        return (await ask(browser.port, "POST", "/api/v1/login", headers=headers, body=body)).status

    proxies = (ip_network("127.0.0.1"),)
    async with served(tmp_path / "a", ban_after=1, trusted_proxies=proxies) as server:
        assert await guess(server, "198.51.100.1, 192.0.2.7") == 401
        assert await guess(server, "192.0.2.7") == 429
        assert await guess(server, "192.0.2.7, 192.0.2.8") == 401
        assert await guess(server, "nonsense") == 401  # the proxy itself
        assert await guess(server, "nonsense") == 429
    # The default, named: it means more then.
    named = (ip_network("127.0.0.0/8"), ip_network("::1"))
    assert named == ServerConfig().trusted_proxies
    async with served(tmp_path / "c", ban_after=1, trusted_proxies=named) as server:
        assert await guess(server, "192.0.2.7") == 401
        assert await guess(server, "192.0.2.8") == 401
    async with served(tmp_path / "b", ban_after=1) as server:
        assert await guess(server, "192.0.2.7") == 401
        assert await guess(server, "192.0.2.8") == 429


async def test_there_are_not_too_many_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionat.server.console.console._MOST_CONNECTIONS", 5)
    async with served(tmp_path) as server, AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", server.port))
            for _ in range(8)
        ]
        with trio.fail_after(2):
            assert await streams[0].receive_some(1) == b""
        assert (await ask(server.port, "GET", "/healthz")).status == 200


async def test_who_has_waited_longest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not who came first: that is a browser whose connection is in use."""
    monkeypatch.setattr("trionat.server.console.console._MOST_CONNECTIONS", 3)
    async with served(tmp_path) as server, AsyncExitStack() as stack:

        async def come() -> trio.SocketStream:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            return await stack.enter_async_context(stream)

        async def still_asks(stream: trio.SocketStream) -> bool:
            protocol = h11.Connection(h11.CLIENT)
            request = h11.Request(method="GET", target="/healthz", headers=[("Host", "localhost")])
            await stream.send_all(protocol.send(request) or b"")
            protocol.send(h11.EndOfMessage())
            return (await read_answer(stream, protocol)).status == 200

        first = await come()
        assert await still_asks(first)
        second, third = await come(), await come()
        await trio.sleep(0.1)
        assert await still_asks(first)
        await come()
        with trio.fail_after(2):
            assert await second.receive_some(1) == b""
        assert await still_asks(first)
        assert await still_asks(third)


async def test_half_a_surrogate_pair_as_a_name_is_refused(
    tmp_path: Path, expected_errors: list[logging.LogRecord]
) -> None:
    async with serving(tmp_path) as api:
        post = partial(send, api.url, "POST", "/api/v1/login", b'{"\\ud800": 1}')
        status = await trio.to_thread.run_sync(post)
        log = await api.ask("GET", "/log?limit=1000")
        assert (status, log.status, expected_errors) == (422, 200, [])


async def test_an_origin_that_is_none_is_another_site(
    tmp_path: Path, expected_errors: list[logging.LogRecord]
) -> None:
    async with serving(tmp_path) as api:
        post = partial(send, api.url, "POST", "/api/v1/login", b"{}", Origin="http://[")
        assert await trio.to_thread.run_sync(post) == 403
        assert not expected_errors


async def test_a_stream_that_is_asked_for_with_too_much_is_no_bug(
    tmp_path: Path, expected_errors: list[logging.LogRecord]
) -> None:
    async with serving(tmp_path) as api:
        get = partial(send, api.url, "GET", "/api/v1/live", b" " * 70_000)
        with suppress(OSError, http.client.HTTPException):
            await trio.to_thread.run_sync(
                partial(get, Authorization=f"Bearer {api.token}"), abandon_on_cancel=True
            )
        await trio.sleep(0.5)
        assert not expected_errors


def test_a_default_stays_one_in_another_process() -> None:
    config = pickle.loads(pickle.dumps(ServerConfig()))
    assert config == ServerConfig()
    assert config.named_proxies == ()
    named = attrs.evolve(config, trusted_proxies=tuple(config.trusted_proxies))
    assert pickle.loads(pickle.dumps(named)).named_proxies == ServerConfig().trusted_proxies


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        *(("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)),
        *(("127.example.com", False), ("127.", False), ("0.0.0.0", False), ("::", False)),
        ("192.0.2.7", False),
    ],
)
def test_loopback_is_an_address(host: str, is_one: bool) -> None:
    assert is_loopback(host) is is_one


async def test_handshakes_are_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trionat.server.console.console._MOST_CONNECTIONS", 4)
    every = TCPAddress("0.0.0.0", 0)
    async with served(tmp_path, console_addr=every) as server, trio.open_nursery() as nursery:
        heard: list[bytes] = []

        async def stay_silent() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                with suppress(trio.BrokenResourceError):
                    heard.append(bytes(await stream.receive_some(1)))

        for _ in range(12):
            nursery.start_soon(stay_silent)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert len(heard) >= 8
