"""The first message of a legacy connection: credentials make a control connection, a uid makes a tunnel.

A legacy client has no name for itself. What stands for it is its user, its address and a number: one address may have several
clients, and of those that come from it nobody can tell which is which. So a newcomer gets the first lease of its user and
address that nobody uses: that of a client that was lost, most likely the same one.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.protocol.legacy import (
    AuthFail,
    AuthSuccess,
    ConnectionFull,
    Credentials,
    UserInformation,
)
from trionat.protocol.messages import RefusalCode, ServiceRequest
from trionat.server.admission.legacy_client import LegacyQueuedClient
from trionat.server.control.login import Login
from trionat.server.sessions.legacy import LegacySession
from trionat.transport.channel import LegacyChannel
from trionat.transport.deadline import deadline

if TYPE_CHECKING:
    from trionat.protocol.dialect import Dialect
    from trionat.server.admission.lease import Lease
    from trionat.server.visitors.ports import LeaseKey

# What trying again cannot help. Whatever else stands against a client is told as a full queue, for then it tries again.
_FINAL: Final = frozenset({RefusalCode.AUTH_FAILED, RefusalCode.ACCOUNT_EXPIRED})

# It does not tell its own.
_CLIENT_NAME: Final = "NAT"


@attrs.define(eq=False)
class LegacyLogin(Login):
    """See `Login`."""

    dialect: Dialect = attrs.field(kw_only=True)
    _channel: LegacyChannel = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._channel = LegacyChannel(self.endpoint, self.dialect)

    async def _hear(self) -> bool:
        with self._deadline("its first message"):
            first = await self._channel.receive()
        match first:
            case UserInformation(uid=uid):
                self._attach(uid)
                return True
            case Credentials():
                await self._serve_client(first)
                return False
            case _:
                raise RemoteProtocolError(f"{type(first).__name__} as the first message")

    async def _refuse(self, refusal: RefusedError) -> None:
        await self._channel.send(AuthFail() if refusal.code in _FINAL else ConnectionFull())

    def _attach(self, uid: int) -> None:
        """Give the connection to its session; what came behind the frame is the visitor's already.

        A uid is no secret. That nobody else takes a session's visitors is the address's doing.
        """
        session = self.context.sessions.by_uid.get(uid)
        if not isinstance(session, LegacySession) or session.address.host != self.address.host:
            raise RemoteProtocolError(
                f"a tunnel for session {uid}, which is of no legacy client at this address"
            )
        if not session.tunnels.attach(self.endpoint, self._channel.trailing):
            raise RemoteProtocolError(
                f"a tunnel too many for session {uid}, which has {session.tunnels.limit} (MaxVisitors), or ends"
            )

    async def _serve_client(self, credentials: Credentials) -> None:
        config = self.context.config
        self.endpoint.limit_silence(config.peer_timeout)
        user = await self._log_in(credentials.username, password=credentials.password)
        if config.start_auth:
            with deadline(config.peer_timeout, "the client does not read"):
                await self._channel.send(AuthSuccess())
        # No checkpoint from here on until `admit` has noted that the key is taken.
        client = LegacyQueuedClient(
            key=self._choose_key(user.username),
            client_name=_CLIENT_NAME,
            address=self.address,
            services=(ServiceRequest(),),
            limits=user.limits,
            account_id=user.account_id,
            channel=self._channel,
        )

        def open_session(uid: int, lease: Lease) -> LegacySession:
            return LegacySession(
                uid=uid,
                lease=lease,
                config=config,
                stopping=self.context.admission.draining,
                address=self.address,
                username=user.username,
                account_id=user.account_id,
                credential=user.credential,
                client_name=_CLIENT_NAME,
                channel=self._channel,
                dialect=self.dialect,
            )

        await self._run_session(client, open_session)

    def _choose_key(self, username: str) -> LeaseKey:
        """Choose which lease of the user at this address it is to have: one that nobody uses, else a new one.

        One whose client has gone silent or is just being missed counts as unused, and is evicted.
        """
        leases, admission, host = self.context.leases, self.context.admission, self.address.host
        deserted: LeaseKey | None = None
        for key, lease in leases.by_key.items():
            user, name = key
            of_this_address = user == username and not isinstance(name, str) and name[0] == host
            if not of_this_address or admission.is_awaited(key):
                continue
            if not lease.occupied:
                return key
            session = self.context.sessions.by_uid.get(lease.queue.session or 0)
            if deserted is None and isinstance(session, LegacySession) and session.is_deserted:
                deserted = key
        if deserted is not None:
            return deserted
        keys = ((username, (host, number)) for number in count(1))
        return next(
            key for key in keys if key not in leases.by_key and not admission.is_awaited(key)
        )
