"""A FastAPI program that makes itself public, for as long as it runs.

`TRIONAT_TICKET=tn1_… python fastapi_app.py` needs fastapi and uvicorn. FastAPI runs under asyncio and trionat under Trio, so the client has a thread
of its own (`trionat.TrioThread`), and the lifespan begins and ends it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

import trionat

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PORT = int(os.environ.get("PORT", "8000"))
public: list[str] = []
"""Where visitors reach this program now; nothing while the connection to the server is lost."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    loop = asyncio.get_running_loop()

    def note(event: trionat.ClientEvent) -> None:
        match event:
            case trionat.Connected(services=services):
                public[:] = [service.shown for service in services]
                print(f"public at {', '.join(public)}", flush=True)
            case trionat.Disconnected(reason=reason):
                public.clear()
                print(f"not public any more: {reason}", flush=True)
            case _:  # docs/library.md has the others
                pass

    def tell(event: trionat.ClientEvent) -> None:
        """Runs in the thread of the client: whatever belongs to the loop is done there."""
        loop.call_soon_threadsafe(note, event)

    config = trionat.ClientConfig(
        ticket=os.environ["TRIONAT_TICKET"], services=(trionat.parse_service(str(PORT)),)
    )
    async with trionat.TrioThread(trionat.connect(config, on_event=tell), timeout=30):
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index() -> dict[str, list[str]]:  # noqa: ASYNC124 - a plain one would run in a thread
    return {"public": public}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT)
