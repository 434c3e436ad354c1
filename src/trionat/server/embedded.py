"""A server as a part of another program, a Trio program: without what belongs to commands, such as reloads and upgrades."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from trionat.config.key import check_faults
from trionat.event_loop import require_trio
from trionat.server import app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trionat.config.acme import AcmeConfig
    from trionat.config.cluster import ClusterConfig
    from trionat.config.database import DatabaseConfig
    from trionat.config.events import EventsConfig
    from trionat.config.server import ServerConfig
    from trionat.events import Ready


async def serve(  # noqa: ASYNC128 - what it calls does
    config: ServerConfig,
    *,
    database: DatabaseConfig | None = None,
    cluster: ClusterConfig | None = None,
    acme: AcmeConfig | None = None,
    events: EventsConfig | None = None,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until it is cancelled, or until `stopping` is set and every session has ended. `open_server` is the same as a block.

    Start it with `ready = await nursery.start(trionat.serve, config)`: that returns when all ports are bound. Setting
    `stopping` is the planned stop: nobody new is let in, clients are told, visitors may finish for `config.drain_grace`
    seconds. Cancelling stops at once. Either way no task, socket or file is left behind. Several servers may run in one program.

    Where `config.state_dir` is None nothing is kept: keys, certificate, accounts and traffic are in memory, and gone at the end. It is never the
    folder of `trionat serve`, unless you name that one. docs/library.md says what cannot be had without a folder.

    Args:
        config: The section `Server` of a configuration.
        database: Where accounts and traffic are, if neither in the state folder nor in memory. It is waited for, or ends the start, as `database.wait` says.
        cluster: This server is a node of that cluster; needs `database`. Its Redis is waited for as `cluster.wait` says.
        acme: Where certificates for names come from; the defaults without it. Of use where `config.domain` is set.
        events: Who is told what happens.
        stopping: Set by the caller for the planned stop. If it is set while the database is still waited for, `nursery.start` raises StartupError.
        task_status: Trio's; gets what `nursery.start` returns.

    Raises:
        EventLoopError: this is not a Trio program.
        ConfigError: `config`, or another section, has what does not go together.
        StartupError: an address cannot be bound, or the state folder not be used, or another server runs on it; or something that `config` wants needs
            a folder, a library or descriptors that are not there.
        StoreUnavailableError: the accounts cannot be asked for.
    """
    require_trio("trionat.serve", "async with trionat.TrioThread(trionat.open_server(...))")
    for section in (config, database, cluster, acme, events):
        if section is not None:
            check_faults(section)
    await app.serve(
        config,
        database=database,
        cluster=cluster,
        acme=acme,
        events=events,
        stopping=stopping,
        task_status=task_status,
    )


@asynccontextmanager
async def open_server(
    config: ServerConfig,
    *,
    database: DatabaseConfig | None = None,
    cluster: ClusterConfig | None = None,
    acme: AcmeConfig | None = None,
    events: EventsConfig | None = None,
) -> AsyncGenerator[Ready]:
    """Run a server while the block runs; the block begins when all ports are bound, and gets what it has to know of them.

    The arguments are those of `serve`. Leaving the block is the planned stop: nobody new is let in, clients are told, visitors may finish for
    `config.drain_grace` seconds. Cancelling it stops at once. An error in the block stops the server at once; it, or one of the server's,
    comes out in an exception group, as from any nursery.

    Raises:
        EventLoopError: this is not a Trio program.
        ConfigError, StartupError, StoreUnavailableError: as `serve`, in an exception group.
    """
    require_trio("trionat.open_server", "async with trionat.TrioThread(trionat.open_server(...))")
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(
            serve,
            config,
            database=database,
            cluster=cluster,
            acme=acme,
            events=events,
            stopping=stopping,
        )
        yield await nursery.start(run, name="serve")
        stopping.set()
