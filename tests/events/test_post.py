"""One request to a receiver, whatever that does; on a real socket."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from bench.program import free_port
from tests.certificates.made import Maker
from tests.events.receiver import HOST, Received, receiving, status
from trionat.server.events.post import Answer, DeliveryError, post, receiver_context

TLS = receiver_context()


async def send(
    url: str, *, allow_private: bool = True, deadline: float = 5.0, **more: Any
) -> Answer:
    headers = {"Content-Type": "application/json"}
    return await post(
        url, headers, b'{"a":1}', tls=TLS, allow_private=allow_private, deadline=deadline, **more
    )


async def test_a_request_is_whole() -> None:
    async with receiving(status(200, body=b"ok")) as receiver:
        answer = await send(f"{receiver.url}?key=1")
    assert answer == Answer(200, b"ok")
    (got,) = receiver.got
    assert (got.method, got.target, got.body) == ("POST", "/hook?key=1", b'{"a":1}')
    assert got.headers["host"] == f"{HOST}:{receiver.port}"
    assert got.headers["content-type"] == "application/json"


async def test_a_redirection_is_an_answer_and_not_followed() -> None:
    async with receiving() as other, receiving(status(302, Location=other.url)) as receiver:
        assert (await send(receiver.url)).status == 302
        assert other.got == []


async def test_retry_after_is_read() -> None:
    async with receiving(status(429, Retry_After="17")) as receiver:
        assert (await send(receiver.url)).retry_after == 17
    async with receiving(status(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT")) as receiver:
        assert (await send(receiver.url)).retry_after is None


async def test_a_receiver_that_hangs_costs_the_deadline() -> None:
    async def hang(_: trio.abc.Stream, __: Received) -> None:
        await trio.sleep_forever()

    async with receiving(hang) as receiver:
        with pytest.raises(DeliveryError, match=r"no answer within 0\.3 s"):
            await send(receiver.url, deadline=0.3)


async def test_one_that_accepts_and_reads_nothing_costs_the_deadline() -> None:
    listener = (await trio.open_tcp_listeners(0, host=HOST))[0]
    with pytest.raises(DeliveryError, match=r"no answer within 0\.3 s"):
        await send(f"https://{HOST}:{listener.socket.getsockname()[1]}/", deadline=0.3)
    await listener.aclose()


async def test_a_drip_of_an_answer_costs_the_deadline() -> None:
    async def drip(stream: trio.abc.Stream, _: Received) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.01)

    async with receiving(drip) as receiver:
        with pytest.raises(DeliveryError, match=r"no answer within 0\.5 s"):
            await send(receiver.url, deadline=0.5)


async def test_a_slow_body_behind_a_good_head_is_not_waited_for() -> None:
    async def answer(stream: trio.abc.Stream, _: Received) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
        await trio.sleep_forever()

    async with receiving(answer) as receiver:
        with trio.fail_after(4):
            assert await send(receiver.url, deadline=6) == Answer(200, b"ab")


async def test_an_answer_without_end_is_cut_off() -> None:
    sent = 0

    async def flood(stream: trio.abc.Stream, _: Received) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(bytes(65536))
            sent += 65536

    async with receiving(flood) as receiver:
        answer = await send(receiver.url)
    assert len(answer.body) == 16 * 1024
    assert sent < 32 * 1024 * 1024  # what the kernel takes for nobody


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed the connection before it has answered"),
        (b"HTTP/1.1 200", "closed the connection|no HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 70_000, "no HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no HTTP"),
    ],
)
async def test_nonsense_is_told_in_a_line(said: bytes, words: str) -> None:
    async def answer(stream: trio.abc.Stream, _: Received) -> None:
        await stream.send_all(said)

    async with receiving(answer) as receiver:
        with pytest.raises(DeliveryError, match=words) as caught:
            await send(receiver.url)
    assert "\n" not in str(caught.value)
    assert "/hook" not in str(caught.value)


async def test_what_nobody_listens_at() -> None:
    with pytest.raises(DeliveryError, match=r"cannot be reached: .*refused"):
        await send(f"http://{HOST}:{free_port()}/")


async def test_cancelling_takes_no_time() -> None:
    async def hang(_: trio.abc.Stream, __: Received) -> None:
        await trio.sleep_forever()

    async with receiving(hang) as receiver:
        started = trio.current_time()
        with trio.move_on_after(0.2):
            await send(receiver.url)
        assert trio.current_time() - started < 0.6


# --- TLS ---


@pytest.fixture
def server_side(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a receiver for 127.0.0.1 shows, and who trusts its authority."""
    maker = Maker()
    key, chain = maker.chain("127.0.0.1")
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "chain.pem").write_bytes(chain)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    trusting = receiver_context()
    trusting.load_verify_locations(cadata=maker.pem.decode())
    return shown, trusting


async def test_tls_with_an_authority_that_is_known(
    server_side: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    shown, trusting = server_side
    async with receiving(status(200), tls=shown) as receiver:
        answer = await post(receiver.url, {}, b"x", tls=trusting, allow_private=True)
        assert answer.status == 200
        with pytest.raises(DeliveryError, match="certificate is refused"):
            await send(receiver.url)
        with pytest.raises(DeliveryError, match=r"certificate is refused: .*[Hh]ostname"):
            url = receiver.url.replace(HOST, "localhost")
            await post(url, {}, b"x", tls=trusting, allow_private=True)
        assert len(receiver.got) == 1


async def test_no_tls_where_it_should_be(nursery: trio.Nursery) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listeners = await trio.open_tcp_listeners(0, host=HOST)
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    with pytest.raises(DeliveryError, match="TLS failed: wrong version number"):
        await send(f"https://{HOST}:{listeners[0].socket.getsockname()[1]}/")
    nursery.cancel_scope.cancel()


# --- private addresses ---


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "[::1]",
        "2130706433",
        "0x7f.1",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
    ],
)
async def test_private_addresses_are_refused(host: str) -> None:
    async with receiving() as receiver:
        with pytest.raises(DeliveryError, match="not an address of the Internet"):
            await send(f"http://{host}:{receiver.port}/", allow_private=False)
    assert receiver.got == []


async def test_a_name_that_leads_here_is_refused_and_so_is_one_that_does_so_when_it_is_asked_for_again(
    tmp_path: Path,
) -> None:
    """In a network of its own, with a name server that says 9.9.9.9 and 127.0.0.1 by turns, and a receiver at both."""
    if shutil.which("unshare") is None or os.geteuid():
        pytest.skip("takes unshare (Debian: util-linux) and root")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
    script = (
        "ip link set lo up && ip addr add 9.9.9.9/32 dev lo"
        f" && mount --bind {tmp_path}/resolv.conf /etc/resolv.conf"
        f" && exec {sys.executable} -m tests.events.rebinding"
    )
    process = await trio.run_process(
        ["unshare", "--mount", "--net", "sh", "-c", script],
        capture_stdout=True,
        cwd=Path(__file__).parents[2],
    )
    told = json.loads(process.stdout)
    assert told["guarded"] == ["public", "refused"] * 4
    assert "private" in told["unguarded"], "the name server does not lead here at all"
