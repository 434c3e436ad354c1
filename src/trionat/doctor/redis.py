"""Whether the Redis of a cluster is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import trio

from trionat.doctor.clock import compare_clocks
from trionat.doctor.finding import Finding, fine, warning, wrong
from trionat.errors import RegistryAwayError
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from trionat.config.cluster import ClusterConfig

_PATIENCE: Final = 8.0
"""Seconds to find out which server has the keys, and to ask it."""

_KEEPS: Final = "noeviction"


async def check_redis(config: ClusterConfig) -> list[Finding]:
    """Find the server that has the cluster's keys, as a node does; ask for its clock, and whether it throws keys away."""
    from trionat.server.cluster.primary import find_primary, open_client, words_of  # noqa: PLC0415 - memory
    from trionat.server.cluster.redis_link import require_library  # noqa: PLC0415 - memory

    await trio.to_thread.run_sync(require_library)
    there, policy, here = 0.0, "", 0.0
    address = config.address.addresses[0]
    reason = ""
    try:
        with trio.fail_after(_PATIENCE):
            address = await find_primary(config)
            async with open_client(config, address) as client:
                moment: Any = await client.time()
                there, here = moment.timestamp(), time.time()
                memory: Any = await client.info("memory")
                policy = str(memory.get("maxmemory_policy", _KEEPS))
    except* RegistryAwayError as group:
        reason = str(next(leaves(group)))
    except* Exception as group:  # noqa: BLE001 - the library has kinds of its own for what may go wrong
        reason = words_of(next(leaves(group)))
    if reason:
        return [
            wrong(
                f"Redis {config.address}: {reason}",
                "what is up goes on; nobody new gets a port until it is back. Correct Cluster.Redis, or start it",
            )
        ]
    found = [fine(f"Redis {address} has the cluster's keys")]
    if policy != _KEEPS:
        found.append(
            warning(
                f"Redis {address} throws keys away when its memory is full (maxmemory-policy {policy})",
                f"set maxmemory-policy {_KEEPS}: two clients may get one port otherwise",
            )
        )
    return [*found, compare_clocks(there, here, f"that of Redis {address}")]
