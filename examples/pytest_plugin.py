"""The fixtures that pytest finds where trionat is installed, in tests of any kind: no Trio in sight.

Run it by `pytest pytest_plugin.py`. It imports nothing of trionat, but for the types and for endpoints in memory.
"""

from __future__ import annotations

import threading
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from trionat.testing import MemoryEndpoint, memory_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trionat
    from trionat.testing import Expose


@pytest.fixture
def web_port() -> Iterator[int]:
    """Run the service under test, and say at which port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


def test_it_works_through_a_tunnel(trionat_expose: Expose, web_port: int) -> None:
    public = trionat_expose(web_port).public
    with urllib.request.urlopen(f"http://{public}/", timeout=10) as answer:
        assert answer.status == 200


def test_a_client_of_my_own(trionat_server: trionat.Ready) -> None:
    assert trionat_server.ticket is not None  # for `trionat connect`, or a ClientConfig


def test_a_stream_without_sockets() -> None:
    one, two = memory_pair()
    one.send(b"hello")
    one.send_eof()
    assert received(two) == [b"hello", b""]
    one.close()
    two.close()


def received(endpoint: MemoryEndpoint) -> list[bytes]:
    room = memoryview(bytearray(64 * 1024))
    return [bytes(room[: endpoint.recv_into(room)]) for _ in range(2)]
