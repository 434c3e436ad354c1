"""What goes on to a service is what we have routed: a real nginx, a real Node and a Python service see the same requests as we do.

Each case is what an attacker may send on one connection: the ways to hide a request from one of two readers that are known
(RFC 9112 11.2; PortSwigger's "HTTP Desync Attacks" and those after it; the CVEs of llhttp, nginx, Apache, HAProxy, Go, gunicorn and aiohttp). The bytes
that come out of our endpoint go to the services as they are, with one request of the test's behind them, which a hidden one would swallow or follow.
"""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs
import pytest
import trio

from tests.e2e import services
from tests.unit.memory import memory_pair
from trionat.protocol.http.head import Origin, RequestHead
from trionat.server.names.http_connection import HttpConnection, Refusal
from trionat.server.names.http_endpoint import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

H: Final = b"Host: a.example\r\n"
TE: Final = b"Transfer-Encoding: chunked\r\n"
HIDDEN: Final = b"GET /hidden HTTP/1.1\r\nHost: b.example\r\n\r\n"
SENTINEL: Final = b"GET /sentinel HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
CHUNKS: Final = b"5\r\nhello\r\n0\r\n\r\n"


class Seen(NamedTuple):
    """A request, as somebody sees it."""

    method: str
    target: str
    host: str
    body: str


def post(*lines: bytes, body: bytes = b"", first: bytes = b"POST /1 HTTP/1.1") -> bytes:
    return first + b"\r\n" + H + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def te(value: bytes, body: bytes = CHUNKS + HIDDEN) -> bytes:
    """A body of which a reader that does not know this encoding sees the first bytes only."""
    return post(b"Transfer-Encoding:" + value, body=body)


PASSED: Final = {
    "plain": (post(), ["/1"]),
    "pipelined": (post() + HIDDEN + post(first=b"GET /3 HTTP/1.1"), ["/1", "/hidden", "/3"]),
    "hidden in a body": (post(length(HIDDEN), body=HIDDEN), ["/1"]),
    "hidden in a chunk": (
        post(TE[:-2], body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)),
        ["/1"],
    ),
    "an end in a chunk": (post(TE[:-2], body=b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), ["/1"]),
    "chunks, then another": (post(TE[:-2], body=CHUNKS) + HIDDEN, ["/1", "/hidden"]),
    "extensions": (
        post(TE[:-2], body=b'5;a=b;c="d e"\r\nhello\r\n0;x=y\r\n\r\n') + HIDDEN,
        ["/1", "/hidden"],
    ),
    "an extension that is a chunk": (post(TE[:-2], body=b"2;0\r\nxx\r\n4;0000\r\nabcd\r\n0\r\n\r\n"), ["/1"]),
    "zeros": (post(TE[:-2], body=b"0000000000000005\r\nhello\r\n00\r\n\r\n"), ["/1"]),
    "many zeros": (post(TE[:-2], body=b"0" * 200 + b"5\r\nhello\r\n0\r\n\r\n"), ["/1"]),
    "fields behind": (post(TE[:-2], body=b"5\r\nhello\r\n0\r\nX-T: 1\r\nCookie: x\r\n\r\n"), ["/1"]),
    "upper case": (post(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS), ["/1"]),
    "a tab before": (te(b"\tchunked", CHUNKS), ["/1"]),
    "spaces before": (te(b"   chunked", CHUNKS), ["/1"]),
    "no space": (te(b"chunked", CHUNKS), ["/1"]),
    "length with zeros": (post(b"Content-Length: 0005", body=b"hello"), ["/1"]),
    "length with spaces": (post(b"Content-Length: \t 5 \t", body=b"hello"), ["/1"]),
    "length of nothing, and more": (post(b"Content-Length: 0") + HIDDEN, ["/1", "/hidden"]),
    "a body of GET": (post(length(HIDDEN), body=HIDDEN, first=b"GET /1 HTTP/1.1"), ["/1"]),
    "a body of HEAD": (post(length(HIDDEN), body=HIDDEN, first=b"HEAD /1 HTTP/1.1"), ["/1"]),
    "a body of DELETE": (post(TE[:-2], body=CHUNKS, first=b"DELETE /1 HTTP/1.1"), ["/1"]),
    "expects": (post(b"Expect: 100-continue", length(HIDDEN), body=HIDDEN), ["/1"]),
    "expects nothing": (post(b"Expect: 100-continue", b"Content-Length: 0") + HIDDEN, ["/1", "/hidden"]),
    "underscores": (post(b"Content_Length: 50", b"Transfer_Encoding: chunked") + HIDDEN, ["/1", "/hidden"]),
    "underscore beside": (post(b"Content_Length: 50", length(b"x"), body=b"x"), ["/1"]),
    "other lengths": (post(b"X-Content-Length: 50", b"Content-Length-X: 50", length(b"x"), body=b"x"), ["/1"]),
    "close": (post(b"Connection: close") + HIDDEN, ["/1"]),
    "hop by hop": (post(b"Connection: X-A, Cookie", b"X-A: 1", b"Cookie: a") + HIDDEN, ["/1", "/hidden"]),
    "an upgrade": (post(b"Connection: Upgrade", b"Upgrade: websocket") + HIDDEN, ["/1"]),
    "an upgrade with a body": (
        post(b"Connection: Upgrade", b"Upgrade: x", length(HIDDEN), body=HIDDEN),
        ["/1"],
    ),
    "an upgrade with chunks": (post(b"Connection: Upgrade", b"Upgrade: x", TE[:-2], body=CHUNKS), ["/1"]),
    "HTTP/2 by upgrade": (
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
        + HIDDEN,
        ["/1", "/hidden"],
    ),
    "1.0": (post(length(b"x"), body=b"x" + HIDDEN, first=b"POST /1 HTTP/1.0"), ["/1"]),
    "1.0 that stays": (
        post(length(b"x"), b"Connection: keep-alive", body=b"x", first=b"POST /1 HTTP/1.0") + HIDDEN,
        ["/1", "/hidden"],
    ),
    "absolute": (post(first=b"GET http://a.example/1 HTTP/1.1") + HIDDEN, ["/1", "/hidden"]),
    "absolute without a path": (post(first=b"GET http://A.example?x HTTP/1.1"), ["/?x"]),
    "two slashes": (post(first=b"GET //b.example/1 HTTP/1.1"), ["//b.example/1"]),
    "a path like an address": (post(first=b"GET /http://b.example/1 HTTP/1.1"), ["/http://b.example/1"]),
    "escapes": (post(first=b"GET /%0d%0aHost:%20b.example%0d%0a?%00 HTTP/1.1"), ["/%0d%0aHost:%20b.example%0d%0a?%00"]),
    "empty lines before": (b"\r\n\r\n" + post() + b"\r\n" + HIDDEN, ["/1", "/hidden"]),
    "high bytes": (post(b"X: \xa0\x85\xff", length(b"x"), body=b"x") + HIDDEN, ["/1", "/hidden"]),
    "an empty field": (post(b"X:", b"Content-Type:") + HIDDEN, ["/1", "/hidden"]),
}  # fmt: skip
"""What we let through, as the requests with these targets."""

REFUSED: Final = {
    # Two ends (CL.TE, TE.CL, CL.CL).
    "CL.TE": post(b"Content-Length: 4", TE[:-2], body=b"0\r\n\r\n" + HIDDEN),
    "TE.CL": post(TE[:-2], b"Content-Length: 4", body=CHUNKS + HIDDEN),
    "CL.0 with TE": post(b"Content-Length: 0", TE[:-2], body=CHUNKS + HIDDEN),
    "CL.CL": post(b"Content-Length: 0", length(HIDDEN), body=HIDDEN),
    "CL.CL the same": post(length(HIDDEN), length(HIDDEN), body=HIDDEN),
    "CL list": post(b"Content-Length: 0, %d" % len(HIDDEN), body=HIDDEN),
    "CL plus": post(b"Content-Length: +%d" % len(HIDDEN), body=HIDDEN),
    "CL minus": post(b"Content-Length: -1", body=HIDDEN),
    "CL hexadecimal": post(b"Content-Length: 0x%x" % len(HIDDEN), body=HIDDEN),
    "CL with an underscore": post(b"Content-Length: 4_0", body=HIDDEN),
    "CL that is no number": post(b"Content-Length: 40a", body=HIDDEN),
    "CL quoted": post(b'Content-Length: "40"', body=HIDDEN),
    "CL with a space": post(b"Content-Length: 4 0", body=HIDDEN),
    "CL empty": post(b"Content-Length:", body=HIDDEN),
    "CL too large": post(b"Content-Length: 18446744073709551616", body=HIDDEN),
    "CL behind a space": post(b"Content-Length : %d" % len(HIDDEN), body=HIDDEN),
    "CL folded": post(b"Content-Length:\r\n %d" % len(HIDDEN), body=HIDDEN),
    "CL named by Connection": post(b"Connection: Content-Length", length(HIDDEN), body=HIDDEN),
    "CL behind a bare LF": post(b"X: x\nContent-Length: %d" % len(HIDDEN), body=HIDDEN),
    "CL behind a bare CR": post(b"X: x\rContent-Length: %d" % len(HIDDEN), body=HIDDEN),
    "CL in other digits": post(b"Content-Length: \xd9\xa4", body=HIDDEN),
    # Encodings that one of two readers does not know (TE.TE).
    "TE xchunked": te(b" xchunked"),
    "TE identity": te(b" identity"),
    "TE chunked, identity": te(b" chunked, identity"),
    "TE identity, chunked": te(b" identity, chunked"),
    "TE gzip, chunked": te(b" gzip, chunked"),
    "TE chunked twice": te(b" chunked, chunked"),
    "TE with a comma": te(b" chunked,"),
    "TE with a parameter": te(b" chunked;x=y"),
    "TE quoted": te(b' "chunked"'),
    "TE empty": te(b""),
    "TE two fields": post(TE[:-2], b"Transfer-Encoding: x", body=CHUNKS + HIDDEN),
    "TE two fields, turned": post(b"Transfer-Encoding: x", TE[:-2], body=CHUNKS + HIDDEN),
    "TE vertical tab": te(b" \x0bchunked"),
    "TE form feed": te(b" \x0cchunked"),
    "TE no-break space": te(b" \xa0chunked"),
    "TE NUL": te(b" chunked\x00"),
    "TE a tab behind": te(b" chunked\t"),
    "TE DEL": te(b" chunked\x7f"),
    "TE bare CR": te(b" chunked\r"),
    "TE behind a space": post(b"Transfer-Encoding : chunked", body=CHUNKS + HIDDEN),
    "TE behind a tab": post(b"Transfer-Encoding\t: chunked", body=CHUNKS + HIDDEN),
    "TE after a space": post(b" Transfer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE folded": post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS + HIDDEN),
    "TE in a fold": post(b"X: x\r\n Transfer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE behind a bare LF": post(b"X: x\nTransfer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE behind a bare CR": post(b"X: x\rTransfer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE behind CR CR LF": post(b"X: x\r\r\nTransfer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE with a NUL in its name": post(b"Transfer\x00Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE with a long s": post(b"Tran\xc5\xbffer-Encoding: chunked", body=CHUNKS + HIDDEN),
    "TE without a colon": post(b"Transfer-Encoding chunked", body=CHUNKS + HIDDEN),
    "TE named by Connection": post(b"Connection: Transfer-Encoding", TE[:-2], body=CHUNKS),
    "TE in 1.0": post(TE[:-2], body=CHUNKS + HIDDEN, first=b"POST /1 HTTP/1.0"),
    # Whose it is.
    "no Host": b"GET /1 HTTP/1.1\r\n\r\n" + HIDDEN,
    "two Hosts": post(b"Host: b.example"),
    "two Hosts by case": post(b"hOST: b.example"),
    "the same Host twice": post(b"Host: a.example"),
    "Host behind a space": post(b"Host : b.example"),
    "Host in a fold": post(b" Host: b.example"),
    "Host behind a bare CR": post(b"X: x\rHost: b.example"),
    "Host named by Connection": post(b"Connection: Host"),
    "Host with a user": b"GET /1 HTTP/1.1\r\nHost: a.example@b.example\r\n\r\n",
    "Host with a path": b"GET /1 HTTP/1.1\r\nHost: a.example/b\r\n\r\n",
    "Host with two": b"GET /1 HTTP/1.1\r\nHost: a.example b.example\r\n\r\n",
    "Host with a bad port": b"GET /1 HTTP/1.1\r\nHost: a.example:80@b.example\r\n\r\n",
    "Host empty": b"GET /1 HTTP/1.1\r\nHost:\r\n\r\n",
    "absolute, another": post(first=b"GET http://b.example/1 HTTP/1.1"),
    "absolute, a user": post(first=b"GET http://a.example@b.example/1 HTTP/1.1"),
    "absolute, no host": post(first=b"GET http:///1 HTTP/1.1"),
    "CONNECT": post(first=b"CONNECT a.example:80 HTTP/1.1"),
    # The first line.
    "HTTP/0.9": b"GET /1\r\n" + HIDDEN,
    "HTTP/1.2": post(first=b"GET /1 HTTP/1.2"),
    "HTTP/1.10": post(first=b"GET /1 HTTP/1.10"),
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces": post(first=b"GET  /1 HTTP/1.1"),
    "two spaces behind": post(first=b"GET /1  HTTP/1.1"),
    "a space at the end": post(first=b"GET /1 HTTP/1.1 "),
    "a space in front": post(first=b" GET /1 HTTP/1.1"),
    "tabs": post(first=b"GET\t/1\tHTTP/1.1"),
    "two versions": post(first=b"GET /1 HTTP/1.1 HTTP/1.0"),
    "a space in the path": post(first=b"GET /1 /hidden HTTP/1.1"),
    "a fragment": post(first=b"GET /1#/../hidden HTTP/1.1"),
    "a NUL": post(first=b"GET /1\x00 HTTP/1.1"),
    "a bare CR": post(first=b"GET /1 HTTP/1.1\rX: x"),
    "a bare LF": b"GET /1 HTTP/1.1\n" + H + b"\r\n",
    "only bare LFs": b"GET /1 HTTP/1.1\nHost: a.example\n\nGET /hidden HTTP/1.1\nHost: b\n\n",
    "the method in small": post(first=b"get /1 HTTP/1.1"),
    "three empty lines before": b"\r\n\r\n\r\n" + post(),
    # Names and values.
    "a NUL in a value": post(b"X: \x00"),
    "a name with a space": post(b"X Y: 1"),
    "no name": post(b": 1"),
}
"""What nobody may see anything of."""

BROKEN_CHUNKS: Final = {
    "a space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "an overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "a bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "anything behind the data": b"5\r\nhelloXX0\r\n\r\n",
    "nothing behind the data": b"5\r\nhello0\r\n\r\n",
    "a bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "an extension with a bare LF": b"5;a\nhello\r\n0\r\n\r\n",
    "an extension with a bare CR": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "an extension without a name": b"5;\r\nhello\r\n0\r\n\r\n",
    "an extension with a NUL": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "an open quote": b'5;a="\r\nhello\r\n0\r\n\r\n',
    "an empty size": b"\r\nhello\r\n0\r\n\r\n",
    "a length behind": b"0\r\nContent-Length: 40\r\n\r\n",
    "an encoding behind": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a Host behind": b"0\r\nHost: b.example\r\n\r\n",
    "a field behind that is none": b"0\r\nX\r\n\r\n",
    "a folded field behind": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "a request behind the last": b"0\r\nGET /hidden HTTP/1.1\r\nHost: b.example\r\n\r\n",
    "no end": b"5\r\nhello\r\n",
}
"""Bodies in chunks of which nobody may see the end."""


@attrs.define
class Passed:
    """What came out for the service, which requests these are by our own reading, and with which status it ended."""

    out: bytes = b""
    seen: list[Seen] = attrs.field(factory=list)
    complete: bool = True
    keep_alive: bool = True
    refused: int | None = None

    @property
    def targets(self) -> list[str]:
        return [each.target for each in self.seen]


async def pass_on(stream: bytes) -> Passed:
    """Send it through our endpoint; each request is answered as soon as it is complete."""
    visitor, near = memory_pair([])
    assert visitor.send(stream) == len(stream)
    connection, passed = HttpConnection(near, Origin("192.0.2.1", "https")), Passed()
    said = [await connection.next_request()]
    if isinstance(first := said[0], RequestHead):
        said.clear()
        http = HttpEndpoint(connection, first, lambda _: True, said.append)
        while got := read_all(http):
            passed.out += got
            request, (_, _, body) = http.request, got.partition(b"\r\n\r\n")
            passed.keep_alive = request.keep_alive and not request.upgrade
            if said or not http._is_asked:
                passed.complete = False
                break
            passed.seen.append(
                Seen(
                    request.method.decode(),
                    request.target.decode(),
                    request.authority.decode(),
                    (joined(body) if request.chunked else body).decode(),
                )
            )
            http.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        http.close()
    if said and isinstance(said[0], Refusal):
        passed.refused = said[0].status
    near.close()
    visitor.close()
    return passed


def read_all(http: HttpEndpoint) -> bytes:
    """Read until the endpoint has no more, or waits for an answer or for the visitor."""
    got, room = b"", memoryview(bytearray(20_000))
    with suppress(BlockingIOError):
        while count := http.recv_into(room):
            got += room[:count]
    return got


def joined(chunks: bytes) -> bytes:
    """The body, of chunks as we write them."""
    body = b""
    while size := int((line := chunks.partition(b"\r\n"))[0], 16):
        body += line[2][:size]
        chunks = line[2][size + 2 :]
    return body


# --- the services ---

PYTHON: Final = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Recorder(BaseHTTPRequestHandler):  # reads chunks as many do: with what int() takes
    protocol_version = "HTTP/1.1"

    def record(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                self.close_connection = True
                return
        seen = [self.command, self.path, self.headers.get("Host", ""), body.decode("latin-1")]
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps(seen) + "\\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.record
        raise AttributeError(name)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()
"""

NODE: Final = """
const [port, file] = process.argv.slice(1);
require('http').createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const body = Buffer.concat(pieces).toString('latin1');
    const seen = [request.method, request.url, request.headers.host || '', body];
    require('fs').appendFileSync(file, JSON.stringify(seen) + '\\n');
    response.end();
  });
  request.on('error', () => {});
}).on('clientError', (_, socket) => socket.destroy()).listen(+port, '127.0.0.1');
"""

NGINX: Final = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/errors crit;
events {{}}
http {{
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5;
  log_format seen escape=json '["$request_method", "$request_uri", "$http_host", "$request_body", "$status"]';
  server {{
    listen 127.0.0.1:{port}; access_log {file} seen; merge_slashes off;
    location / {{ proxy_pass http://127.0.0.1:{behind}; }}
  }}
  server {{ listen 127.0.0.1:{behind}; access_log off; location / {{ return 200; }} }}
}}
"""


@attrs.frozen
class Recorder:
    """A service that notes what it sees in a file."""

    port: int
    file: Path

    async def see(
        self, stream: bytes, *, then: bytes = SENTINEL, complete: bool = True
    ) -> list[Seen]:
        """Send it, with the end of what we have to say where it is not complete, and return which requests that was."""
        before = self.file.stat().st_size if self.file.exists() else 0
        sock = await trio.open_tcp_stream(services.HOST, self.port)
        async with sock:
            with suppress(trio.BrokenResourceError):
                await sock.send_all(stream + then)
                if not complete:
                    await sock.send_eof()
                with trio.move_on_after(2 if then else 0.5):
                    async for _ in sock:
                        pass
        await trio.sleep(0.01)
        noted = self.file.read_bytes()[before:] if self.file.exists() else b""
        lines = [json.loads(line) for line in noted.decode("latin-1").splitlines()]
        # nginx notes those as well that it has refused, or that were not complete.
        return [Seen(*line[:4]) for line in lines if line[4:] in ([], ["200"])]


@asynccontextmanager
async def recorder(kind: str, folder: Path) -> AsyncIterator[Recorder]:
    file = folder / f"{kind}.seen"

    def command(port: int) -> list[str]:
        if kind == "Python":
            return [sys.executable, "-c", PYTHON, str(port), str(file)]
        if kind == "Node":
            return [
                services.find_program("node", package="nodejs"),
                "-e",
                NODE,
                str(port),
                str(file),
            ]
        settings = folder / "nginx.conf"
        settings.write_text(
            NGINX.format(folder=folder, port=port, file=file, behind=services.free_low_port())
        )
        program = services.find_program("nginx", package="nginx-light")
        return [program, "-e", str(folder / "errors"), "-p", str(folder), "-c", str(settings)]

    async def answers(port: int, _pid: int) -> bool:
        await (await trio.open_tcp_stream(services.HOST, port)).aclose()
        return True

    async with services.started(command, answers) as port:
        yield Recorder(port, file)


KINDS: Final = ("nginx", "Node", "Python")


# --- the tests ---


@pytest.mark.parametrize("case", PASSED)
async def test_what_we_let_through(case: str) -> None:
    stream, targets = PASSED[case]
    passed = await pass_on(stream)
    assert (passed.targets, passed.complete, passed.refused) == (targets, True, None)


@pytest.mark.parametrize("case", REFUSED)
async def test_what_nobody_sees(case: str) -> None:
    before = post()
    for stream in (REFUSED[case], before + REFUSED[case]):
        passed = await pass_on(stream + SENTINEL)
        assert passed.refused in {400, 405, 505}
        assert passed.targets == (["/1"] if stream.startswith(before) else [])
        assert passed.out.count(b"HTTP/1.") == len(passed.seen)


@pytest.mark.parametrize("case", BROKEN_CHUNKS)
async def test_bodies_of_which_nobody_sees_the_end(case: str) -> None:
    passed = await pass_on(post(TE[:-2], body=BROKEN_CHUNKS[case] + HIDDEN + SENTINEL))
    assert passed.seen == []
    assert not passed.complete
    assert b"\r\n0\r\n" not in passed.out
    assert b"HTTP/1.1" not in passed.out.partition(b"\r\n")[2]


@pytest.mark.limit(60)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_sees_what_we_see(tmp_path: Path, kind: str) -> None:
    streams = {name: stream for name, (stream, _) in PASSED.items()}
    streams |= {f"{name}, behind": post() + stream for name, stream in REFUSED.items()}
    streams |= {
        f"chunks: {name}": post(TE[:-2], body=chunks) + HIDDEN
        for name, chunks in BROKEN_CHUNKS.items()
    }
    wrong = {}
    async with recorder(kind, tmp_path) as service:
        for name, stream in streams.items():
            passed = await pass_on(stream)
            goes_on = passed.complete and passed.keep_alive
            seen = await service.see(
                passed.out, then=SENTINEL if goes_on else b"", complete=passed.complete
            )
            expected = [*passed.seen, Seen("GET", "/sentinel", "a.example", "")][
                : None if goes_on else -1
            ]
            if (
                kind == "Python"
            ):  # it takes away a second slash, so that nobody is redirected to another host
                expected = [
                    each._replace(target="/" + each.target.lstrip("/")) for each in expected
                ]
            if seen != expected:
                wrong[name] = (passed.out, seen, expected)
    assert wrong == {}


@pytest.mark.limit(60)
async def test_without_us_they_do_not_agree(tmp_path: Path) -> None:
    """Else the test above could not tell anything."""
    streams = {
        name: REFUSED[name]
        for name in ("CL.TE", "CL plus", "TE xchunked", "TE in 1.0", "two Hosts", "a bare LF")
    }
    streams |= {
        name: post(TE[:-2], body=BROKEN_CHUNKS[name]) + HIDDEN
        for name in ("0x", "plus", "an underscore", "a bare LF behind the size", "a space before the size")
    }  # fmt: skip
    seen: dict[str, list[list[Seen]]] = {name: [] for name in streams}
    for kind in KINDS:
        async with recorder(kind, tmp_path) as service:
            for name, stream in streams.items():
                seen[name].append(await service.see(stream))
    agreed = [
        name for name, (first, *others) in seen.items() if all(each == first for each in others)
    ]
    assert agreed == []
