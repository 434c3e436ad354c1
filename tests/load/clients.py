"""A program: a hundred clients and a service, which answers every line with itself, in one process; a JSON line for each event.

`python clients.py TICKET FIRST COUNT FOLDER`: clients FIRST to FIRST + COUNT - 1, as `load-FIRST` and so on. Ends with SIGINT.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import trionat

if TYPE_CHECKING:
    from trionat.events import ClientEvent


def tell(client: int, event: ClientEvent) -> None:
    match event:
        case trionat.Connected(services=services):
            told: dict[str, object] = {"event": "connected", "port": services[0].public.port}
        case trionat.Disconnected(reason=reason, retry_in=retry_in):
            told = {"event": "disconnected", "reason": reason, "retry_in": retry_in}
        case _:
            told = {"event": type(event).__name__.lower()}
    print(json.dumps({"client": client, **told}), flush=True)


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def run(ticket: str, first: int, count: int, folder: Path) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, echo, listeners)
        local = trionat.TCPAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        for number in range(first, first + count):
            config = trionat.ClientConfig(
                ticket=ticket,
                services=(trionat.Service(local=local),),
                identity=f"load-{number}",
                state_dir=folder,
            )
            client = trionat.Client(config, on_event=partial(tell, number))
            nursery.start_soon(client.run, name=f"client {number}")


if __name__ == "__main__":
    _, ticket, first, count, folder = sys.argv
    try:
        trio.run(run, ticket, int(first), int(count), Path(folder))
    except* KeyboardInterrupt:
        pass
