"""Certificates that nodes of a cluster share: one of them orders for a name, under a lock in Redis, and the others take what it has got from there.

They are sealed with the cluster's key. A node looks for one when it would order itself, so a client that goes to another node costs the authority nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import RegistryAwayError, StartupError
from trionat.log import get_logger
from trionat.server.certificates.order import OrderError
from trionat.server.cluster.scripts import KEEP, LOCK, UNLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trionat.server.certificates.store import CertificateStore
    from trionat.server.cluster.redis_link import RedisLink
    from trionat.server.cluster.seal import Seal

log = get_logger(__name__)

LOCKED_FOR: Final = 300.0
"""Seconds after which a lock is free whose node is gone: longer than an order takes."""

_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at a lock that another node has."""


@attrs.define(eq=False)
class SharedCertificates:
    """See the module. `now` is the time of day, in seconds since 1970."""

    link: RedisLink
    seal: Seal
    store: CertificateStore
    now: Callable[[], float] = time.time

    @asynccontextmanager
    async def lock(self, name: str, waiting: Callable[[], None]) -> AsyncGenerator[None]:
        """Keep other nodes from ordering for a name during the block; before it, take what one of them has got meanwhile, and behind it, give what was got here.

        `waiting` is called, again and again, while another node has it.

        Where Redis is away, nobody is kept from it: two certificates are better than none.

        Raises:
            OrderError: another node has been at it for longer than an order takes.
        """
        token = secrets.token_hex(16)
        try:
            with trio.move_on_after(LOCKED_FOR) as patience:
                while not await self._take(name, token):  # nothing tells when it is free
                    waiting()
                    await trio.sleep(_LOOK_AGAIN)
        except RegistryAwayError:
            log.debug("a certificate is ordered without asking the other nodes", name=name)
            yield
            return
        if patience.cancelled_caught:
            raise OrderError(
                "here", f"{name}: another node of the cluster is at it, and does not end"
            )
        before = self.store.find_ordered(name)
        try:
            yield
            entry = self.store.find_ordered(name)
            if entry is not None and entry is not before:
                await self._keep(name)
        finally:
            self.link.send(UNLOCK, name, token)

    async def _take(self, name: str, token: str) -> bool:
        """Take the lock, with what is kept there; False: another node has it. Raises RegistryAwayError."""
        match await self.link.call(LOCK, name, token, round(LOCKED_FOR * 1000)):
            case [b"ok", sealed]:
                await self._read(name, sealed)
                return True
            case _:
                return False

    async def _read(self, name: str, sealed: bytes) -> None:
        """Put into the store what another node has got, if it is that and is newer."""
        if not sealed:
            return
        try:
            values = json.loads(
                self.seal.open(_purpose(name), base64.b64decode(sealed, validate=True))
            )
            key, chain, ends = values["key"], values["chain"], float(values["ends"])
            entry = self.store.find_ordered(name)
            if ends > self.now() and (entry is None or entry.certificate.ends < ends):
                await self.store.put(name, key.encode(), chain.encode())
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            log.warning("what is kept in Redis as a certificate is none", name=name)
        except StartupError as error:
            log.warning(
                "a certificate of another node cannot be used", name=name, reason=str(error)
            )

    async def _keep(self, name: str) -> None:
        entry = self.store.find_ordered(name)
        if entry is None:
            return
        try:
            content = await trio.to_thread.run_sync(entry.files.chain.read_text)
            key, separator, chain = content.partition(_CERTIFICATE)
            values = {"key": key, "chain": separator + chain, "ends": entry.certificate.ends}
            sealed = self.seal.close(_purpose(name), json.dumps(values).encode())
            left = max(1.0, entry.certificate.ends - self.now())
            await self.link.call(KEEP, name, base64.b64encode(sealed), round(left * 1000))
        except (OSError, ValueError, RegistryAwayError) as error:
            log.debug("a certificate is not shared", name=name, reason=str(error))


_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----"


def _purpose(name: str) -> str:
    return f"certificate {name}"
