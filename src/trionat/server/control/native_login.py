"""The first messages of a native connection: HELLO and EXPOSE make a control connection, ATTACH a tunnel."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from trionat.address import parse_tcp_address
from trionat.config.values import UNENCRYPTED
from trionat.errors import RefusedError, RemoteProtocolError
from trionat.protocol.messages import (
    GROUPS,
    MOVE,
    NAMES,
    PLAIN_TUNNELS,
    RESUME,
    ROUTES,
    SERVICE_CHANGES,
    Attach,
    Expose,
    Hello,
    Join,
    Message,
    RefusalCode,
    Refused,
)
from trionat.server.admission.native_client import NativeQueuedClient
from trionat.server.control.login import Login
from trionat.server.sessions.native import NativeSession
from trionat.transport.channel import Channel

if TYPE_CHECKING:
    from trionat.server.admission.lease import Lease


@attrs.define(eq=False)
class NativeLogin(Login):
    """See `Login`; the endpoint is encrypted already."""

    _channel: Channel = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._channel = Channel(self.endpoint)

    async def _hear(self) -> bool:
        match first := await self._expect("its first message"):
            case Attach():
                self._attach(first)
                return True
            case Hello():
                await self._serve_client(first)
                return False
            case _:
                raise RemoteProtocolError(f"{type(first).__name__.upper()} as the first message")

    async def _expect(self, what: str) -> Message:
        with self._deadline(what):
            return await self._channel.receive()

    async def _refuse(self, refusal: RefusedError) -> None:
        await self._channel.send(
            Refused(
                code=refusal.code,
                text=refusal.text,
                route=refusal.route,
                servers=tuple(map(parse_tcp_address, refusal.servers)),
            )
        )

    def _attach(self, attach: Attach | Join) -> None:
        if self._channel.trailing:
            raise RemoteProtocolError("bytes behind ATTACH, before any OPEN")
        session = self.context.sessions.by_uid.get(attach.uid)
        if not isinstance(session, NativeSession) or not (
            session.attach(self.endpoint, attach.secret)
            if isinstance(attach, Attach)
            else session.attach_plain(self.endpoint, attach)
        ):
            raise RefusedError(
                RefusalCode.UNKNOWN_SESSION, "no such session, or it has too many tunnels"
            )

    async def _serve_client(self, hello: Hello) -> None:
        user = await self._log_in(
            hello.username, password=hello.password, token=hello.token, caveats=hello.caveats
        )
        scope = user.scope
        self._channel.allow_control_frames()
        expose = await self._expect("the list of its services")
        if not isinstance(expose, Expose):
            raise RemoteProtocolError(f"{type(expose).__name__.upper()} instead of EXPOSE")
        groups = GROUPS in hello.capabilities
        if NAMES not in hello.capabilities and any(
            service.publish is not None for service in expose.services
        ):
            raise RemoteProtocolError("EXPOSE with names from a client that does not know them")
        client = NativeQueuedClient(
            key=(user.username, scope.key_of(hello.identity)),
            client_name=hello.name,
            address=self.address,
            services=expose.services,
            group=scope.key_of(expose.group) if groups and expose.group is not None else None,
            limits=scope.limits,
            account_id=user.account_id,
            scope=scope,
            channel=self._channel,
            follows_routes=ROUTES in hello.capabilities,
        )

        resumes = RESUME in hello.capabilities and self.context.config.effective_resume_wait > 0

        def open_session(uid: int, lease: Lease) -> NativeSession:
            lease.resume(hello.resume if resumes else None)
            return NativeSession(
                uid=uid,
                lease=lease,
                config=self.context.config,
                stopping=self.context.admission.draining,
                public_host=self.context.public_host,
                address=self.address,
                username=user.username,
                account_id=user.account_id,
                credential=user.credential,
                restrictions=user.caveats,
                client_name=hello.name,
                channel=self._channel,
                keep_idle=expose.idle_tunnels,
                plain_tunnels=self.context.config.tunnel_encryption == UNENCRYPTED
                and PLAIN_TUNNELS in hello.capabilities,
                resumes=resumes,
                route=self.context.route if client.follows_routes else None,
                can_move=MOVE in hello.capabilities,
                elsewhere=lambda: self.context.admission.elsewhere,
                groups=groups,
                expires_at=user.expires_at,
                change=partial(self.context.leases.change, client, lease)
                if SERVICE_CHANGES in hello.capabilities and self.context.leases.can_change(lease)
                else None,
                refusal_of=partial(self.context.leases.refusal_of, client),
            )

        await self._run_session(client, open_session)


class PlainTunnelLogin(NativeLogin):
    """Of a connection without TLS, which can only be a tunnel that proves whose it is without giving the secret away."""

    async def _hear(self) -> bool:
        first = await self._expect("its first message")
        if not isinstance(first, Join):
            raise RemoteProtocolError(f"{type(first).__name__.upper()} on a tunnel without TLS")
        self._attach(first)
        return True
