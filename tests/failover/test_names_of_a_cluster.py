"""Names of a cluster: any node takes a visitor of any name, and the node that has its client does the rest."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from bench.program import free_port
from tests.certificates.made import Maker
from tests.certificates.pebble import running_pebble
from tests.e2e import running
from tests.e2e.named import Answer
from tests.e2e.test_names import answering
from tests.failover.test_cluster import LOGIN, Cluster, starting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.mariadb import MariaDB

pytestmark = pytest.mark.limit(120)

DOMAIN = "tunnel.test"
SHOP, BLOG = f"shop.{DOMAIN}", f"blog.{DOMAIN}"


class Nodes:
    """Nodes with names: the same ports at each address, and certificates of the operator's own."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.http, self.https = free_port(), free_port()
        self.workers = workers
        self.own = folder / "own"
        self.own.mkdir()
        maker = Maker()
        key, chain = maker.chain(f"*.{DOMAIN}")
        (self.own / "wild.key").write_bytes(key)
        (self.own / "wild.crt").write_bytes(chain)
        self.authority = folder / "authority.pem"
        self.authority.write_bytes(maker.pem)

    def config(self, number: int) -> str:
        return (
            f"Server:\n  Domain: {DOMAIN}\n  HttpAddr: 127.0.0.{number}:{self.http}\n  HttpsAddr: 127.0.0.{number}:{self.https}\n"
            f"  CertificatesDir: {self.own}\n  PlainHttp: true\n  Workers: {self.workers}\n"
        )

    async def ask(self, node: int, name: str, *, plain: bool = False) -> Answer:
        """Ask a node for a name by curl."""
        port = self.http if plain else self.https
        command = [
            *("curl", "--silent", "--show-error", "--include", "--max-time", "20"),
            *("--cacert", str(self.authority), "--resolve", f"{name}:{port}:127.0.0.{node}"),
            f"{'http' if plain else 'https'}://{name}:{port}/",
        ]
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        assert done.returncode == 0, (command, done.returncode, done.stderr)
        return Answer.read(done.stdout)

    async def become(self, node: int, name: str, body: bytes, *, plain: bool = False) -> None:
        """Ask until the service answers: a node may not have heard yet, and says so."""
        with trio.fail_after(20):
            while True:
                answer = await self.ask(node, name, plain=plain)
                if answer.status == 200:
                    assert answer.body.startswith(body), answer
                    return
                assert answer.status in (404, 502, 503), answer
                await trio.sleep(0.1)


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Nodes:
    return Nodes(tmp_path, request.param)


@pytest.fixture
async def cluster(mariadb: MariaDB, tmp_path: Path, nodes: Nodes) -> AsyncIterator[Cluster]:
    async with starting(mariadb, tmp_path, extra=nodes.config) as cluster:
        yield cluster


async def test_any_node_takes_a_visitor_of_any_name(cluster: Cluster, nodes: Nodes) -> None:
    async with answering(b"shop") as shop, answering(b"blog") as blog:
        cluster.front.order = ["127.0.0.1"]
        first = await cluster.connect("first", f"http:{shop.port}@shop")
        cluster.front.order = ["127.0.0.2"]
        await cluster.connect("second", f"http:{blog.port}@blog")
        assert first.connected["services"][0]["public"] == f"https://{SHOP}:{nodes.https}"
        for node in (1, 2):
            for plain in (False, True):
                await nodes.become(node, SHOP, b"shop ", plain=plain)
                await nodes.become(node, BLOG, b"blog ", plain=plain)
            assert (await nodes.ask(node, f"nobody.{DOMAIN}")).status == 404
        # A name is one client's, whichever node it comes to.
        async with running.client_process(
            cluster.folder / "third",
            *(f"http:{shop.port}@shop", "--controller-addr", f"127.0.0.1:{cluster.front.port}"),
            *("--fingerprint", str(cluster.nodes[1].ready["fingerprint"])),
            environ=LOGIN,
        ) as third:
            told = await third.process.next_event("disconnected")
            assert "is in use by another client" in told["reason"]
            third.ended = True
            third.process.interrupt()
        # On one connection, a name that is at the other node: a browser makes another connection then.
        context = ssl.create_default_context(cafile=str(nodes.authority))
        stream = trio.SSLStream(
            await trio.open_tcp_stream("127.0.0.1", nodes.https),
            context,
            server_hostname=SHOP,
            https_compatible=True,
        )
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {SHOP}\r\n\r\n".encode())
        assert b" 200 " in await stream.receive_some()
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {BLOG}\r\n\r\n".encode())
        assert b" 421 " in await stream.receive_some()
        await stream.aclose()
        # The client's node is killed: its client comes back to the other one, with its name.
        cluster.nodes[1].kill()
        await first.wait_connected()
        await nodes.become(2, SHOP, b"shop ")


async def test_one_node_orders_a_certificate_for_all(mariadb: MariaDB, tmp_path: Path) -> None:
    """The authority looks for the answer at the first node, while the client is at the second; then that one is killed, and its certificate goes on."""
    with running_pebble() as pebble:
        root = await trio.to_thread.run_sync(pebble.root)

        def config(number: int) -> str:
            return (
                f"Server:\n  Domain: {DOMAIN}\n  HttpAddr: 127.0.0.{number}:{pebble.http_port}\n"
                f"  HttpsAddr: 127.0.0.{number}:{pebble.tls_port}\n"
                f"Acme:\n  Directory: {pebble.directory}\n  CAFile: {pebble.authority}\n"
            )

        async def shown(node: int) -> tuple[str, bytes]:
            """Return the serial number of the certificate for the name, and what the service has said."""
            context = ssl.create_default_context(cadata=root)
            stream = trio.SSLStream(
                await trio.open_tcp_stream(f"127.0.0.{node}", pebble.tls_port),
                context,
                server_hostname=SHOP,
                https_compatible=True,
            )
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: {SHOP}\r\n\r\n".encode())
            answer = await stream.receive_some()
            await trio.aclose_forcefully(stream)
            return stream.getpeercert()["serialNumber"], bytes(answer)

        async with (
            starting(mariadb, tmp_path, extra=config) as cluster,
            answering(b"shop") as shop,
        ):
            cluster.front.order = ["127.0.0.2"]
            client = await cluster.connect("client", f"http:{shop.port}@shop")
            await cluster.nodes[2].wait_record("got a certificate", within=30)
            serial, answer = await shown(2)
            assert b" 200 " in answer
            assert (await shown(1))[0] == serial, "the first node passes it on"
            cluster.front.order = ["127.0.0.1"]
            cluster.nodes[2].kill()
            await client.wait_connected()
            await cluster.nodes[1].wait_record("another server has got the certificate", within=30)
            serial_there, answer = await shown(1)
            assert serial_there == serial
            assert b" 200 " in answer
            records = cluster.nodes[1].records
            assert not [each for each in records if each["event"] == "got a certificate"]
