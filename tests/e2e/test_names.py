"""Services that have names: routing by Host and by SNI, what HTTP can do, and what a visitor sees where nobody answers."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.made import Maker
from tests.e2e import running, services
from tests.e2e.named import DOMAIN, Answer, named_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from tests.e2e.named import NamedServer


pytestmark = pytest.mark.limit(60)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    return tmp_path


async def test_a_service_gets_a_url_that_stays_with_its_client(folder: Path) -> None:
    async with named_server(folder) as named, services.http() as service:
        urls: list[str] = []
        name = ""
        for _ in range(2):
            async with running.client(
                folder / "client", named.server.ticket, f"http:{service.port}"
            ) as client:
                urls.append(client.connected["services"][0]["public"])
                name = urls[-1].removeprefix("https://").partition(":")[0]
                answer = await named.ask(name, "/")
                assert (answer.status, answer.body) != (200, b"")
        assert urls[0] == urls[1]
        assert name.endswith(f".{DOMAIN}"), name


def answering(word: bytes) -> AbstractAsyncContextManager[services.Service]:
    """Run a service that answers each request with a word of its own, and the Host that it was asked for."""

    async def handler(stream: trio.SocketStream) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = await stream.receive_some()
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            [host] = [line[6:] for line in head.split(b"\r\n") if line.startswith(b"Host: ")]
            body = word + b" " + host
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )

    return services.serve(handler)


async def read_answer(stream: trio.abc.ReceiveStream) -> bytes:
    """Read an answer with a length, and return its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    [length] = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    ]
    while len(body) < length:
        body += await stream.receive_some()
    assert len(body) == length, body
    return body


async def test_each_request_of_a_connection_goes_to_the_service_of_its_host(folder: Path) -> None:
    async with (
        named_server(folder) as named,
        answering(b"shop") as shop,
        answering(b"blog") as blog,
        running.client(
            folder / "client",
            named.server.ticket,
            f"http:{shop.port}@shop",
            f"http:{blog.port}@blog",
        ),
    ):
        stream = await named.connect(f"shop.{DOMAIN}")
        for name in ("shop", "blog", "shop", "shop"):
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: {name}.{DOMAIN}\r\n\r\n".encode())
            assert await read_answer(stream) == f"{name} {name}.{DOMAIN}".encode()
        # Several at once: each waits for the answer before.
        both = "".join(
            f"GET / HTTP/1.1\r\nHost: {name}.{DOMAIN}\r\n\r\n" for name in ("shop", "blog")
        )
        await stream.send_all(both.encode())
        assert await read_answer(stream) == f"shop shop.{DOMAIN}".encode()
        assert await read_answer(stream) == f"blog blog.{DOMAIN}".encode()
        await stream.aclose()


async def test_plain_http_leads_to_https(folder: Path) -> None:
    async with (
        named_server(folder) as named,
        services.http() as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        command = named.curl(
            "--include", f"http://shop.{DOMAIN}:{named.http}/a?b=c", name=f"shop.{DOMAIN}"
        )
        done = await trio.run_process(command, capture_stdout=True)
        assert b" 308 " in done.stdout.split(b"\r\n")[0]
        assert f"Location: https://shop.{DOMAIN}:{named.https}/a?b=c".encode() in done.stdout


async def test_plain_http_does_not_lead_where_no_certificate_is(folder: Path) -> None:
    async with named_server(folder) as named:
        command = named.curl(
            "--include", f"http://nobody.{DOMAIN}:{named.http}/", name=f"nobody.{DOMAIN}"
        )
        done = await trio.run_process(command, capture_stdout=True)
        assert b" 404 " in done.stdout.split(b"\r\n")[0]


async def test_who_leaves_tls_out_at_the_port_for_it_is_told_so(folder: Path) -> None:
    """Also in pieces; what is no HTTP either is closed."""
    name = f"shop.{DOMAIN}"
    async with named_server(folder) as named:
        command = named.curl("--include", f"http://{name}:{named.https}/a", name=name)
        done = await trio.run_process(command, capture_stdout=True)
        answer = Answer.read(done.stdout)
        assert answer.status == 400
        assert b"Put https:// in front of the address" in answer.body
        async with await trio.open_tcp_stream(services.HOST, named.https) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n")
            await trio.sleep(0.1)
            await stream.send_all(f"Host: {name}\r\nAccept: text/html\r\n\r\n".encode())
            page = b"".join([piece async for piece in stream])
        assert page.startswith(b"HTTP/1.1 400 ")
        assert b"<h1>This port is for https</h1>" in page
        async with await trio.open_tcp_stream(services.HOST, named.https) as stream:
            await stream.send_all(b"hello, is this a shop?\r\n\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_who_asks_for_a_name_that_nobody_has_is_told_so(folder: Path) -> None:
    async with named_server(folder) as named:
        answer = await named.ask(f"nobody.{DOMAIN}", "/", "--header", "Accept: application/json")
        assert answer.status == 404
        assert answer.json["status"] == 404


async def test_a_large_upload_arrives_whole(folder: Path) -> None:
    size = 100 * 2**20
    async with (
        named_server(folder) as named,
        services.http() as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        data = b"".join(services.pattern(size))
        file = folder / "data"
        await trio.Path(file).write_bytes(data)
        answer = await named.ask(
            f"shop.{DOMAIN}",
            "/digest",
            "--data-binary",
            f"@{file}",
            "--header",
            "Expect: 100-continue",
        )
        assert answer.status == 200
        assert hashlib.sha256(data).hexdigest().encode() in answer.body


@asynccontextmanager
async def allowed(named: NamedServer, *patterns: str) -> AsyncIterator[None]:
    """Let the first user have names of these patterns."""
    state = named.server.state
    await services.run_trionat(
        "user", "limit", "trionat", "--names", ",".join(patterns), "--state-dir", state
    )
    yield


async def test_a_service_that_ends_tls_itself_gets_it_untouched(folder: Path) -> None:
    maker = Maker()
    key, chain = maker.chain("db.example.org")
    own = folder / "db.pem"
    own.write_bytes(key + chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)

    async def serve(stream: trio.SocketStream) -> None:
        encrypted = trio.SSLStream(stream, context, server_side=True)
        await encrypted.send_all(await encrypted.receive_some())
        await encrypted.aclose()

    authority = folder / "db-authority.pem"
    authority.write_bytes(maker.pem)
    async with (
        named_server(folder) as named,
        services.serve(serve) as service,
        allowed(named, "db.example.org", "db"),
        running.client(
            folder / "client",
            named.server.ticket,
            f"tls:{service.port}@db.example.org",
            f"tls:{service.port}@db",
        ) as client,
    ):
        public = [each["public"] for each in client.connected["services"]]
        assert public == [f"tls://db.example.org:{named.https}", f"tls://db.{DOMAIN}:{named.https}"]
        named.authority = authority
        stream = await named.connect("db.example.org")
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await stream.aclose()


async def test_each_request_is_in_the_access_log_and_in_the_status(folder: Path) -> None:
    log = folder / "access.log"
    async with (
        named_server(folder, "--access-log", log) as named,
        services.http() as service,
        running.client(
            folder / "client", named.server.ticket, f"http:{service.port}@shop"
        ) as client,
    ):
        assert (await named.ask(f"shop.{DOMAIN}", "/?a=b", "--user-agent", 'a "b"\\')).status == 200
        assert (await named.ask(f"shop.{DOMAIN}", "/none", "--referer", "x")).status == 404
        assert (await named.ask(f"nobody.{DOMAIN}")).status == 404
        await running.wait_until(lambda: log.exists() and log.read_text().count("\n") == 3)
        first, second, third = map(json.loads, log.read_text().splitlines())
        assert first | {"time": "", "seconds": 0} == {
            "time": "",
            "address": "127.0.0.1",
            "name": f"shop.{DOMAIN}",
            "method": "GET",
            "path": "/?a=b",
            "protocol": "HTTP/1.1",
            "status": 200,
            "bytes": 5,
            "seconds": 0,
            "user": "trionat",
            "referer": "",
            "agent": 'a "b"\\',
        }
        assert 0 < first["seconds"] < 5
        assert (second["status"], second["referer"]) == (404, "x")
        assert (third["name"], third["user"]) == (f"nobody.{DOMAIN}", "")
        done = await services.run_trionat("status", "--json", "--state-dir", named.server.state)
        status = json.loads(done.stdout)
        [session] = status["sessions"]
        [certificate] = status["certificates"]
        assert (certificate["name"], certificate["state"]) == (f"shop.{DOMAIN}", "own")
        [shown] = session["services"]
        assert shown["url"] == client.connected["services"][0]["public"]
        requests = shown["requests"]
        assert (requests["total"], requests["statuses"]) == (2, {"2xx": 1, "4xx": 1})
        done = await services.run_trionat("status", "--state-dir", named.server.state)
        assert f"https://shop.{DOMAIN}:{named.https}  " in done.stdout.decode()
        assert f"\nCertificates:\n  shop.{DOMAIN}  of your own, good until " in done.stdout.decode()


async def test_the_access_log_in_the_words_of_web_servers(folder: Path) -> None:
    log = folder / "access.log"
    async with (
        named_server(folder, "--access-log", log, "--access-log-format", "combined") as named,
        services.http() as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        await named.ask(f"shop.{DOMAIN}", "/?a=b", "--user-agent", 'a "b"\\', "--referer", "x")
        log.rename(folder / "access.log.1")
        await trio.sleep(0.5)
        await named.ask(f"shop.{DOMAIN}", "/")
    lines = (folder / "access.log.1").read_text() + log.read_text()
    pattern = r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET (\S+) HTTP/1\.1" 200 5 "(.*)" "(.*)"\n'
    found = re.fullmatch(pattern * 2, lines)
    assert found, lines
    assert found.groups()[:3] == ("/?a=b", "x", r"a \x22b\x22\x5C")


async def test_what_did_not_end_well_is_in_the_access_log_too(folder: Path) -> None:
    """Whoever looks for downloads that break, or counts what somebody has taken, finds them there."""
    name, log = f"shop.{DOMAIN}", folder / "access.log"

    async def handler(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        if head.startswith(b"GET /ws "):
            await stream.send_all(
                b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"
            )
        elif head.startswith(b"GET /download "):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + bytes(1000))
        await trio.sleep_forever()

    async with (
        named_server(folder, "--access-log", log) as named,
        services.serve(handler) as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        for path, fields, gets in (
            ("/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n", b"\r\n\r\nhello"),
            ("/download", "", bytes(1000)),
            ("/slow", "", b""),
        ):
            stream = await named.connect(name)
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{fields}\r\n".encode())
            got = b""
            while gets not in got:
                got += await stream.receive_some()
            await trio.sleep(0.5)
            stream.transport_stream.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            await trio.aclose_forcefully(stream)
        await running.wait_until(lambda: log.exists() and log.read_text().count("\n") == 3)
    lines = sorted(map(json.loads, log.read_text().splitlines()), key=lambda line: line["path"])
    assert [(line["path"], line["status"], line["bytes"], line["user"]) for line in lines] == [
        ("/download", 200, 1000, "trionat"),
        ("/slow", 499, 0, "trionat"),
        ("/ws", 101, 5, "trionat"),
    ]


async def test_a_name_is_kept_for_its_user(folder: Path) -> None:
    async with named_server(folder) as named, services.http() as service:
        state = named.server.state
        await services.run_trionat("user", "add", "bob", "--state-dir", state, stdin=b"secret-12\n")
        done = await services.run_trionat(
            "user",
            "ticket",
            "bob",
            "--public-addr",
            f"127.0.0.1:{named.server.control[1]}",
            "--state-dir",
            state,
        )
        ticket = done.stdout.decode().split()[-1]
        async with running.client(
            folder / "alice", named.server.ticket, f"http:{service.port}@shop"
        ):
            done = await services.run_trionat("user", "names", "--state-dir", state)
            assert done.stdout.decode().rstrip().endswith(", in use now")
        async with running.client_process(
            folder / "bob", ticket, f"http:{service.port}@shop"
        ) as bob:
            reason = (await bob.process.next_event("disconnected"))["reason"]
            assert f"shop.{DOMAIN} belongs to another account" in reason
            assert f"(trionat user release-name shop.{DOMAIN})" in reason
            bob.ended = True
            bob.process.interrupt()
        done = await services.run_trionat("user", "names", "--json", "--state-dir", state)
        [known] = map(json.loads, done.stdout.splitlines())
        assert (known["name"], known["user"]) == (f"shop.{DOMAIN}", "trionat")
        assert known["in_use"] is False
        done = await services.run_trionat(
            "user", "release-name", f"shop.{DOMAIN}", "--state-dir", state
        )
        assert done.returncode == 0, done.stderr
        async with running.client(folder / "bob", ticket, f"http:{service.port}@shop") as again:
            assert again.connected["services"][0]["public"].startswith(f"https://shop.{DOMAIN}")


async def test_a_state_folder_of_the_first_version_has_names_as_a_new_one(folder: Path) -> None:
    """It has the accounts of trionat 0.1, which knew no names."""
    state = trio.Path(folder / "state")
    await state.mkdir(mode=0o700)
    accounts = Path(__file__).parents[1] / "unit" / "data" / "users-1.db"
    await (state / "trionat.db").write_bytes(accounts.read_bytes())
    async with named_server(folder) as named, services.http() as service:
        address = f"127.0.0.1:{named.server.control[1]}"
        given = ("--state-dir", str(state))
        done = await services.run_trionat(
            "user", "ticket", "alice", "--public-addr", address, *given
        )
        ticket, exposed = done.stdout.decode().split()[-1], f"http:{service.port}@shop"
        for _ in range(2):  # and when it comes back
            async with running.client(folder / "alice", ticket, exposed):
                assert (await named.ask(f"shop.{DOMAIN}")).status == 200
        done = await services.run_trionat("user", "names", "--json", *given)
        [known] = map(json.loads, done.stdout.splitlines())
        assert (known["name"], known["user"]) == (f"shop.{DOMAIN}", "alice")


@pytest.mark.parametrize(
    ("asked", "flags", "said"),
    [
        ("http:8080@shop.example.org", (), "is not right below tunnel.test"),
        ("http:8080@www", (), "is reserved"),
        ("http:8080@a.b.tunnel.test", (), "is not right below"),
    ],
)
async def test_a_name_that_is_not_to_be_had(
    folder: Path, asked: str, flags: tuple[str, ...], said: str
) -> None:
    async with (
        named_server(folder, *flags) as named,
        running.client_process(folder / "client", named.server.ticket, asked) as client,
    ):
        assert await client.wait() == 2
        assert said in client.process.errors.decode()


async def test_a_server_without_a_domain_has_no_names(folder: Path) -> None:
    async with (
        running.server(folder) as server,
        running.client_process(folder / "client", server.ticket, "http:8080") as client,
    ):
        assert await client.wait() == 2
        assert "no domain" in client.process.errors.decode()


async def alerting(stream: trio.SocketStream) -> None:
    """Take a request as rustls and Java do where they expect TLS."""
    await stream.receive_some()
    await stream.send_all(b"\x15\x03\x03\x00\x02\x02\x16")
    while await stream.receive_some():
        pass


async def closing(stream: trio.SocketStream) -> None:
    """Take a request as OpenSSL does where it expects TLS."""
    await stream.receive_some()


@pytest.mark.parametrize(
    ("handler", "told"), [(alerting, "is not HTTP"), (closing, "without an answer")]
)
async def test_a_service_that_speaks_tls_is_told_from_one_that_is_down(
    folder: Path, handler: services.Handler, told: str
) -> None:
    name = f"shop.{DOMAIN}"
    async with (
        named_server(folder) as named,
        services.serve(handler) as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        for _ in range(2):
            answer = await named.ask(name)
            assert answer.status == 502
            assert told in answer.body.decode()
            assert "publish it with tls:" in answer.body.decode()
        event = "a service does not understand requests: if it speaks TLS itself, it needs tls:, and not http:"
        record = await named.server.wait_record(event)
        assert told in record["reason"]
        assert [r for r in named.server.records if r["event"] == event] == [record]


async def test_a_service_that_is_down_and_a_client_that_is_away(folder: Path) -> None:
    name = f"shop.{DOMAIN}"
    as_json = ("--header", "Accept: application/json")
    async with (
        named_server(folder, "--visitor-wait", "5") as named,
        answering(b"shop") as service,
    ):
        async with running.client(
            folder / "down", named.server.ticket, f"http:{services.free_low_port()}@shop"
        ):
            answer = await named.ask(name, "/", *as_json)
            assert (answer.status, answer.json["status"], answer.json["name"]) == (502, 502, name)
        async with running.client(
            folder / "away", named.server.ticket, f"http:{service.port}@shop"
        ) as client:
            assert (await named.ask(name)).status == 200
            client.kill()
            began = trio.current_time()
            answer = await named.ask(name, "/", *as_json)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert trio.current_time() - began > 1, "it has waited for the client"
        # It comes back while somebody waits.
        answers: list[Answer] = []

        async def ask() -> None:
            answers.append(await named.ask(name))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.3)
            await nursery.start(_again, folder / "away", named, service.port)
            with trio.fail_after(10):
                while not answers:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert (answers[0].status, answers[0].body[:5]) == (200, b"shop ")


async def _again(
    folder: Path, named: NamedServer, port: int, task_status: trio.TaskStatus[None]
) -> None:
    async with running.client(folder, named.server.ticket, f"http:{port}@shop"):
        task_status.started()
        await trio.sleep_forever()


async def test_several_clients_of_one_name(folder: Path) -> None:
    """A group has one name for all of its clients, also where the server has chosen it."""
    async with (
        named_server(folder) as named,
        answering(b"one") as one,
        answering(b"two") as two,
        running.client(
            folder / "one", named.server.ticket, f"http:{one.port}", "--group", "web"
        ) as first,
        running.client(
            folder / "two", named.server.ticket, f"http:{two.port}", "--group", "web"
        ) as second,
    ):
        [url] = {client.connected["services"][0]["public"] for client in (first, second)}
        name = url.removeprefix("https://").partition(":")[0]
        words = {(await named.ask(name)).body.split()[0] for _ in range(10)}
        assert words == {b"one", b"two"}
        first.kill()
        await first.wait(within=10)
        words = {(await named.ask(name)).body.split()[0] for _ in range(6)}
        assert words == {b"two"}


async def test_an_answer_that_ends_with_the_connection_is_no_cut_one(folder: Path) -> None:
    """Nothing but TLS tells where it ends, so a visitor that is strict looks for close_notify."""
    name = f"shop.{DOMAIN}"

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(2**20))

    async with (
        named_server(folder) as named,
        services.serve(handler) as service,
        running.client(folder / "client", named.server.ticket, f"http:{service.port}@shop"),
    ):
        strict = ssl.create_default_context(cafile=str(named.authority))
        strict.verify_flags &= ~ssl.VERIFY_X509_STRICT
        encrypted = trio.SSLStream(
            await trio.open_tcp_stream(services.HOST, named.https), strict, server_hostname=name
        )
        await encrypted.send_all(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        got = b""
        while piece := await encrypted.receive_some():
            got += piece
        assert len(got.partition(b"\r\n\r\n")[2]) == 2**20
        await encrypted.aclose()


async def test_kicked_visitors_and_clients(folder: Path) -> None:
    name = f"shop.{DOMAIN}"
    stop = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin")
        await stop.wait()

    async with (
        named_server(folder) as named,
        services.serve(slow) as service,
        running.client(
            folder / "client", named.server.ticket, f"http:{service.port}@shop"
        ) as client,
    ):
        stream = await named.connect(name)
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert b"begin" in await stream.receive_some()
        state = named.server.state
        done = await services.run_trionat("status", "--json", "--state-dir", state)
        [session] = json.loads(done.stdout)["sessions"]
        [visitor] = session["visitors"]
        assert visitor["name"] == name
        await services.run_trionat("kick", f"v{visitor['number']}", "--state-dir", state)
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            assert await stream.receive_some()
        await trio.aclose_forcefully(stream)
        done = await services.run_trionat("kick", "trionat", "--state-dir", state)
        assert b"session 1 is ended" in done.stdout
        assert await client.wait() == 4
        assert (await named.ask(name)).status == 404
        stop.set()


async def test_tls_at_a_visit_port(folder: Path) -> None:
    async with (
        named_server(folder) as named,
        answering(b"port") as service,
        running.client(
            folder / "client", named.server.ticket, f"https:{service.port}", "--basic-auth", "ann:x"
        ) as client,
    ):
        url = client.connected["services"][0]["public"]
        assert url.startswith(f"https://{DOMAIN}:")
        port = url.rpartition(":")[2]
        command = [
            *("curl", "--silent", "--include", "--cacert", str(named.authority)),
            *("--resolve", f"{DOMAIN}:{port}:127.0.0.1", f"{url}/"),
        ]
        done = await trio.run_process(command, capture_stdout=True)
        assert Answer.read(done.stdout).status == 401
        done = await trio.run_process([*command, "--user", "ann:x"], capture_stdout=True)
        assert Answer.read(done.stdout).body == f"port {DOMAIN}:{port}".encode()


async def test_a_visit_port_is_no_other_name(folder: Path) -> None:
    """Its account would get the cookies of whoever has that name."""
    bank, own = f"bank.{DOMAIN}", "own.example.org"
    async with (
        named_server(folder, alone=(own,)) as named,
        answering(b"port") as mallory,
        answering(b"bank") as alice,
        running.client(folder / "alice", named.server.ticket, f"http:{alice.port}@bank"),
        running.client(folder / "mallory", named.server.ticket, f"https:{mallory.port}") as client,
    ):
        port = client.connected["services"][0]["public"].rpartition(":")[2]

        async def ask(name: str, *flags: str) -> tuple[int, bytes]:
            command = [
                *("curl", "--silent", "--show-error", "--cacert", str(named.authority)),
                *("--resolve", f"{name}:{port}:{services.HOST}", "--include", *flags),
                f"https://{name}:{port}/",
            ]
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False
            )
            return done.returncode, done.stdout or done.stderr

        for name in (bank, own):
            code, said = await ask(name)
            assert (code, b"unrecognized name" in said.lower()) == (35, True), said
        code, said = await ask(DOMAIN, "--header", f"Host: {bank}")
        assert (code, Answer.read(said).status) == (0, 421)
        code, said = await ask(DOMAIN)
        assert Answer.read(said).body == f"port {DOMAIN}:{port}".encode()
