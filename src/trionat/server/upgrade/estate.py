"""What the process that serves leaves to the one that takes its place: leases, their visitors with their streams, bans, and the numbers to go on with.

Times are seconds ago: each process has a clock of its own. What visitors are still to be sent, or the client, stands behind the JSON as bytes, in
the order of the visitors. Nobody reads from or writes to any of them while this is written and read, since no session is up.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.send_buffer import SendBuffer
from trionat.relay.stream import Failure, VisitorStream
from trionat.server.registry.values import read_wish, write_wish
from trionat.server.visitors.visitor import Visitor
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trionat.server.admission.lease import Lease
    from trionat.server.admission.leases import Leases
    from trionat.server.registry.claim import Claim
    from trionat.server.upgrade.wire import Parcel, Values
    from trionat.server.visitors.acceptor import VisitorAcceptor

log = get_logger(__name__)

_PIECE: Final = 16 * 1024
"""Bytes that are held together again: the memory of a piece is free when all of it is acknowledged."""

_TOKEN_BYTES: Final = 16


@attrs.define(eq=False, kw_only=True)
class Estate:
    """As it is sent. The descriptors stay whose they are."""

    values: Values
    data: list[bytes]
    descriptors: list[int]

    @property
    def leases(self) -> int:
        """How many there are."""
        return len(self.values["leases"])

    @property
    def visitors(self) -> int:
        """How many are there, without those of whom only the client is to be told."""
        return len(self.descriptors)


def write_claim_alone(claim: Claim, vacant: float) -> Values:
    """Write down what a client has whose visitors are lost, and which was lost so many seconds ago itself."""
    return {
        "wish": write_wish(claim.wish),
        "points": claim.points,
        "token": secrets.token_hex(_TOKEN_BYTES),  # nobody's: there is nothing to go on with
        "vacant": vacant,
        "visitors": [],
    }


def join_estates(parts: Mapping[str, Parcel]) -> Estate:
    """Return all that several processes have written, by their words, as one; each lease knows whose it was. The descriptors stay those of the parcels."""
    estate = Estate(values={"leases": []}, data=[], descriptors=[])
    for word, parcel in parts.items():
        estate.values["leases"] += [
            {**values, "worker": word} for values in parcel.values["leases"]
        ]
        estate.data.append(parcel.data)
        estate.descriptors += parcel.descriptors
    return estate


def split_estate(parcel: Parcel, place_of: Callable[[Values], str]) -> dict[str, Estate]:
    """Return what several processes get, by their words, of what another one has written; `place_of` is asked for each lease. The descriptors stay those of the parcel."""
    parts: dict[str, Estate] = {}
    descriptors, data, start = iter(parcel.descriptors), memoryview(parcel.data), 0
    for values in parcel.values["leases"]:
        part = parts.setdefault(
            place_of(values), Estate(values={"leases": []}, data=[], descriptors=[])
        )
        part.values["leases"].append(values)
        for written in values["visitors"]:
            if written["open"]:
                part.descriptors.append(next(descriptors))
            held = _held(written)
            part.data.append(bytes(data[start : start + held]))
            start += held
    return parts


def write_estate(leases: Leases, socket_of: Callable[[Visitor], int | None]) -> Estate:
    """Write down what all leases have. `socket_of` returns the descriptor by which another process goes on with a visitor, None: it cannot."""
    estate = Estate(values={"leases": []}, data=[], descriptors=[])
    for lease in leases:
        if lease.occupied or lease.given_up or lease.released:
            continue
        estate.values["leases"].append(
            {
                "wish": write_wish(
                    attrs.evolve(leases.claim_of(lease).wish, services=lease.services)
                ),
                "points": lease.point_ids,
                "token": lease.token,
                "vacant": trio.current_time() - (lease.vacant_since or trio.current_time()),
                "visitors": list(_write_visitors(lease, socket_of, estate)),
            }
        )
    return estate


def _write_visitors(
    lease: Lease, socket_of: Callable[[Visitor], int | None], estate: Estate
) -> Iterator[Values]:
    # The other process numbers services by their places, as a session does that begins.
    places = {point.service: place for place, point in enumerate(lease.points)}
    for visitor in lease.queue.all_waiting:
        descriptor = None if visitor.is_over else socket_of(visitor)
        if descriptor is not None:
            estate.descriptors.append(descriptor)
        elif visitor.stream is None or not (visitor.is_over or visitor.stream.has_ended):
            if not visitor.endpoint.is_lost():
                log.info("visitor cannot be handed over", visitor=visitor.number)
            continue
        now = trio.current_time()
        yield {
            "number": visitor.number,
            "address": _write_address(visitor.address),
            "visited": _write_address(visitor.visited),
            "service": visitor.service
            if lease.group is not None
            else places.get(visitor.service, visitor.service),
            "name": visitor.name,
            "arrived": now - visitor.arrived,
            "since": now - visitor.since,
            "tries": visitor.tries,
            "session": visitor.session,
            "left": visitor.has_left,
            "open": descriptor is not None,
            "stream": None
            if visitor.stream is None
            else _write_stream(visitor.stream, estate.data),
        }


def _write_stream(stream: VisitorStream, data: list[bytes]) -> Values:
    buffer, failure = stream.send_buffer, stream.failure
    values: Values = {
        "taken": stream.taken,
        "given": stream.given,
        "took_end": stream.took_end,
        "gave_end": stream.gave_end,
        "acknowledged": stream.acknowledged,
        "told": stream.told,
        "confirmed": stream.confirmed,
        "attempt": stream.attempt,
        "since": trio.current_time() - stream.since,
        "over": stream.over,
        "finished": stream.finished,
        "failure": None if failure is None else [failure.reason, failure.text],
        "buffer": None,
    }
    if buffer is not None:
        held = 0
        while piece := buffer.piece(buffer.start + held, buffer.held - held):
            data.append(piece)
            held += len(piece)
        values["buffer"] = {
            "size": buffer.size,
            "start": buffer.start,
            "held": held,
            "used_up": buffer.used_up,
        }
    return values


async def read_estate(parcel: Parcel, leases: Leases, acceptor: VisitorAcceptor) -> tuple[int, int]:
    """Go on with what another process has written; return how many leases and visitors there are. What cannot be had here any more is closed, and told."""
    descriptors, data = iter(parcel.descriptors), memoryview(parcel.data)
    found, visitors, start = 0, 0, 0
    for values in parcel.values["leases"]:
        lease = await _restore(values, leases)
        found += lease is not None
        waiting: list[Visitor] = []
        for written in values["visitors"]:
            descriptor = next(descriptors) if written["open"] else None
            held = data[start : (start := start + _held(written))]
            if lease is not None:
                waiting.append(_read_visitor(written, descriptor, held, lease, acceptor))
                visitors += descriptor is not None
            elif descriptor is not None:
                os.close(descriptor)
        if lease is not None:
            for visitor in reversed(waiting):  # each goes to the head
                lease.queue.put_back(visitor)
    return found, visitors


def _held(values: Values) -> int:
    stream = values["stream"]
    return 0 if stream is None or stream["buffer"] is None else stream["buffer"]["held"]


async def _restore(values: Values, leases: Leases) -> Lease | None:
    points, reason = tuple(values["points"]), "the visit ports cannot be had any more"
    try:
        wish = read_wish(values["wish"])
        lease = await leases.restore(wish, points, values["token"], values["vacant"])
    except RefusedError as error:
        lease, reason = None, error.text
    if lease is None:
        log.warning("what a client had is lost", ports=points, reason=reason)
    return lease


def _read_visitor(
    values: Values,
    descriptor: int | None,
    data: memoryview,
    lease: Lease,
    acceptor: VisitorAcceptor,
) -> Visitor:
    now = trio.current_time()
    # Of one that has left there is no connection, and only the client is told: what is closed already stands for it.
    endpoint = SocketEndpoint(socket.socket(fileno=descriptor))
    if descriptor is None:
        endpoint.close()
    visitor = Visitor(
        number=values["number"],
        endpoint=endpoint,
        address=_read_address(values["address"]),
        service=values["service"],
        visited=_read_address(values["visited"]),
        name=values.get("name"),
        arrived=now - values["arrived"],
        since=now - values["since"],
        tries=values["tries"],
        session=values["session"],
    )
    visitor.has_left = values["left"]
    visitor.present = False  # until it is in the queue
    if not visitor.has_left:
        acceptor.restore(visitor)
    if (stream := values["stream"]) is not None:
        visitor.stream = visitor.new_stream(_read_buffer(stream["buffer"], data, lease))
        _read_stream(visitor.stream, stream)
    return visitor


def _read_buffer(values: Values | None, data: memoryview, lease: Lease) -> SendBuffer | None:
    if values is None:
        return None
    buffer = SendBuffer(values["size"], lease.send_memory)
    buffer.start = values["start"]
    for start in range(0, len(data), _PIECE):
        buffer.keep(data[start : start + _PIECE])
    if values["used_up"]:
        buffer.used_up = True
        buffer.release()
    return buffer


def _read_stream(stream: VisitorStream, values: Values) -> None:
    stream.taken, stream.given = values["taken"], values["given"]
    stream.took_end, stream.gave_end = values["took_end"], values["gave_end"]
    stream.acknowledged = values["acknowledged"]
    stream.told, stream.confirmed = values["told"], values["confirmed"]
    stream.attempt = values["attempt"]
    stream.since = trio.current_time() - values["since"]
    stream.over, stream.finished = values["over"], values["finished"]
    if (failure := values["failure"]) is not None:
        reason, text = failure
        stream.failure = Failure(AbortReason(reason), text)


def _write_address(address: TCPAddress) -> list[str | int]:
    return [address.host, address.port]


def _read_address(values: list[str | int]) -> TCPAddress:
    host, port = values
    return TCPAddress(str(host), int(port))
