"""The program of a test: a name server that says something else each time, a receiver at each of the two addresses, and what becomes of requests.

Run in a network and a file system of its own, in which 9.9.9.9 is this machine and the name server is 127.0.0.1.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import cycle

import trio

from trionat.server.events.post import DeliveryError, post, receiver_context

ADDRESSES = cycle(["9.9.9.9", "127.0.0.1"])


async def name_server(*, task_status: trio.TaskStatus[None]) -> None:
    """Answer questions for IPv4 with the next address, good for no second, and those for IPv6 with nothing."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 53))
        task_status.started()
        while True:
            query, peer = await sock.recvfrom(512)
            end = query.index(0, 12) + 5
            is_ipv4 = query[end - 4 : end - 2] == b"\0\1"
            answer = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_ipv4 else b"\0\0") + bytes(4)
            answer += query[12:end]
            if is_ipv4:
                octets = bytes(map(int, next(ADDRESSES).split(".")))
                answer += b"\xc0\x0c\0\1\0\1" + bytes(4) + b"\0\4" + octets
            await sock.sendto(answer, peer)


async def receive(word: bytes, stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(word), word))


async def try_once(*, allow_private: bool) -> str:
    try:
        answer = await post(
            "http://rebind.test/", {}, b"x", tls=receiver_context(), allow_private=allow_private
        )
    except DeliveryError as error:
        assert "not an address of the Internet" in str(error), error  # noqa: PT017 - no test
        return "refused"
    return answer.body.decode()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(name_server)
        for word, host in ((b"public", "9.9.9.9"), (b"private", "127.0.0.1")):
            listeners = await trio.open_tcp_listeners(80, host=host)
            nursery.start_soon(trio.serve_listeners, partial(receive, word), listeners)
        guarded = [await try_once(allow_private=False) for _ in range(8)]
        unguarded = [await try_once(allow_private=True) for _ in range(2)]
        json.dump({"guarded": guarded, "unguarded": unguarded}, sys.stdout)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
