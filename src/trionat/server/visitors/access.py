"""What stands before all visit ports: which visitors are let in, before one byte of theirs is read."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.log import get_logger
from trionat.networks import Admittance, Networks, network_of, plain_host
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.visitors.queue import Visitor
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    import socket

    from trionat.config.sections import ServerConfig
    from trionat.server.visitors.ports import VisitPort

log = get_logger(__name__)

# Networks whose rate is remembered, those that visited last; some 3 MiB. One that is forgotten begins anew.
_MOST_NETWORKS: Final = 16_384


@attrs.define(eq=False)
class _Bucket:
    """How many visitors may come, as of the moment `at`."""

    tokens: float
    at: float


@attrs.define(eq=False)
class Gate:
    """Lets visitors in to the line of the lease that holds their port, or closes them at once and tells why, now and then.

    Counts those that are there, and how fast they come, for each IPv4 address and each IPv6 /64 (`network_of`).
    """

    config: ServerConfig
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    _admittance: Admittance = attrs.field(init=False)
    _numbers: count[int] = attrs.field(init=False, factory=lambda: count(1))
    _present: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _buckets: dict[str, _Bucket] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._admittance = Admittance(
            Networks(self.config.allow_visitors), Networks(self.config.deny_visitors)
        )

    def admit(
        self,
        port: VisitPort,
        listening: TCPAddress,
        connection: socket.socket,
        address: TCPAddress,
    ) -> None:
        """Take over a connection from `address` that was accepted on a port, which listens there."""
        network = network_of(address.host)
        refusal = self._refusal(port, address.host, network)
        if refusal is not None or port.visitors is None:
            connection.close()
            bound, reason = refusal or (Bound.NO_CLIENT, "no client holds this port")
            self.refusals.count(
                bound,
                lambda count: log.info(
                    "visitor refused",
                    address=str(address),
                    port=port.number,
                    reason=reason,
                    refused=count,
                ),
                user="" if port.visitors is None else port.visitors.user_limits.user,
            )
            return
        self._present[network] = self._present.get(network, 0) + 1
        port.visitors.admit(
            Visitor(
                number=next(self._numbers),
                endpoint=SocketEndpoint(connection),
                address=address,
                service=port.service,
                visited=_dialled(connection, listening),
                gone=partial(self._leave, network),
            )
        )

    def _refusal(self, port: VisitPort, host: str, network: str) -> tuple[Bound, str] | None:
        most = self.config.max_visitors_per_address
        if not self._admittance.includes(host):
            return Bound.LISTS, "its address may not visit (AllowVisitors, DenyVisitors)"
        if port.visitors is not None and not port.visitors.user_limits.admittance.includes(host):
            return (
                Bound.ACCOUNT_LISTS,
                "its address may not visit this user (limits of the account)",
            )
        if most and self._present.get(network, 0) >= most:
            return (
                Bound.VISITORS_OF_ADDRESS,
                f"{most} visitors from its address are here already (MaxVisitorsPerAddress)",
            )
        if self.config.visitor_rate and not self._take_token(network, self.config.visitor_rate):
            return (
                Bound.RATE,
                f"more than {self.config.visitor_rate} visitors a second from its address (VisitorRate)",
            )
        return None

    def _take_token(self, network: str, rate: int) -> bool:
        """Tell whether the bucket of this network, which a second fills, still has something in it, and take it."""
        now = trio.current_time()
        bucket = self._buckets.pop(network, None) or _Bucket(rate, now)
        if len(self._buckets) >= _MOST_NETWORKS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[network] = bucket
        bucket.tokens = min(rate, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _leave(self, network: str) -> None:
        self._present[network] -= 1
        if not self._present[network]:
            del self._present[network]


def _dialled(connection: socket.socket, listening: TCPAddress) -> TCPAddress:
    """Return which of our addresses a visitor has dialled; a port often listens on all of them."""
    try:
        host, port = connection.getsockname()[:2]
    except OSError:  # gone already, on some systems
        return listening
    return TCPAddress(plain_host(host), port)
