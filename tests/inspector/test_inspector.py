"""A client with an inspector: real tunnels, real services, and a browser's requests."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import trio
import trio.lowlevel
import trio_websocket

import trionat
from tests.e2e import legacy_peers, running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.running import ask, end_of, read_all, reset, wait_until
from tests.inspector.scene import ANY_PORT, Scene, inspected, scene, serving
from trionat.address import TCPAddress
from trionat.cli.connect import TextEvents
from trionat.client.inspector import guard
from trionat.client.inspector import inspector as inspector_module
from trionat.client.inspector import live as live_module
from trionat.client.inspector.access import Access
from trionat.client.inspector.har import Har
from trionat.client.native.session import NativeSession
from trionat.config.values import LOOPBACK
from trionat.errors import StartupError
from trionat.events import Inspecting
from trionat.transport import web_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


pytestmark = pytest.mark.limit(40)


async def http_handler(stream: trio.SocketStream) -> None:
    """Answer what is asked, in JSON and compressed; `/slow` never."""
    buffered = b""
    while True:
        while b"\r\n\r\n" not in buffered:
            data = await stream.receive_some()
            if not data:
                return
            buffered += data
        head, _, buffered = buffered.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        length = int(fields.get(b"Content-Length", 0))
        while len(buffered) < length:
            buffered += await stream.receive_some()
        body, buffered = buffered[:length], buffered[length:]
        line = head.partition(b"\r\n")[0].decode()
        if "/slow" in line:
            await trio.sleep_forever()
        said = {"line": line, "body": body.decode(), "key": fields.get(b"X-Api-Key", b"").decode()}
        answer = gzip.compress(json.dumps(said).encode())
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
            b"Set-Cookie: sid=topsecret\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )


@contextlib.asynccontextmanager
async def web(folder: Path, **settings: Any) -> AsyncIterator[Scene]:
    async with (
        services.serve(http_handler) as service,
        scene(folder, service.port, **settings) as here,
    ):
        yield here


async def request(here: Scene, data: bytes) -> bytes:
    """Visit, send, end, and return all that comes."""
    async with await here.visit() as visitor:
        await visitor.send_all(data)
        await visitor.send_eof()
        return await read_all(visitor)


POST = b"POST /orders?page=2 HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer hidden\r\nX-Api-Key: k1\r\nContent-Length: 5\r\n\r\nhello"


async def test_any_tcp_is_recorded(tmp_path: Path) -> None:
    async with services.echo(login=b"welcome\r\n") as echo, scene(tmp_path, echo.port) as here:
        async with await here.visit() as visitor:
            assert await ask(visitor, b"welcome\r\n"[:0]) == b""
            await visitor.send_all(b"\x00\x01hello")
            await visitor.send_eof()
            assert await read_all(visitor) == b"welcome\r\n\x00\x01hello"
        (row,) = await here.rows(1)
        assert row["why"] == "ended by both sides"
        assert (row["received"], row["sent"]) == (7, 16)
        assert row["address"].startswith("127.0.0.1:")
        assert row["first_byte"] is not None
        assert row["received_ended"] is not None
        assert row["sent_ended"] is not None
        kinds = {direction for direction, *_ in row["pieces"]}
        assert kinds == {"received", "sent"}
        received = await here.ask("/api/visitors/1/bytes/received")
        assert received.body == b"\x00\x01hello"
        assert (await here.ask("/api/visitors/1/bytes/sent?start=9&end=11")).body == b"\x00\x01"
        assert (await here.ask("/api/visitors/1/http")).json == {"exchanges": [], "rest": "no HTTP"}


@pytest.mark.parametrize("encryption", ["tls", "none"])
async def test_bulk_is_counted_and_its_beginning_kept(tmp_path: Path, encryption: str) -> None:
    async with services.echo() as echo, scene(tmp_path, echo.port, inspect_bytes=10_000) as here:
        data = bytes(range(256)) * 20_000

        async def send(visitor: trio.SocketStream) -> None:
            await visitor.send_all(data)
            await visitor.send_eof()

        async with await here.visit() as visitor, trio.open_nursery() as nursery:
            nursery.start_soon(send, visitor)
            assert await read_all(visitor) == data
        (row,) = await here.rows(1)
        assert row["received"] == row["sent"] == len(data)
        assert row["kept_received"] == row["kept_sent"] == 10_000
        assert (await here.ask("/api/visitors/1/bytes/sent")).body == data[:10_000]
        refused = await here.ask("/api/visitors/1/replay", {})
        assert (refused.status, refused.json["code"]) == (409, "conflict")


async def test_why_it_ended(tmp_path: Path) -> None:
    nothing = services.free_low_port()
    async with (
        services.resetter(after=1) as resetter,
        services.echo() as echo,
        scene(tmp_path, resetter.port, nothing, echo.port) as here,
    ):
        async with await here.visit(0) as visitor:
            await visitor.send_all(b"x")
            assert await end_of(visitor) == "reset"
        async with await here.visit(1) as visitor:
            await end_of(visitor)
        async with await here.visit(2) as visitor:
            await ask(visitor, b"hello")
            reset(visitor)
        rows = await here.rows(3)
        assert [row["why"] for row in rows] == [
            "the local service reset its connection",
            f"the local service 127.0.0.1:{nothing} cannot be reached: Connection refused",
            "the visitor reset its connection",
        ]
        assert [row["service"] for row in rows] == [
            str(service.local) for service in here.client.config.services
        ]


async def test_http_is_decoded(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST + b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        (row,) = await here.rows(1)
        assert (row["protocol"], row["title"], row["status"]) == (
            "HTTP",
            "POST /orders?page=2",
            200,
        )
        assert [len(row["secrets"][way]) for way in ("received", "sent")] == [2, 2]
        view = (await here.ask("/api/visitors/1/http")).json
        assert [each["request"]["first"][1] for each in view["exchanges"]] == [
            "/orders?page=2",
            "/2",
        ]
        assert view["exchanges"][0]["url"] == "http://shop.example/orders?page=2"
        answer = (await here.ask("/api/visitors/1/http/0/answer")).json
        assert json.loads(answer["text"])["body"] == "hello"
        assert (await here.ask("/api/visitors/1/http/0/request")).json["text"] == "hello"
        saved = await here.ask("/api/visitors/1/http/0/answer?download")
        assert saved.headers["content-disposition"].startswith("attachment")
        curl = (await here.ask("/api/visitors/1/http/0/curl")).body.decode()
        assert "--header 'Authorization: Bearer hidden'" in curl
        assert curl.endswith("--data-raw 'hello' 'http://shop.example/orders?page=2'")
        for path in ("http/7/curl", "http/0/nothing", "http/9/answer", "bytes/up"):
            assert (await here.ask(f"/api/visitors/1/{path}")).status == 404
        assert (await here.ask("/api/visitors/99")).status == 404


async def test_replay_as_it_was_and_edited(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await here.rows(1)
        as_it_was = await here.ask("/api/visitors/1/replay", {"request": 0})
        assert (as_it_was.status, as_it_was.json) == (201, {"number": 2})
        edit = {
            "method": "PUT",
            "target": "/edited",
            "fields": [["Host", "x"], ["X-Api-Key", "k2"]],
            "body": "hello ä",
        }
        edited = await here.ask("/api/visitors/1/replay", {"request": 0, "edit": edit})
        assert edited.json == {"number": 3}
        everything = await here.ask("/api/visitors/1/replay", {})
        assert everything.json == {"number": 4}
        rows = await here.rows(4)
        assert [row["replay_of"] for row in rows] == [None, 1, 1, 1]
        entries = (await here.ask("/api/har")).json["log"]["entries"]
        comments = [entry.get("comment") for entry in entries]
        assert comments == [None, *["replay of visitor 1"] * 3]
        assert [row["why"] for row in rows[1:]] == [
            "answered",
            "answered",
            "answered; the local service has closed its connection",
        ]
        said = [
            json.loads((await here.ask(f"/api/visitors/{number}/http/0/answer")).json["text"])
            for number in range(1, 5)
        ]
        assert said[1] == said[3] == said[0]
        assert said[2] == {"line": "PUT /edited HTTP/1.1", "body": "hello ä", "key": "k2"}


@pytest.mark.parametrize(
    ("wanted", "status", "field"),
    [
        ({"request": 5}, 422, "request"),
        ({"request": True}, 422, "request"),
        ({"edit": {}}, 422, "request"),
        ({"what": 1}, 422, "what"),
        ({"request": 0, "edit": []}, 422, "edit"),
        ({"request": 0, "edit": {"method": "GET", "target": "/", "fields": [], "x": 1}}, 422, "x"),
        (
            {"request": 0, "edit": {"method": "GET", "target": "/", "fields": [["a"]]}},
            422,
            "fields",
        ),
        ({"request": 0, "edit": {"method": "A B", "target": "/", "fields": []}}, 422, "method"),
        ({"request": 0, "edit": {"method": 1, "target": "/", "fields": []}}, 422, "method"),
        (
            {
                "request": 0,
                "edit": {"method": "PUT", "target": "/", "fields": [], "body": "\ud800"},
            },
            422,
            "body",
        ),
        ([], 422, None),
    ],
)
async def test_replays_that_cannot_be(
    tmp_path: Path, wanted: object, status: int, field: str | None
) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await here.rows(1)
        answer = await here.ask("/api/visitors/1/replay", wanted)
        assert (answer.status, answer.json.get("field")) == (status, field)
        assert len(here.recorder.recordings) == 1


async def test_a_replay_has_a_deadline_and_a_service_that_is_down_is_told(
    tmp_path: Path,
) -> None:
    port = services.free_low_port()
    async with services.serve(http_handler, port=port), scene(tmp_path, port) as here:
        async with await here.visit() as visitor:
            await visitor.send_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_until(lambda: any(r.count for r in here.recorder.recordings.values()))
        replays = here.inspector._replays
        assert replays is not None
        replays.within = 0.3
        answer = await here.ask("/api/visitors/1/replay", {"request": 0})
        assert answer.json == {"number": 2}
        await wait_until(lambda: here.recorder.recordings[2].ended is not None)
        assert here.recorder.recordings[2].why == "no complete answer within 0.3 s"
        replays._running = 16
        assert (await here.ask("/api/visitors/1/replay", {"request": 0})).status == 429
        replays._running = 0
    nothing = services.free_low_port()
    async with scene(tmp_path / "again", nothing) as here:
        async with await here.visit() as visitor:
            await end_of(visitor)
        await here.rows(1)
        answer = await here.ask("/api/visitors/1/replay", {})
        assert (answer.status, answer.json["code"]) == (502, "service_down")
        assert here.recorder.recordings[2].replay_of == 1


async def test_search_har_and_clear(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await request(here, b"GET /Needle HTTP/1.1\r\nHost: x\r\n\r\n")
        await here.rows(2)
        assert (await here.ask("/api/search?q=nEEdle")).json == {"numbers": [2], "more": False}
        assert (await here.ask("/api/search?q=http/1.1")).json["numbers"] == [2, 1]
        in_gzip = (await here.ask('/api/search?q="line":+"get+/needle')).json
        assert in_gzip == {"numbers": [2], "more": False}
        assert (await here.ask("/api/search?q=")).status == 422
        har = await here.ask("/api/har")
        assert har.headers["content-disposition"] == 'attachment; filename="trionat.har"'
        assert len(har.json["log"]["entries"]) == 2
        assert b"topsecret" not in har.body
        assert b"hidden" not in har.body
        one = await here.ask("/api/har?visitor=1&secrets=1")
        assert len(one.json["log"]["entries"]) == 1
        assert b"topsecret" in one.body
        assert (await here.ask("/api/har?visitor=77")).status == 404
        assert (await here.ask("/api/visitors", method="DELETE")).status == 204
        assert not here.recorder.recordings
        assert here.recorder.held == 0


async def test_a_search_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """There is one at a time, so the next one would have to wait for its end."""
    async with web(tmp_path, inspect_bytes=2**22) as here:
        asked, bomb = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", gzip.compress(bytes(64 * 2**20))
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
            bomb
        )
        for _ in range(10):
            recording = here.recorder.begin(0, here.client.config.services[0], None, None)
            recording.add(recording.received, memoryview(asked * 40))
            recording.add(recording.sent, memoryview((head + bomb) * 40))
        stream = await trio.open_tcp_stream(here.address.host, here.address.port)
        async with stream:
            question = f"GET /api/search?q=nowhere HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer {here.inspector.access.token}\r\n\r\n"
            await stream.send_all(question.encode())
            await trio.sleep(0.3)
        with trio.fail_after(2):
            answer = await here.ask("/api/search?q=host:+x")
        assert answer.json == {"numbers": list(range(10, 0, -1)), "more": False}


async def test_a_har_file_ends_when_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def write(har: Har, _: object) -> bytes:
        begun.set()
        while not har._is_stopped:
            sleep(0.01)
        ended.set()
        return b""

    monkeypatch.setattr(Har, "write", write)
    async with web(tmp_path) as here:
        stream = await trio.open_tcp_stream(here.address.host, here.address.port)
        async with stream:
            question = f"GET /api/har HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer {here.inspector.access.token}\r\n\r\n"
            await stream.send_all(question.encode())
            await wait_until(begun.is_set)
        await wait_until(ended.is_set)


async def test_websocket_messages(tmp_path: Path) -> None:
    async with services.websocket_echo() as service, scene(tmp_path, service.port) as here:
        public = here.client.services[0].public
        async with trio_websocket.open_websocket_url(f"ws://{public}/chat") as connection:
            await connection.send_message("hello")
            assert await connection.get_message() == "hello"
            await connection.send_message(b"\x00" * 200)
            await connection.get_message()
        await here.rows(1)
        view = (await here.ask("/api/visitors/1/http")).json
        assert view["exchanges"][0]["websocket"]
        assert view["rest"] == "WebSocket"
        messages = (await here.ask("/api/visitors/1/websocket")).json["messages"]
        assert [(m["direction"], m["kind"], m["text"]) for m in messages][:2] == [
            ("received", "text", "hello"),
            ("sent", "text", "hello"),
        ]
        har = (await here.ask("/api/har")).json["log"]["entries"][0]["_webSocketMessages"]
        assert [each["type"] for each in har][:2] == ["send", "receive"]


async def test_a_session_that_is_lost_goes_on_in_the_same_recording(tmp_path: Path) -> None:
    """Its visitor goes on over another tunnel; the service, and so the recording, notices nothing."""
    async with services.echo() as echo, scene(tmp_path, echo.port) as here:
        async with await here.visit() as visitor:
            assert await ask(visitor, b"before") == b"before"
            session = here.client._session
            assert session is not None
            assert isinstance(session, NativeSession)
            assert session._link is not None
            before = here.client.services
            here.events.clear()
            session._link.channel.endpoint.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            await wait_until(
                lambda: any(isinstance(e, trionat.Connected) for e in here.events), within=20
            )
            assert here.client.services == before
            assert await ask(visitor, b"after") == b"after"
        (row,) = await here.rows(1)
        assert (row["received"], row["why"]) == (11, "ended by both sides")
        assert not [event for event in here.events if isinstance(event, Inspecting)]


async def test_of_a_group_each_client_shows_its_own_visitors(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "server", 1) as ticket,
        services.echo(login=b"a") as one,
        services.echo(login=b"b") as two,
        inspected(tmp_path / "a", ticket, one.port, group="web") as a,
        inspected(tmp_path / "b", ticket, two.port, group="web") as b,
    ):
        assert a.client.services[0].public == b.client.services[0].public
        expected: dict[bytes, list[tuple[str, bytes]]] = {b"a": [], b"b": []}
        async with contextlib.AsyncExitStack() as stack:
            for number in range(6):  # all of them stay, so they are spread
                visitor = await stack.enter_async_context(await a.visit())
                served_by = bytes(await visitor.receive_some(1))
                words = f"visitor {number}".encode()
                assert await ask(visitor, words) == words
                host, port = visitor.socket.getsockname()
                expected[served_by].append((f"{host}:{port}", words))
        assert [len(each) for each in expected.values()] == [3, 3]
        for here, name in ((a, b"a"), (b, b"b")):
            shown = [
                (row["address"], (await here.ask(f"/api/visitors/{n}/bytes/received")).body)
                for n, row in enumerate(await here.rows(3), 1)
            ]
            assert shown == expected[name]
            other = b if here is a else a
            assert (await here.ask("/api/search?q=visitor")).json["numbers"] == [3, 2, 1]
            token = {"Authorization": f"Bearer {other.inspector.access.token}"}
            assert (await here.ask("/api/har", token=False, headers=token)).status == 401


# -- who may see it --


def test_the_url_is_what_a_click_opens() -> None:
    """Some terminals take a dash at the end for one behind the URL; and what no browser sends is in no log of anybody."""
    for _ in range(50):
        access = Access(TCPAddress("127.0.0.1", 4040))
        assert re.fullmatch(r"http://127\.0\.0\.1:4040/#token=[0-9a-f]{32}", access.url)
        assert access.url.endswith(access.token)
        assert access.token not in repr(access)


async def test_only_who_has_the_token_sees_anything(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await here.rows(1)
        token = here.inspector.access.token
        assert here.url == f"http://{here.address}/#token={token}"
        wrong: tuple[dict[str, str], ...] = (
            {},
            {
                "Cookie": f"token={token}; trionat-inspector={token}; trionat-inspector-{here.address.port}={token}"
            },
            *(
                {"Authorization": said}
                for said in (
                    "Bearer",
                    f"Bearer {token}x",
                    f"Bearer {token[:-1]}",
                    f"Basic {token}",
                    "Bearer \xe9",
                    token,
                )
            ),
        )
        for headers in wrong:
            for method, path in (
                ("GET", "/api/har"),
                ("GET", f"/api/har?token={token}"),
                ("GET", "/api/live"),
                ("GET", "/api/search?q=hello"),
                ("GET", "/api/visitors/1"),
                ("GET", "/api/visitors/1/http"),
                ("GET", "/api/visitors/1/http/0/curl"),
                ("GET", "/api/visitors/1/bytes/received?download"),
                ("POST", "/api/visitors/1/replay"),
                ("DELETE", "/api/visitors"),
                ("GET", "/api/nothing"),
                ("GET", "/nothing"),
                ("GET", "//api/har"),
                ("GET", "/pagesx"),
                ("OPTIONS", "/api/har"),
            ):
                answer = await here.ask(path, method=method, token=False, headers=headers)
                assert (answer.status, answer.json["code"]) == (401, "unauthorized"), (
                    path,
                    headers,
                )
                assert b"hello" not in answer.body
                assert "set-cookie" not in answer.headers
        assert len(here.recorder.recordings) == 1, "it has replayed, or cleared"
        assert (await here.ask("/api/har")).status == 200


async def test_the_files_of_the_pages_are_for_everybody(tmp_path: Path) -> None:
    """There is nothing in them that is not in the package, and no way from them to anything else."""
    async with web(tmp_path) as here:
        page = await here.ask("/", token=False)
        assert page.status == 200
        assert b"/pages/main.js" in page.body
        tag = {"If-None-Match": page.headers["etag"]}
        assert (await here.ask("/", headers=tag, token=False)).status == 304
        folder = Path(inspector_module.__file__).parent / "pages"
        for file in folder.rglob("*.*"):
            answer = await here.ask(f"/pages/{file.relative_to(folder).as_posix()}", token=False)
            assert answer.body == file.read_bytes()
        for path in (
            "/pages/../api/har",
            "/pages/%2e%2e/api/har",
            "/pages/..%2fapi%2fhar",
            "/pages/..%2f..%2faccess.py",
            "/pages/%2fetc%2fpasswd",
            "/pages/",
            "/pages/%00",
            "/pages/%0aapi",
        ):
            answer = await here.ask(path, token=False)
            assert (answer.status, answer.json["code"]) == (404, "not_found"), path


async def test_the_log_never_has_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with web(tmp_path) as here:
        token = here.inspector.access.token
        for path in ("/", "/api/nothing", f"/?token={token}", "/api/visitors/7"):
            await here.ask(path)
        await exchange(
            here, f"GET /api/har HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        for nonsense in (
            f"nonsense {token}\r\n\r\n",
            f"GET /api/har HTTP/1.1\r\nHost: {here.address}\r\nAuthorization : Bearer {token}\r\n\r\n",
            f"GET /api/har HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer '{token}\0\r\n\r\n",
        ):
            heard = await exchange(here, nonsense.encode())
            assert heard.startswith(b"HTTP/1.1 400 ")
        assert token not in repr(here.events)
        assert token not in repr(here.inspector)
    assert caplog.records
    assert token not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "localhost.evil.example:{port}"},
        {"Host": "user@127.0.0.1:{port}"},
    ],
)
async def test_other_names_of_this_machine_are_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with web(tmp_path) as here:
        said = {name: value.format(port=here.address.port) for name, value in headers.items()}
        answer = await here.ask("/", headers=said)
        assert (answer.status, answer.json["code"]) == (421, "misdirected")
        for name in ("localhost", "127.0.0.1", "LOCALHOST"):
            said = {"Host": f"{name}:{here.address.port}"}
            assert (await here.ask("/", headers=said)).status == 200


async def test_pages_of_other_sites_get_nothing(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await here.rows(1)
        own = f"http://{here.address}"
        for headers, method, path, status in (
            ({"Sec-Fetch-Site": "same-site"}, "GET", "/api/har", 403),
            ({"Sec-Fetch-Site": "same-site"}, "GET", "/pages/main.js", 403),
            (
                {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
                "GET",
                "/api/har",
                403,
            ),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "GET", "/", 200),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "GET", "/", 403),
            ({"Sec-Fetch-Site": "same-origin", "Origin": own}, "GET", "/api/har", 200),
            ({"Origin": "http://evil.example"}, "DELETE", "/api/visitors", 403),
            ({"Origin": "null"}, "DELETE", "/api/visitors", 403),
            (
                {"Origin": f"http://127.0.0.1:{here.address.port + 1}"},
                "DELETE",
                "/api/visitors",
                403,
            ),
            ({"Origin": own}, "DELETE", "/api/visitors", 204),
        ):
            answer = await here.ask(path, headers=headers, method=method)
            assert answer.status == status, headers
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert not here.recorder.recordings


async def test_what_a_replay_must_look_like(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        await request(here, POST)
        await here.rows(1)
        path = "/api/visitors/1/replay"
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await here.ask(path, body=b"request=0", headers=form)).status == 415
        js = {"Content-Type": "application/json"}
        assert (await here.ask(path, body=b"{", headers=js)).status == 400
        assert (await here.ask(path, body=b"[" * 100_000, headers=js)).status == 400
        assert (await here.ask(path, body=b" " * (5 * 2**20), headers=js)).status == 413
        assert (await here.ask(path)).status == 405
        assert (await here.ask("/api/nothing")).json["code"] == "not_found"
        for name in (
            "../application.py",
            "..%2fapplication.py",
            "%2e%2e/access.py",
            "main.js/",
            "..",
        ):
            assert (await here.ask(f"/pages/{name}")).status == 404
        assert len(here.recorder.recordings) == 1


async def test_an_answer_to_what_nobody_has_read_leaves_no_connection_behind(
    tmp_path: Path,
) -> None:
    """anycorn would wait for itself for ever: in the queue of the pieces, which nobody reads, it says that the answer is complete."""
    async with web(tmp_path) as here:
        token = here.inspector.access.token
        stream = await trio.open_tcp_stream(here.address.host, here.address.port)
        head = f"GET /pages/main.js HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with stream:
            await stream.send_all(head.encode() + b"1\r\nx\r\n" * 1000)
            with trio.fail_after(10):
                answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_every_answer_says_what_a_browser_may_do(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        for path, token in (
            ("/", True),
            ("/", False),
            ("/api/nothing", True),
            ("/pages/style.css", True),
            ("/api/visitors/1", True),
        ):
            headers = (await here.ask(path, token=token)).headers
            assert headers["content-security-policy"].startswith(
                "default-src 'none'; script-src 'self'"
            )
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "server" not in headers


# -- live --


class Events:
    """What a browser hears, in a connection of its own."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.text = b""

    async def until(self, words: bytes) -> None:
        with trio.fail_after(10):
            while words not in self.text:
                data = await self.stream.receive_some()
                assert data
                self.text += data


async def listen(here: Scene) -> Events:
    stream = await trio.open_tcp_stream(here.address.host, here.address.port)
    await stream.send_all(
        f"GET /api/live HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer {here.inspector.access.token}\r\n\r\n".encode()
    )
    return Events(stream)


async def test_the_list_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "INTERVAL", 0.1)
    monkeypatch.setattr(live_module, "ALIVE_AFTER", 0.5)
    async with services.echo() as echo, scene(tmp_path, echo.port) as here:
        events = await listen(here)
        async with events.stream:
            await events.until(b'event: begin\ndata: {"visitors": 0}')
            async with await here.visit() as visitor:
                await ask(visitor, b"x" * 5000)
                await events.until(b'"received": 5000')
                assert here.recorder.recordings[1].rate > 0 or b'"rate": ' in events.text
            await events.until(b'"why": "ended by both sides"')
            await here.ask("/api/visitors", method="DELETE")
            await events.until(b'"gone": [1]')
            await events.until(b": alive")
        await wait_until(lambda: not here.recorder.watchers)


async def test_only_so_many_pages_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "MOST_BROWSERS", 2)
    async with web(tmp_path) as here:
        heard = [await listen(here) for _ in range(2)]
        for each in heard:
            await each.until(b"begin")
        assert (await here.ask("/api/live")).status == 503
        for each in heard:
            await each.stream.aclose()


async def test_a_browser_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """Neither the tunnel nor the end of the client, although what is meant for it waits in full buffers."""
    async with services.echo() as echo, scene(tmp_path, echo.port) as here:
        stuck = trio.socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stuck.connect((here.address.host, here.address.port))
        async with await here.visit() as visitor:
            await ask(visitor, b"x" * 500_000)
            token = here.inspector.access.token
            question = f"GET /api/visitors/1/bytes/sent HTTP/1.1\r\nHost: {here.address}\r\nAuthorization: Bearer {token}\r\n\r\n"
            for _ in range(30):
                await stuck.send(question.encode())
            await trio.sleep(0.3)
            assert await ask(visitor, b"still here") == b"still here"
        await here.rows(1)
        since = trio.current_time()
    assert trio.current_time() - since < 5
    stuck.close()


async def exchange(here: Scene, said: bytes) -> bytes:
    """Say something that no browser would, and return all that is answered."""
    heard = b""
    stream = await trio.open_tcp_stream(here.address.host, here.address.port)
    async with stream:
        with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(said)
            async for piece in stream:
                heard += piece
    return heard


async def test_slow_requests_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_connection, "_HEAD_PATIENCE", 0.5)
    monkeypatch.setattr(guard, "_BODY_PATIENCE", 0.5)
    async with web(tmp_path) as here:
        assert await exchange(here, b"GET / HTTP/1.1\r\nHost: loc") == b""
        fields = f"Host: {here.address}\r\nAuthorization: Bearer {here.inspector.access.token}\r\nContent-Type: application/json\r\n"
        await request(here, POST)
        await here.rows(1)
        head = f"POST /api/visitors/1/replay HTTP/1.1\r\n{fields}Content-Length: 99\r\n\r\n{{"
        assert (await exchange(here, head.encode())).startswith(b"HTTP/1.1 408 ")
        # The answer has begun; the request, whose body nobody wants, goes on and on.
        head = f"GET /api/live HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
        assert b"event: visitors" in await exchange(here, head.encode())


async def test_long_heads_are_refused(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        head = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 5000
        assert (await exchange(here, head)).startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


async def test_of_too_many_connections_an_idle_one_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector_module, "_MOST_CONNECTIONS", 5)
    async with web(tmp_path) as here, contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                await trio.open_tcp_stream(here.address.host, here.address.port)
            )
            for _ in range(8)
        ]
        with trio.fail_after(5):
            assert await streams[0].receive_some(1) == b""
        assert (await here.ask("/")).status == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
async def test_the_kernel_gives_up_who_acknowledges_nothing(tmp_path: Path) -> None:
    async with web(tmp_path) as here:
        assert (await here.ask("/")).status == 200
        sock = here.inspector._listener.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


# -- where it is, and what becomes of it --


async def test_the_next_port_where_the_usual_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = services.free_low_port()
    monkeypatch.setattr(inspector_module, "DEFAULT_ADDR", TCPAddress("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)):
        async with web(tmp_path, inspect_addr=None, inspect=True) as here:
            assert port < here.address.port < port + 20
    monkeypatch.setattr(inspector_module, "_PORTS", 1)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(StartupError, match="all are taken"),
    ):
        inspector_module.Inspector.open(trionat.ClientConfig(inspect=True))


async def test_an_address_that_was_asked_for_and_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TCPAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartupError, match=rf"cannot listen on {address} for the inspector"):
            inspector_module.Inspector.open(trionat.ClientConfig(inspect_addr=address))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("4041", "127.0.0.1:4041"),
        ("[::1]:1", "[::1]:1"),
        ("localhost:0", "localhost:0"),
        ("127.0.0.9:1", "127.0.0.9:1"),
    ],
)
def test_addresses_of_this_machine(text: str, address: str) -> None:
    assert str(LOOPBACK.read(text)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0:4040", "can be reached from other machines"),
        ("192.0.2.1:4040", "write 127.0.0.1:4040"),
        ("example.com:4040", "can be reached from other machines"),
        ("[::]:4040", "can be reached from other machines"),
        ("/run/inspect.sock", "is not HOST:PORT"),
    ],
)
def test_addresses_that_others_could_reach(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LOOPBACK.read(text)


async def test_a_bug_of_it_ends_no_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_errors: list[logging.LogRecord]
) -> None:
    """Neither one in an answer, nor one that ends all of the inspector, which begins anew."""
    monkeypatch.setattr(inspector_module, "_FIRST_PAUSE", 0.05)
    async with services.echo() as echo, scene(tmp_path, echo.port) as here:
        async with await here.visit() as visitor:
            await ask(visitor, b"one")

            def broken(_: object) -> None:
                raise RuntimeError("a bug")

            with monkeypatch.context() as patch:
                patch.setattr("trionat.client.inspector.api.visitors.as_row", broken)
                answer = await here.ask("/api/visitors/1")
                assert answer.status == 500
                assert answer.json["code"] == "internal"
            await wait_until(lambda: len(expected_errors) > 0)
            assert "a bug" in str(expected_errors[0].exc_info)
            with monkeypatch.context() as patch:
                patch.setattr(live_module, "INTERVAL", "no number")
                events = await listen(here)
                await wait_until(lambda: len(expected_errors) > 1)
                await events.stream.aclose()
            await wait_until(lambda: not here.recorder.watchers)
            assert await ask(visitor, b"two") == b"two"
            with trio.fail_after(10):
                while True:
                    with contextlib.suppress(OSError, trio.BrokenResourceError):
                        if (await here.ask("/")).status == 200:
                            break
                    await trio.sleep(0.05)
        (row,) = await here.rows(1)
        assert row["received"] == 6


async def test_off_it_is_not_there(tmp_path: Path) -> None:
    async with services.echo() as echo, scene(tmp_path, echo.port, inspect_addr=None) as here:
        assert here.client._inspector is None
        assert here.url == ""
        async with await here.visit() as visitor:
            assert await ask(visitor, b"hello") == b"hello"


# -- at the command line, and at servers of NAT --


async def fetched(printed: str, path: str) -> bytes:
    """Return what a process's inspector has; `printed` is the URL that it told."""
    url = urlsplit(printed)
    token = url.fragment.removeprefix("token=")
    question = f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    async with await trio.open_tcp_stream(url.hostname or "", url.port or 0) as stream:
        await stream.send_all(question.encode())
        return (await read_all(stream)).partition(b"\r\n\r\n")[2]


async def test_the_command_tells_the_url(tmp_path: Path) -> None:
    """As an event for scripts, first of all, and nowhere in the log."""
    async with (
        services.echo() as echo,
        running.server(tmp_path / "server") as server,
        running.client_process(
            tmp_path / "client", server.ticket, str(echo.port), "--inspect-addr", "127.0.0.1:0"
        ) as client,
    ):
        event = await client.process.next_event("inspecting", within=running.START_TIMEOUT)
        assert set(event) == {"event", "url"}
        await client.wait_connected()
        token = urlsplit(event["url"]).fragment.removeprefix("token=")
        async with await client.visit() as visitor:
            assert await ask(visitor, b"hello") == b"hello"
        assert await fetched(event["url"], "/api/visitors/1/bytes/sent") == b"hello"
        assert token not in client.log_text()


def test_a_person_reads_it_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    TextEvents()(Inspecting("http://127.0.0.1:4040/#token=abc"))
    assert capsys.readouterr().out == "inspector: http://127.0.0.1:4040/#token=abc\n"


async def test_without_its_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trionat.libraries.find_spec", lambda _: None)
    config = trionat.ClientConfig(inspect=True, services=(trionat.parse_service("8080"),))
    with pytest.raises(StartupError, match=r"run pip install '\.\[console\]'"):
        await trionat.Client(config).run()


def test_nothing_of_it_is_imported_where_nobody_wants_it() -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, trionat.cli, trionat.client.app; print(*sorted(n for n in sys.modules if n.partition('.')[0] in ('starlette', 'anycorn') or 'inspector' in n))",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout.strip() == ""


@pytest.mark.parametrize("dialect", list(legacy_peers.Dialect), ids=lambda dialect: dialect.value)
async def test_at_a_server_of_nat(dialect: legacy_peers.Dialect, tmp_path: Path) -> None:
    """It tells of nobody who he is; all else is as ever."""
    server = legacy_peers.LegacyDialer(dialect=dialect, users={"alice": "secret word"})
    async with services.echo() as echo, legacy_peers.running_server(server):
        config = trionat.ClientConfig(
            dialect=dialect.value,
            controller_addr=TCPAddress("127.0.0.1", server.control_port),
            tunnel_server_addr=TCPAddress("127.0.0.1", server.tunnel_port),
            services=(trionat.parse_service(str(echo.port)),),
            state_dir=tmp_path,
            inspect_addr=ANY_PORT,
            drain_grace=0.5,
        )
        auth = trionat.AuthConfig(username="alice", password="secret word")
        async with trionat.connect(config, auth) as client:
            here = Scene(client, [], "")
            async with await here.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
            (row,) = await here.rows(1)
    assert row["address"] is None
    assert (row["received"], row["sent"], row["why"]) == (5, 5, "ended by both sides")


async def test_services_with_names(tmp_path: Path) -> None:
    """A request by name as the service gets it, and TLS that is passed through: its name, and bytes."""
    async with (
        services.serve(http_handler) as web,
        services.echo() as echo,
        named_server(tmp_path) as server,
        running.client_process(
            tmp_path / "client",
            server.server.ticket,
            *(f"http:{web.port}@shop", f"tls:{echo.port}@db", "--inspect-addr", "127.0.0.1:0"),
        ) as client,
    ):
        event = await client.process.next_event("inspecting", within=running.START_TIMEOUT)
        url = str(event["url"])
        await client.wait_connected()
        answer = await server.ask(f"shop.{DOMAIN}", "/orders", "--compressed")
        assert json.loads(answer.body)["line"] == "GET /orders HTTP/1.1"
        async with await trio.open_tcp_stream("127.0.0.1", server.https) as visitor:
            await visitor.send_all(client_hello(f"db.{DOMAIN}"))
            await visitor.receive_some()
        view = json.loads(await fetched(url, "/api/visitors/1/http"))
        assert view["exchanges"][0]["url"] == f"https://shop.{DOMAIN}:{server.https}/orders"
        row = json.loads(await fetched(url, "/api/visitors/2"))
        assert (row["protocol"], row["title"]) == ("TLS", f"db.{DOMAIN}")


def client_hello(name: str) -> bytes:
    """Return what a browser says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()
