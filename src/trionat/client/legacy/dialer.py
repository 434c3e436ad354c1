"""An original server as its client sees it: where it is, what it speaks, and as whom to log in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import ConfigError, Problem
from trionat.protocol import legacy
from trionat.protocol.dialect import Dialect
from trionat.transport.channel import LegacyChannel
from trionat.transport.deadline import deadline
from trionat.transport.dial import reach
from trionat.transport.endpoint import Endpoint, SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trionat.address import TCPAddress
    from trionat.config.client import AuthConfig, ClientConfig

_DIALECTS: Final[Mapping[str, Dialect]] = {
    "nat-v1": Dialect.NAT_V1,
    "nat-doc": Dialect.NAT_DOC,
}


@attrs.frozen(kw_only=True)
class LegacyDialer:
    """Its two addresses, its dialect, and our credentials. `timeout` is how long connecting may take, in seconds.

    Nothing of it can be checked: whoever answers at the address is taken for the server.
    """

    control: TCPAddress
    tunnel: TCPAddress
    dialect: Dialect
    credentials: legacy.Credentials
    timeout: float

    @classmethod
    def of(cls, config: ClientConfig, auth: AuthConfig) -> LegacyDialer:
        """Return the server that a configuration names. Without a user, the credentials are empty: a server may want none.

        Raises:
            ConfigError: something is missing, or does not go together with the dialect.
        """
        control, tunnel = config.controller_addr, config.tunnel_server_addr
        faults = [Problem("configuration", reason, "Client") for _, reason in config.faults()]
        if faults or control is None or tunnel is None:
            raise ConfigError(*faults)
        return cls(
            control=control,
            tunnel=tunnel,
            dialect=_DIALECTS[config.dialect],
            credentials=legacy.Credentials(
                username=auth.username or "", password=auth.password or ""
            ),
            timeout=config.connect_timeout,
        )

    async def log_in(self) -> LegacyChannel:
        """Return a new control connection, on which the credentials are sent; the caller owns its endpoint.

        They go out at once, since the server does not ask for them.

        Raises:
            ConnectionLostError: it cannot be reached.
            PeerTimeoutError: it did not answer within `timeout`.
        """
        return LegacyChannel(await self._begin(self.control, self.credentials), self.dialect)

    async def open_tunnel(self, session: legacy.UserInformation) -> Endpoint:
        """Return a new tunnel of the session, on which raw bytes follow; the caller owns it.

        Raises:
            As `log_in`.
        """
        return await self._begin(self.tunnel, session)

    async def _begin(self, address: TCPAddress, first: legacy.LegacyMessage) -> Endpoint:
        with deadline(self.timeout, f"{address} did not answer within {self.timeout:g} s"):
            endpoint = await self._connect(address)
            try:
                await LegacyChannel(endpoint, self.dialect).send(first)
            except BaseException:
                endpoint.close()
                raise
            return endpoint

    async def _connect(self, address: TCPAddress) -> Endpoint:
        return SocketEndpoint(await reach(address))
