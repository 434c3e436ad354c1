"""A server behind a real nginx and a real HAProxy, configured as examples/cluster has it: whose connections they are, and what becomes
of them when a proxy or a node goes away.

The files are taken as they are, but for addresses and ports: the proxies of a test listen on 127.0.0.1 and connect from 127.0.0.9,
which the nodes trust; the nodes n1, n2, n3 are 127.0.0.11, 127.0.0.12, 127.0.0.13.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import ask, end_of, read_all, read_exactly
from tests.faults.networks import open_lab
from trionat.address import TCPAddress
from trionat.fingerprint import format_fingerprint
from trionat.protocol.proxy import read_proxy_header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.running import Server

EXAMPLES = Path(__file__).parents[2] / "examples/cluster"
PROXY, NODE = "127.0.0.9", "127.0.0.1{}"
ROUTER = "10.77.1.254"

pytestmark = [
    pytest.mark.limit(60),
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 for its own"
    ),
]


@attrs.define(eq=False)
class Proxy:
    """A proxy of the examples on ports of its own; `start` and `kill` may come in turn."""

    program: str
    file: Path
    workers: int = 1
    control: int = attrs.field(factory=services.free_low_port)
    visit: int = attrs.field(factory=services.free_low_port)
    node_control: int = attrs.field(factory=services.free_low_port)
    node_visit: int = attrs.field(factory=services.free_low_port)
    process: trio.Process | None = None

    def __attrs_post_init__(self) -> None:
        """Write its file: that of the examples, with this test's addresses."""
        nginx = self.program == "nginx"
        text = (EXAMPLES / ("nginx.conf" if nginx else "haproxy.cfg")).read_text()
        listen = "listen " if nginx else "bind "
        changes = [
            (rf"{listen}:?8007\b", f"{listen}127.0.0.1:{self.control}"),
            (rf"{listen}:?60000-60099\b", f"{listen}127.0.0.1:{self.visit}"),
            (r"10\.0\.0\.1([123]):7007\b", rf"{NODE.format('')}\g<1>:{self.node_control}"),
            (r"10\.0\.0\.1([123]):7000\b", rf"{NODE.format('')}\g<1>:{self.node_visit}"),
            (
                r"proxy_protocol on;" if nginx else r"send-proxy-v2$",
                rf"\g<0> proxy_bind {PROXY};" if nginx else rf"\g<0> source {PROXY}",
            ),
        ]
        if nginx:
            changes.append((r"pid /run/nginx\.pid;", f"pid {self.file}.pid;"))
        for old, new in changes:
            text, count = re.subn(old, new, text, flags=re.MULTILINE)
            assert count, f"{old} is not in the example"
        self.file.write_text(text)

    async def start(self) -> None:
        """Run it; it answers when this returns."""
        if self.program == "nginx":
            program = services.find_program("nginx", package="nginx-light libnginx-mod-stream")
            command = [program, "-e", "stderr", "-c", str(self.file), "-g", "daemon off;"]
        else:
            program = services.find_program("haproxy", package="haproxy")
            command = [program, "-db", "-f", str(self.file)]
        with self.file.with_suffix(".log").open("ab") as output:
            self.process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        with trio.fail_after(services.READY_TIMEOUT):
            while True:
                assert self.process.poll() is None, self.file.with_suffix(".log").read_text()
                with suppress(OSError):
                    await (await trio.open_tcp_stream("127.0.0.1", self.control)).aclose()
                    return
                await trio.sleep(0.02)

    @property
    def pids(self) -> list[int]:
        """Those of its workers, and its own."""
        assert self.process is not None
        own = self.process.pid
        return [*map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()), own]

    async def kill(self) -> None:
        """End all of it as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # it would start its workers anew
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        await self.process.wait()

    async def visitor(self, host: str = "127.0.0.2") -> trio.SocketStream:
        """Connect through it from this address; the caller closes."""
        return await trio.open_tcp_stream("127.0.0.1", self.visit, local_address=host)

    async def wait_two_checks(self) -> None:
        """Wait until HAProxy has found a node at which visitors can be served. It looks at the port for clients by itself, and may know that one sooner."""
        with trio.fail_after(2 + 1):  # two checks, a second apart, from any moment on
            while True:
                async with await self.visitor() as visitor:
                    with suppress(trio.BrokenResourceError):
                        await visitor.send_all(b"?")
                        if await visitor.receive_some(1):
                            return
                await trio.sleep(0.05)

    @asynccontextmanager
    async def node(self, folder: Path, *flags: str, number: int = 1) -> AsyncIterator[Server]:
        """Run a server behind it. Its own visit port is on its own address."""
        host = NODE.format(number)
        async with running.server(
            *(folder, "--visit-host", host, "--trusted-proxies", PROXY),
            *("--proxy-control-addr", f"{host}:{self.node_control}"),
            *("--proxy-visit-addr", f"{host}:{self.node_visit}"),
            *("--public-addr", f"127.0.0.1:{self.control}", *flags),
            *("--workers", str(self.workers)),
            control=f"{host}:0",
            visit=str(self.visit),
        ) as server:
            yield server

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Run it for the block. Nodes have to be up before: HAProxy would wait for two checks of one that comes later."""
        await self.start()
        try:
            yield
        finally:
            assert self.process is not None
            await services.stop_process(self.process)  # noqa: ASYNC102 - shields itself, for a bounded time


@pytest.fixture(params=["nginx", "haproxy", "nginx, 2 workers", "haproxy, 2 workers"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Proxy:
    program, _, workers = str(request.param).partition(", ")
    return Proxy(program, tmp_path / f"{program}.conf", 2 if workers else 1)


async def status(server: Server) -> dict[str, Any]:
    result = await services.run_trionat("status", "--json", "--state-dir", server.state)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_everybody_has_the_true_address(proxy: Proxy, tmp_path: Path) -> None:
    """The visitor at the service, in status and log; the client in status and log."""
    async with (
        services.handed_over() as (service, accepted),
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service, "--proxy-protocol", "v2"),
    ):
        async with await proxy.visitor("127.0.0.2") as visitor:
            source = TCPAddress(*visitor.socket.getsockname())
            stream = await accepted.receive()
            header = read_proxy_header(await read_exactly(stream, 28))
            assert header is not None
            assert (header.source, header.destination) == (
                source,
                TCPAddress("127.0.0.1", proxy.visit),
            )
            [session] = (await status(server))["sessions"]
            host, _, port = session["address"].partition(":")
            assert host == "127.0.0.1"
            assert int(port) not in {proxy.control, proxy.node_control}
            [seen] = session["visitors"]
            assert (seen["address"], seen["port"]) == (str(source), proxy.visit)
        await stream.aclose()
        await server.wait_record("visitor closed", address=str(source), port=proxy.visit)
        up = await server.wait_record("session up")
        assert up["address"] == session["address"]
    assert PROXY not in server.log_text()  # neither do its health checks leave a line


async def test_bytes_go_through_as_they_are(proxy: Proxy, tmp_path: Path) -> None:
    """A service that speaks first, 10 MB each way at once, and an answer after the end of the question."""
    data = random.Random(12).randbytes(10_000_000)
    async with (
        services.echo(login=b"220 at your service\r\n", farewell=b"221 goodbye\r\n") as service,
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service),
        await proxy.visitor() as visitor,
    ):
        assert await read_exactly(visitor, 21) == b"220 at your service\r\n"

        async def send() -> None:
            await visitor.send_all(data)
            await visitor.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answer = await read_all(visitor)
        assert len(answer) == len(data) + 13
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data + b"221 goodbye\r\n").digest()


async def test_lists_go_by_the_true_address(proxy: Proxy, tmp_path: Path) -> None:
    lists = ("--allow-visitors", "127.0.0.0/29", "--deny-visitors", "127.0.0.3")
    async with (
        services.echo() as service,
        proxy.node(tmp_path / "s", *lists) as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service),
    ):
        async with await proxy.visitor("127.0.0.2") as visitor:
            assert await ask(visitor, b"hello") == b"hello"
        for host in ("127.0.0.3", PROXY):
            async with await proxy.visitor(host) as visitor:
                name = running.name_of(visitor)
                assert await end_of(visitor) in ("end", "reset")
            await server.wait_record("visitor refused", address=name, port=proxy.visit)
        assert (await status(server))["refused"] == {"lists": 2}


async def test_what_comes_with_the_header_is_not_lost(tmp_path: Path) -> None:
    """However the bytes of header and visitor are cut: the parent reads the header, and a worker what is behind it."""
    proxy = Proxy("nginx", tmp_path / "nginx.conf", 2)
    header = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 %d\r\n" % proxy.visit
    cuts = ([header + b"hello"], [header, b"hello"], [header[:9], header[9:] + b"he", b"llo"])
    async with (
        services.echo() as service,
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service),
    ):
        for pieces in cuts:
            async with await trio.open_tcp_stream(
                NODE.format(1), proxy.node_visit, local_address=PROXY
            ) as visitor:
                for piece in pieces:
                    await visitor.send_all(piece)
                    await trio.sleep(0.05)
                assert await read_exactly(visitor, 5) == b"hello"
            await server.wait_record("visitor closed", address="192.0.2.7:4711")


async def test_nobody_else_may_send_headers(proxy: Proxy, tmp_path: Path) -> None:
    async with proxy.node(tmp_path / "s") as server:
        for port in (proxy.node_control, proxy.node_visit):
            async with await trio.open_tcp_stream(NODE.format(1), port) as stranger:
                assert await end_of(stranger) in ("end", "reset")
        assert (await status(server))["refused"] == {"TrustedProxies": 2}


async def fingerprint_at(proxy: Proxy, *protocols: str) -> str:
    """Shake hands through the proxy, offering these protocols, and return the node's fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    async with await trio.open_tcp_stream("127.0.0.1", proxy.control) as stream:
        tls = trio.SSLStream(stream, context)
        await tls.do_handshake()
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        return format_fingerprint(hashlib.sha256(certificate).digest())


async def test_clients_are_routed_by_alpn(proxy: Proxy, tmp_path: Path) -> None:
    """To the node that they name; without a name to any, in turn, and where that node is down (n3) to one that is up."""
    async with (
        proxy.node(tmp_path / "s1") as one,
        proxy.node(tmp_path / "s2", number=2) as two,
        proxy.up(),
    ):
        first, second = one.ready["fingerprint"], two.ready["fingerprint"]
        assert first != second
        for protocols, nodes in (
            ((), {first, second}),
            (("trionat",), {first, second}),
            (("trionat-n1",), {first}),
            (("trionat-n2",), {second}),
            (("trionat-n2.w3",), {second}),
            (("h2", "trionat-n2"), {second}),
            (("trionat-n22",), {first, second}),
            (("x-trionat-n2",), {first, second}),
        ):
            found = {await fingerprint_at(proxy, *protocols) for _ in range(6)}
            assert found == nodes, protocols
        assert await fingerprint_at(proxy, "trionat-n3") in (first, second)


async def test_what_speaks_no_tls_is_not_held_up(proxy: Proxy, tmp_path: Path) -> None:
    async with (
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        await trio.open_tcp_stream(
            "127.0.0.1", proxy.control, local_address="127.0.0.2"
        ) as browser,
    ):
        await browser.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await server.wait_record(
            "connection closed", address=running.name_of(browser), within=15
        )  # HAProxy tries nodes that are down first, until it knows


async def test_proxy_that_is_killed(proxy: Proxy, tmp_path: Path) -> None:
    """Visitors that came through it are lost with it. Others go on when it is back, since their client is."""
    async with (
        services.echo() as service,
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service) as client,
        await proxy.visitor() as through,
        await trio.open_tcp_stream(NODE.format(1), proxy.visit) as direct,
    ):
        assert await ask(through, b"through") == b"through"
        assert await ask(direct, b"direct") == b"direct"
        await proxy.kill()
        assert await end_of(through) in ("end", "reset")
        await client.process.next_event("disconnected", within=10)
        await direct.send_all(b"meanwhile")
        await trio.sleep(1)
        await proxy.start()
        await client.wait_connected()
        assert await read_exactly(direct, 9) == b"meanwhile"
        assert await ask(direct, b"afterwards") == b"afterwards"
        async with await proxy.visitor() as another:
            assert await ask(another, b"another") == b"another"


@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
async def test_nginx_that_is_reloaded(proxy: Proxy, tmp_path: Path) -> None:
    """Nobody notices: the old workers go on with what they have."""
    async with (
        services.echo() as service,
        proxy.node(tmp_path / "s") as server,
        proxy.up(),
        running.client(tmp_path / "c", server.ticket, service) as client,
        await proxy.visitor() as visitor,
    ):
        assert await ask(visitor, b"before") == b"before"
        workers = set(proxy.pids)
        nginx = services.find_program("nginx", package="nginx-light")
        await trio.run_process(
            [nginx, "-e", "stderr", "-c", str(proxy.file), "-s", "reload"], capture_stderr=True
        )
        with trio.fail_after(10):
            while not set(proxy.pids) - workers:  # noqa: ASYNC110 - polls
                await trio.sleep(0.02)
        assert await ask(visitor, b"after") == b"after"
        async with await proxy.visitor() as another:
            assert await ask(another, b"another") == b"another"
        assert not [e for e in client.process.events if e["event"] == "disconnected"]


async def test_dead_node_is_left_for_the_next(proxy: Proxy, tmp_path: Path) -> None:
    """One that stands by has the same key: the client logs in there, and visitors are served there. Nodes that know of each other need not stand by."""
    async with (
        services.echo() as service,
        proxy.node(tmp_path / "s1", "--start-auth=false") as one,
        proxy.up(),
        running.client(tmp_path / "c", one.ticket, service) as client,
    ):
        async with await proxy.visitor() as visitor:
            assert await ask(visitor, b"one") == b"one"
        standby = tmp_path / "s2/state"
        standby.mkdir(parents=True)
        for name in ("server.key", "server.crt", "ticket.key"):
            shutil.copy(one.state / name, standby / name)
        one.kill()
        await client.process.next_event("disconnected", within=10)
        async with proxy.node(tmp_path / "s2", "--start-auth=false", number=2) as two:
            await client.wait_connected()
            if proxy.program == "haproxy":
                await proxy.wait_two_checks()
            for _ in range(5):
                async with await proxy.visitor() as visitor:
                    assert await ask(visitor, b"two") == b"two"
            await two.wait_record("visitor closed", count=5)


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_files_run_as_written(proxy: str, tmp_path: Path) -> None:
    """In networks of their own: the node n1 has 10.0.0.11, the proxy 10.0.0.1, and only the public name is another one.

    As README.md there says for one node, without what makes it one of several; `test_cluster_page.py` has all three.
    """
    alone = tmp_path / "server.yml"
    alone.write_text((EXAMPLES / "server.yml").read_text().partition("\nDatabase:")[0])
    with open_lab() as lab:
        lab.server.run("ip", "address", "add", "10.0.0.11/24", "dev", "eth0")
        lab.router.run("ip", "address", "add", "10.0.0.1/24", "dev", "server")
        public = f"{ROUTER}:8007"
        async with (
            trio.open_nursery() as nursery,
            services.trionat_process(
                *("serve", "--config", alone, "--json"),
                *("--state-dir", tmp_path / "s", "--public-addr", public),
                stdin=b"",
                inside=lab.server.inside,
            ) as server,
        ):
            ready = await server.next_event("ready", within=running.START_TIMEOUT)
            file = tmp_path / "nginx.conf"
            file.write_text((EXAMPLES / "nginx.conf").read_text().replace("/run/", f"{tmp_path}/"))
            if proxy == "nginx":
                program = services.find_program("nginx", package="nginx-light libnginx-mod-stream")
                command = [program, "-e", "stderr", "-c", str(file), "-g", "daemon off;"]
            else:
                program = services.find_program("haproxy", package="haproxy")
                command = [program, "-db", "-f", str(EXAMPLES / "haproxy.cfg")]
            process = await trio.lowlevel.open_process([*lab.router.inside, *command])
            seen: list[TCPAddress | None] = []

            async def answer(stream: trio.SocketStream) -> None:
                header = read_proxy_header(await stream.receive_some(28))
                if header is None:  # the client looks whether its service is up
                    return
                seen.extend((header.source, header.destination))
                await stream.send_all(b"hello")

            try:
                service = await lab.client.serve(answer, nursery)
                async with running.client(
                    *(tmp_path / "c", ready["ticket"], service, "--proxy-protocol", "v2"),
                    inside=lab.client.inside,
                ) as client:
                    port = client.port()
                    async with await lab.client.connect(ROUTER, port) as visitor:
                        assert await read_all(visitor) == b"hello"
                        name = TCPAddress(*visitor.socket.getsockname())
            finally:
                await services.stop_process(process)  # noqa: ASYNC102 - shields itself
            assert seen == [name, TCPAddress(ROUTER, port)]
            assert name.host == "10.77.1.1"
            assert b" address=10.77.1.1:" in server.errors.split(b"session up", 1)[1]
            assert 60000 <= port <= 60099
            nursery.cancel_scope.cancel()
