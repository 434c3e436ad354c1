"""How a cluster comes into being, and how a state folder becomes that of one of its nodes."""

from __future__ import annotations

import enum
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio

from trionat.errors import RegistryAwayError, StartupError
from trionat.log import get_logger
from trionat.server.cluster.identity import Identity, adopt_identity, read_identity
from trionat.server.cluster.node import explain, name_taken, read_nodes
from trionat.server.cluster.redis_link import RedisLink
from trionat.server.cluster.scripts import FORMAT, FOUND, LOOK, NODES
from trionat.server.cluster.table import readable
from trionat.server.state_folder import prepare_state
from trionat.store.private_file import (
    create_private,
    is_there,
    make_private_folder,
    read_private,
    write_private,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from trionat.config.cluster import ClusterConfig
    from trionat.server.cluster.node import NodeStatus
    from trionat.server.cluster.seal import Seal

log = get_logger(__name__)

T = TypeVar("T")

_WAIT: Final = 2.0
"""Seconds between two looks at a Redis that is waited for."""

_MEMBER_BYTES: Final = 16


async def ask_redis(config: ClusterConfig, question: Callable[[RedisLink], Awaitable[T]]) -> T:
    """Ask Redis one thing, without being a node.

    Raises:
        RegistryAwayError: it does not answer; says why.
        StartupError: as the question raises it.
    """
    answers: list[T] = []

    async def attend() -> None:
        answers.append(await question(link))

    link = RedisLink(config, attend, lambda _: None)
    reason = await link.live()
    if not answers:
        raise RegistryAwayError(f"Redis at {config.address}: {reason}")
    return answers[0]


class ServerKey(enum.Enum):
    """Where the key has come from that a state folder has after `found`."""

    KEPT = enum.auto()
    MADE = enum.auto()
    TAKEN = enum.auto()
    """Out of Redis."""


@attrs.frozen
class Founding:
    """What `found` has done: whether the cluster `is_new`, and which key of a server it has."""

    is_new: bool
    key: ServerKey


async def refuse_foreign(config: ClusterConfig) -> None:
    """Look, before a key of a new cluster is made, whether Redis has a cluster already.

    Raises:
        StartupError: it has one; the message says what to do.
        RegistryAwayError: Redis does not answer.
    """
    cluster_id, _, _ = await _look_up(config)
    if cluster_id:
        raise StartupError(
            f"Redis at {config.address}: it has a cluster already ({readable(cluster_id)}), and {config.key_file} is not there: copy its key"
            " from one of its nodes, and start this one; for a new cluster, name another Redis or another database number"
        )


async def found(config: ClusterConfig, seal: Seal, folder: Path, names: Sequence[str]) -> Founding:
    """Put this folder's identity, which is made where it is missing, into Redis, unless Redis has the cluster.

    Raises:
        StartupError: Redis has another cluster, or this cluster has another identity than the folder.
        RegistryAwayError: Redis does not answer.
    """
    before = await _look(config, seal)
    has_key = await trio.to_thread.run_sync(is_there, folder / "server.key")
    if before is not None:
        await trio.to_thread.run_sync(partial(_adopt, folder, seal, before, replace=False))
        return Founding(False, ServerKey.KEPT if has_key else ServerKey.TAKEN)
    await trio.to_thread.run_sync(partial(prepare_state, folder, names=names))
    identity = await trio.to_thread.run_sync(read_identity, folder)
    assert identity is not None, "just made"  # noqa: S101 - for type checkers

    async def question(link: RedisLink) -> list[bytes]:
        return await link.call(FOUND, FORMAT, seal.cluster_id, identity.seal(seal))

    answer = await ask_redis(config, question)
    if answer[0] != b"ok" or len(answer) != len(("ok", "identity")):
        raise StartupError(f"Redis at {config.address}: {explain(answer)}")
    theirs = Identity.unseal(seal, answer[1])  # somebody may have been faster
    await trio.to_thread.run_sync(partial(_adopt, folder, seal, theirs, replace=False))
    return Founding(theirs == identity, ServerKey.KEPT if has_key else ServerKey.MADE)


async def join(
    config: ClusterConfig, seal: Seal, folder: Path, *, replace: bool = False, wait: bool = False
) -> Identity:
    """Make a state folder that of a node: it gets the cluster's identity; return that.

    A Redis that is empty gets it back from a folder that has been a node's before. With `wait`, a Redis that does not answer is waited for.

    Raises:
        StartupError: there is no such cluster, or the folder has another identity, and it is not to be replaced.
        RegistryAwayError: Redis does not answer.
    """
    reason, identity = "", None
    member = await trio.to_thread.run_sync(member_of, folder)
    while True:
        try:
            identity = await _look(config, seal, member)
        except RegistryAwayError as error:
            if not wait:
                raise
            if reason != (reason := str(error)):
                log.warning("waiting for Redis", reason=reason, retry_in=_WAIT)
            await trio.sleep(_WAIT)
        else:
            break
    if identity is None:
        identity = read_identity(folder) if _is_marked(folder, seal) else None
        if identity is None:
            raise StartupError(f"Redis at {config.address}: {explain([b'new'])}")
    await trio.to_thread.run_sync(partial(_adopt, folder, seal, identity, replace=replace))
    return identity


def _adopt(folder: Path, seal: Seal, identity: Identity, *, replace: bool) -> None:
    identity.check()
    adopt_identity(folder, identity, replace=replace)
    _mark(folder, seal)


async def look_at_nodes(config: ClusterConfig, seal: Seal) -> list[NodeStatus]:
    """Return the nodes that are there, from Redis itself.

    Raises:
        StartupError: Redis has no such cluster.
        RegistryAwayError: Redis does not answer.
    """
    if await _look(config, seal) is None:
        raise StartupError(f"Redis at {config.address}: {explain([b'new'])}")

    async def question(link: RedisLink) -> list[NodeStatus]:
        return read_nodes(await link.call(NODES), seal)

    return await ask_redis(config, question)


async def _look(config: ClusterConfig, seal: Seal, member: str | None = None) -> Identity | None:
    """Return the cluster's identity, or None where Redis has no cluster. With a `member`, its name has to be free."""
    cluster_id, sealed, rival = await _look_up(config, member)
    if cluster_id and cluster_id != seal.cluster_id.encode():
        raise StartupError(f"Redis at {config.address}: {explain([b'foreign', cluster_id])}")
    if member is not None and rival:
        raise StartupError(f"Redis at {config.address}: {name_taken(config.node, rival)}")
    return Identity.unseal(seal, sealed) if sealed else None


async def _look_up(config: ClusterConfig, member: str | None = None) -> tuple[bytes, bytes, bytes]:
    """Return which cluster Redis has, its identity, sealed, and who else has this node's name; each is empty where there is none."""

    async def question(link: RedisLink) -> list[bytes]:
        return await link.call(LOOK, config.node, member or "")

    answer = await ask_redis(config, question)
    if len(answer) != len(("ok", "format", "id", "identity", "rival")):
        raise StartupError(f"Redis at {config.address}: {explain(answer)}")
    _, theirs, cluster_id, sealed, rival = answer
    if theirs and theirs != str(FORMAT).encode():
        raise StartupError(f"Redis at {config.address}: {explain([b'format', theirs])}")
    return cluster_id, sealed, rival


def member_of(folder: Path) -> str:
    """Return what tells this state folder, which is made, from those of other nodes. Blocks.

    Raises:
        StartupError: it cannot be written or read.
    """
    make_private_folder(folder)
    path = folder / "node"
    if not is_there(path):
        create_private(path, secrets.token_hex(_MEMBER_BYTES).encode())
    text = read_private(path).decode(errors="replace").strip()
    if len(text) != 2 * _MEMBER_BYTES or not set(text) <= set("0123456789abcdef"):
        raise StartupError(f"{path}: it is damaged: delete it")
    return text


def _mark(folder: Path, seal: Seal) -> None:
    write_private(folder / "cluster", f"{seal.cluster_id}\n".encode())


def _is_marked(folder: Path, seal: Seal) -> bool:
    path = folder / "cluster"
    return is_there(path) and read_private(path).strip() == seal.cluster_id.encode()
