"""Sending somebody away: a user's clients, one session, or one visitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

import attrs
import trio

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.server.admin.messages import (
    Kick,
    Kicked,
    KickSession,
    KickUser,
    KickVisitor,
    decode_request,
    encode_request,
)
from trionat.server.registry.claim import is_group
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from trionat.server.cluster.node import Node
    from trionat.server.control.context import ServerContext
    from trionat.server.sessions.session import Session

log = get_logger(__name__)

_REASON: Final = "sent away by the server's operator"


async def kick(context: ServerContext, request: Kick, *, everywhere: bool = True) -> Kicked:
    """Send away whoever is meant, and return when they are gone: ports free, visitors closed.

    A user's clients are sent away from the other nodes of the cluster as well, unless it is one of those that asks: nobody waits for that.

    A native client is told, and does not come back by itself; one that does not listen takes a second longer. Cancelled,
    they are gone all the same, only nobody waits for it.
    """
    match request:
        case KickUser(name):
            queued, reserved = context.admission.send_away(
                name, RefusedError(RefusalCode.KICKED, _REASON)
            )
            theirs = [each for each in context.sessions.by_uid.values() if each.username == name]
            kicked = Kicked(
                sessions=await _end(context, theirs),
                queued=queued,
                reserved=tuple(point for point in reserved if isinstance(point, int)),
                names=tuple(point for point in reserved if isinstance(point, str)),
            )
            if everywhere and context.node is not None:
                kicked = tell_others(context.node, request, kicked)
        case KickSession(uid):
            session = context.sessions.by_uid.get(uid)
            kicked = Kicked(sessions=await _end(context, [session] if session is not None else []))
        case KickVisitor(number):
            kicked = Kicked(visitors=(number,) if _reset(context, number) else ())
            await trio.lowlevel.checkpoint()
        case _:
            assert_never(request)
    return kicked


def tell_others(node: Node, request: KickUser, kicked: Kicked) -> Kicked:
    """Ask the other nodes to send a user's clients away, and add how many they are, and have, to what was done here."""
    entries = node.table.of_user(request.name)
    elsewhere = sum(each.node != node.name and not is_group(each.key) for each in entries)
    told = node.kick(encode_request(request))
    return attrs.evolve(kicked, told=told, elsewhere=elsewhere) if told else kicked


async def kick_for_others(send_away: Callable[[KickUser], Awaitable[Kicked]], line: bytes) -> None:
    """Have whoever sent away, from this node alone, whom another node of the cluster was asked to send away."""
    with isolated(log, "another node's request was passed over"):
        request = decode_request(line)
        if not isinstance(request, KickUser):
            raise RemoteProtocolError("only users are known to all nodes")
        kicked = await send_away(request)
        if kicked.anybody:
            log.info("kicked for another node", request=str(request), **attrs.asdict(kicked))


async def _end(context: ServerContext, sessions: Iterable[Session]) -> tuple[int, ...]:
    ended = tuple(session.uid for session in sessions)
    for uid in ended:
        session = context.sessions.by_uid[uid]
        session.lease.give_up(_REASON)  # nobody who waits shall wait for the client's answer
        session.end(CloseCode.KICKED, _REASON)
    await context.sessions.wait_gone(ended)
    return ended


def _reset(context: ServerContext, number: int) -> bool:
    queues = [lease.queue for lease in context.leases]
    return any(queue.kick(number, _REASON) for queue in queues) or any(
        session.tunnels.kick(number, _REASON) for session in context.sessions.by_uid.values()
    )
