"""Sending somebody away: a user's clients, one session, or one visitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode
from trionat.server.admin.messages import Kick, Kicked, KickSession, KickUser, KickVisitor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionat.server.sessions.registry import Desk
    from trionat.server.sessions.session import Session

log = get_logger(__name__)

_REASON: Final = "sent away by the server's operator"


async def kick(desk: Desk, request: Kick) -> Kicked:
    """Send away whoever is meant, and return when they are gone: ports free, visitors closed.

    A native client is told, and does not come back by itself; one that does not listen takes a second longer. Cancelled,
    they are gone all the same, only nobody waits for it.
    """
    match request:
        case KickUser(name):
            queued, reserved = desk.admission.send_away(
                name, RefusedError(CloseCode.KICKED, _REASON)
            )
            theirs = [each for each in desk.sessions.values() if each.username == name]
            kicked = Kicked(sessions=await _end(desk, theirs), queued=queued, reserved=reserved)
        case KickSession(uid):
            session = desk.sessions.get(uid)
            kicked = Kicked(sessions=await _end(desk, [session] if session is not None else []))
        case KickVisitor(number):
            kicked = Kicked(visitors=(number,) if _reset(desk, number) else ())
            await trio.lowlevel.checkpoint()
        case _:
            assert_never(request)
    return kicked


async def _end(desk: Desk, sessions: Iterable[Session]) -> tuple[int, ...]:
    ended = tuple(session.uid for session in sessions)
    for uid in ended:
        session = desk.sessions[uid]
        session.lease.visitors.close(_REASON)  # nobody who waits shall wait for the client's answer
        session.end(CloseCode.KICKED, _REASON)
    await desk.wait_gone(ended)
    await trio.lowlevel.checkpoint()  # their leases' keepers give the ports back
    return ended


def _reset(desk: Desk, number: int) -> bool:
    queues = [lease.visitors for lease in desk.admission.leases.values()]
    return any(queue.kick(number, _REASON) for queue in queues) or any(
        session.tunnels.kick(number, _REASON) for session in desk.sessions.values()
    )
