"""What people use names for: git, pip, a registry's blobs, gRPC, curl with HTTP/2, nginx before and behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.named import DOMAIN, named_server
from tests.e2e.test_names import answering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.named import NamedServer

pytestmark = pytest.mark.limit(60)


@contextmanager
def web_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Run the standard library's web server in threads; gives its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def run(named: NamedServer, *command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a program that trusts the server's authority; return what it has printed."""
    authority = str(named.authority)
    done = await trio.run_process(
        list(map(str, command)),
        cwd=cwd,
        env={
            **os.environ,
            "HOME": str(cwd),
            "GIT_SSL_CAINFO": authority,
            "SSL_CERT_FILE": authority,
            "GIT_CONFIG_NOSYSTEM": "1",
            **environ,
        },
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode()
    assert done.returncode == 0, f"{output}\n{named.server.log_text()[-2000:]}"
    return output


class Git(BaseHTTPRequestHandler):
    """Passes requests to git's own program for servers, as any web server does (gitprotocol-http)."""

    protocol_version = "HTTP/1.1"
    root = ""

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = subprocess.run(
            ["git", "http-backend"],
            input=body,
            capture_output=True,
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": self.root,
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "REMOTE_USER": "ann",
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


async def test_git(tmp_path: Path) -> None:
    project = tmp_path / "projects" / "site.git"
    await trio.run_process(["git", "init", "--quiet", "--bare", str(project)])
    handler = type("Handler", (Git,), {"root": str(project.parent)})
    with web_server(handler) as port:
        async with (
            named_server(tmp_path) as named,
            running.client(tmp_path / "client", named.server.ticket, f"http:{port}@git"),
        ):
            # git has no --resolve; it takes curl's configuration by this.
            host = f"git.{DOMAIN}:{named.https}"
            resolve = ("-c", f"http.curloptResolve={host}:127.0.0.1")
            who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.com")
            url = f"https://{host}/site.git"
            await run(named, "git", *resolve, "clone", "--quiet", url, "one", cwd=tmp_path)
            one = tmp_path / "one"
            await trio.Path(one / "large").write_bytes(os.urandom(8 * 2**20))
            await run(named, "git", "add", "large", cwd=one)
            await run(named, "git", *who, "commit", "--quiet", "-m", "large", cwd=one)
            # Above http.postBuffer it is sent in chunks, behind a first request that asks whether it may.
            await run(named, "git", *resolve, "push", "--quiet", "origin", "HEAD", cwd=one)
            await run(named, "git", *resolve, "clone", "--quiet", url, "two", cwd=tmp_path)
            sums = {
                hashlib.sha256(await trio.Path(tmp_path / name / "large").read_bytes()).digest()
                for name in ("one", "two")
            }
            assert len(sums) == 1


async def test_pip(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "hello_by_name").mkdir(parents=True)
    (source / "hello_by_name" / "__init__.py").write_text("WORD = 'hello'\n")
    index = tmp_path / "index" / "simple" / "hello-by-name"
    index.mkdir(parents=True)
    make_wheel(index / "hello_by_name-1.0-py3-none-any.whl", source)
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})

    def make(*args: Any, **kwargs: Any) -> BaseHTTPRequestHandler:
        return handler(*args, directory=str(tmp_path / "index"), **kwargs)  # type: ignore[no-any-return]

    with web_server(make) as port:  # type: ignore[arg-type]
        # pip finds hosts by the system: an address that is a name of its own needs none.
        async with (
            named_server(tmp_path, names=("127.0.0.1",), domain="127.0.0.1") as named,
            running.client(tmp_path / "client", named.server.ticket, f"http:{port}"),
        ):
            target = tmp_path / "target"
            await run(
                named,
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-deps"),
                *("--cert", named.authority, "--index-url", named.url("127.0.0.1", "/simple/")),
                *("--target", target, "hello-by-name"),
                cwd=tmp_path,
                PIP_CONFIG_FILE=os.devnull,
            )
            assert (target / "hello_by_name" / "__init__.py").exists()


def make_wheel(file: Path, source: Path) -> None:
    """Write a wheel of a package, by the form of PEP 427."""
    import zipfile  # noqa: PLC0415 - only here

    name = "hello_by_name-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(source / "hello_by_name" / "__init__.py", "hello_by_name/__init__.py")
        archive.writestr(
            f"{name}/METADATA", "Metadata-Version: 2.1\nName: hello-by-name\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{name}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{name}/RECORD",
            f"hello_by_name/__init__.py,,\n{name}/METADATA,,\n{name}/WHEEL,,\n{name}/RECORD,,\n",
        )


class Registry(BaseHTTPRequestHandler):
    """Takes and gives blobs as a registry of images does: in pieces by PATCH, and in chunks of unknown length."""

    protocol_version = "HTTP/1.1"
    blobs: dict[str, bytes]
    upload: bytearray

    def do_POST(self) -> None:
        self.upload.clear()
        self.answer(202, Location="/v2/site/blobs/uploads/1")

    def do_PATCH(self) -> None:
        while size := int(self.rfile.readline(), 16):
            self.upload.extend(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        self.answer(202, Location="/v2/site/blobs/uploads/1", Range=f"0-{len(self.upload) - 1}")

    def do_PUT(self) -> None:
        content = bytes(self.upload)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        self.answer(201, **{"Docker-Content-Digest": digest})

    def do_HEAD(self) -> None:
        content = self.blobs[self.path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self) -> None:
        content = self.blobs[self.path.rpartition("/")[2]]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(content), 100_000):
            piece = content[at : at + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, status: int, **fields: str) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


async def test_blobs_of_a_registry(tmp_path: Path) -> None:
    content = os.urandom(20 * 2**20)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blobs: dict[str, bytes] = {}
    handler = type("Handler", (Registry,), {"blobs": blobs, "upload": bytearray()})
    (tmp_path / "blob").write_bytes(content)
    with web_server(handler) as port:
        async with (
            named_server(tmp_path) as named,
            running.client(tmp_path / "client", named.server.ticket, f"http:{port}@registry"),
        ):
            name, uploads = f"registry.{DOMAIN}", "/v2/site/blobs/uploads/"
            assert (await named.ask(name, uploads, "--request", "POST")).status == 202
            answer = await named.ask(
                name,
                f"{uploads}1",
                *("--request", "PATCH", "--upload-file", str(tmp_path / "blob")),
                *("--header", "Transfer-Encoding: chunked"),
            )
            assert answer.headers["range"] == f"0-{len(content) - 1}"
            answer = await named.ask(name, f"{uploads}1?digest={digest}", "--request", "PUT")
            assert answer.headers["docker-content-digest"] == digest
            head = await named.ask(name, f"/v2/site/blobs/{digest}", "--head")
            assert head.headers["content-length"] == str(len(content))
            file = tmp_path / "again"
            await run(
                named,
                *named.curl(
                    "--output", str(file), named.url(name, f"/v2/site/blobs/{digest}"), name=name
                ),
                cwd=tmp_path,
            )
            assert file.read_bytes() == content


async def test_grpc(tmp_path: Path) -> None:
    def shout(request: bytes, _: grpc.ServicerContext) -> bytes:
        return request.upper()

    def count(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def add(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        total = 0
        for request in requests:
            total += int(request)
            yield b"%d" % total

    methods = {
        "Shout": grpc.unary_unary_rpc_method_handler(shout),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Add": grpc.stream_stream_rpc_method_handler(add),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Words", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    file = tmp_path / "client.yml"
    file.write_text(f"Client:\n  Services: [{{Local: {port}, Http: grpc, Http2: true}}]\n")
    try:
        async with (
            named_server(tmp_path, alone=(f"grpc.{DOMAIN}",)) as named,
            running.client(tmp_path / "client", named.server.ticket, "--config", file),
        ):
            await trio.to_thread.run_sync(_call, named)
    finally:
        server.stop(None).wait()


def _call(named: NamedServer) -> None:
    credentials = grpc.ssl_channel_credentials(named.authority.read_bytes())
    options = [("grpc.ssl_target_name_override", f"grpc.{DOMAIN}")]
    with grpc.secure_channel(f"127.0.0.1:{named.https}", credentials, options) as channel:
        assert (
            channel.unary_unary("/tests.Words/Shout")(b"x" * 100_000, timeout=20) == b"X" * 100_000
        )
        numbers = channel.unary_stream("/tests.Words/Count")(b"1000", timeout=20)
        assert list(numbers) == [b"%d" % number for number in range(1000)]
        sums = channel.stream_stream("/tests.Words/Add")(iter([b"1", b"2", b"3"]), timeout=20)
        assert list(sums) == [b"1", b"3", b"6"]


def as_root() -> str:
    """Let nginx read what a test has written, where root runs it."""
    return "user root; " if os.getuid() == 0 else ""


async def test_curl_with_http2(tmp_path: Path) -> None:
    """A service that speaks HTTP/2 itself gets it; to all others, HTTP/1.1 is spoken, whatever is offered."""
    nginx = services.find_program("nginx", package="nginx-light")
    port = services.free_low_port()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("over HTTP/2")
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"{as_root()}daemon off; pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;"
        f" uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;"
        f" server {{ listen 127.0.0.1:{port} http2; root {tmp_path}/site; }} }}\n"
    )
    file = tmp_path / "client.yml"
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, [nginx, "-e", "stderr", "-c", str(conf)])
        async with (
            answering(b"plain") as plain,
            named_server(tmp_path, alone=(f"new.{DOMAIN}",)) as named,
        ):
            file.write_text(
                f"Client:\n  Services: [{{Local: {port}, Http: new, Http2: true}}, {{Local: {plain.port}, Http: old}},"
                f" {{Local: {port}, Http: shared, Http2: true}}]\n"
            )
            async with running.client(tmp_path / "client", named.server.ticket, "--config", file):
                for name, version, body in (("new", "2", "over HTTP/2"), ("old", "1.1", "plain")):
                    command = named.curl(
                        *("--http2", "--write-out", "\n%{http_version}"),
                        named.url(f"{name}.{DOMAIN}"),
                        name=f"{name}.{DOMAIN}",
                    )
                    output = await run(named, *command, cwd=tmp_path)
                    assert output.startswith(body), output
                    assert output.endswith(f"\n{version}")
                # Its certificate is for all names, so a browser might take one connection for two services.
                name = f"shared.{DOMAIN}"
                command = named.curl(
                    "--http2", "--write-out", "\n%{http_version}", named.url(name), name=name
                )
                assert (await run(named, *command, cwd=tmp_path)).endswith("\n1.1")
                await named.server.wait_record(
                    "visitors get HTTP/1.1: with a certificate for other names as well, browsers would take one connection in HTTP/2 for all of them;"
                    " put one for this name alone into CertificatesDir",
                    name=name,
                )
        process.terminate()
        nursery.cancel_scope.cancel()


async def test_nginx_in_front_with_a_proxy_header(tmp_path: Path) -> None:
    """nginx passes 80 and 443 on as streams; the service sees the visitor, and lists of addresses hold for it."""
    nginx = services.find_program("nginx", package="nginx-light libnginx-mod-stream")
    https, http, behind = (services.free_low_port() for _ in range(3))
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
        f"daemon off; pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
        f"stream {{ server {{ listen 127.0.0.1:{https}; listen 127.0.0.1:{http}; proxy_pass 127.0.0.1:{behind}; proxy_protocol on; }} }}\n"
    )
    heads: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        heads.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, [nginx, "-e", "stderr", "-c", str(conf)])
        async with (
            services.serve(handler) as service,
            named_server(
                tmp_path,
                *("--proxy-visit-addr", f"127.0.0.1:{behind}"),
                # The same ports, at another address: the header says which one was dialled.
                *("--http-addr", f"127.0.0.2:{http}", "--https-addr", f"127.0.0.2:{https}"),
            ) as named,
            running.client(tmp_path / "client", named.server.ticket, f"http:{service.port}@shop"),
        ):
            named.https, named.http = https, http
            answer = await named.ask(f"shop.{DOMAIN}", "/", "--interface", "127.0.0.7")
            assert answer.status == 204
            [head] = heads
            assert b"X-Forwarded-For: 127.0.0.7\r\n" in head, head
        process.terminate()
        nursery.cancel_scope.cancel()
