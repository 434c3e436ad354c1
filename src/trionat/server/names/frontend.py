"""All that a server has for its names: certificates, what they are ordered with, and who serves the ports 80 and 443."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.certificates.challenges import ALPN01, HTTP01, Challenges
from trionat.server.certificates.order import OrderError
from trionat.server.certificates.renewal import Renewal
from trionat.server.certificates.store import CertificateFiles, CertificateStore
from trionat.server.connection_log import ConnectionLog
from trionat.server.events.hub import Hub
from trionat.server.handshakes import PendingHandshakes
from trionat.server.names import dns_records
from trionat.server.names.access_log import AccessLog
from trionat.server.names.dispatcher import Dispatcher
from trionat.server.names.listener import NameListener
from trionat.server.names.page import Pages
from trionat.server.names.wanted import WantedNames

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trionat.address import TCPAddress
    from trionat.config.acme import AcmeConfig
    from trionat.config.server import ServerConfig
    from trionat.server.certificates.renewal import Lock, NameStatus
    from trionat.server.certificates.store import Entry
    from trionat.server.names.listener import PassOn
    from trionat.server.refusals import RefusalCounters
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PortPool

log = get_logger(__name__)


@attrs.frozen(eq=False)
class Names:
    """What is read before a server with names listens: its certificates, and its pages."""

    domain: str
    acme: AcmeConfig
    certificates: CertificateStore
    pages: Pages
    access_log: AccessLog | None = None

    @classmethod
    async def open(cls, config: ServerConfig, acme: AcmeConfig, folder: Path) -> Self:
        """Read the certificates that are there, in `certificates` of the state folder and the operator's own, and the pages.

        Raises:
            StartupError: One of the operator's files cannot be used, or a folder is not there.
        """
        own: tuple[CertificateFiles, ...] = ()
        if config.certificate is not None and config.certificate_key is not None:
            own = (CertificateFiles(config.certificate_key, config.certificate),)
        folder_of_own = config.certificates_dir
        if folder_of_own is not None and not await trio.to_thread.run_sync(folder_of_own.is_dir):
            raise StartupError(f"{folder_of_own}: there is no such folder (CertificatesDir)")
        store = CertificateStore(folder / "certificates", own, folder_of_own)
        await store.load()
        access_log = None
        if config.access_log is not None:
            access_log = AccessLog(config.access_log, config.access_log_format)
            await trio.to_thread.run_sync(access_log.check)
        pages = Pages(config.pages_dir, config.domain or "")
        await trio.to_thread.run_sync(pages.load)
        return cls(config.domain or "", acme, store, pages, access_log)

    def become(self, other: Names) -> None:
        """Take over the certificates and pages that others have read; the access log stays."""
        self.certificates.become(other.certificates)
        self.pages.become(other.pages)

    async def watch_records(self, public: TCPAddress) -> None:
        """Tell in the log whether visitors find names below the domain at this server, which is reached at `public`; ends when they do."""
        await dns_records.watch(self.domain, public)


@attrs.define(eq=False, kw_only=True)
class Frontend:
    """See the module. `start` starts what it does.

    `pool` has the names that somebody has here. `shuts_out` and `is_in_use` are asked of a host, as for clients. `leaving` says that the server stops.
    `passes_on` is that of `NameListener`. `ask_certificate` has another process order the certificate of a name, which is on the disk then; None: it is done here. `lock` is that of `Renewal`, where other servers order as well. `public` is where names have to lead. `events` is told of certificates.
    """

    config: ServerConfig
    names: Names
    pool: PortPool
    acceptor: VisitorAcceptor
    refusals: RefusalCounters
    shuts_out: Callable[[str], bool]
    is_in_use: Callable[[str], bool]
    leaving: Callable[[], bool]
    passes_on: Callable[[str], PassOn | None] | None = None
    ask_certificate: Callable[[str], Awaitable[None]] | None = None
    lock: Lock | None = None
    public: TCPAddress | None = None
    events: Hub = attrs.field(factory=Hub)
    challenges: Challenges = attrs.field(factory=Challenges)
    _renewal: Renewal = attrs.field(init=False)
    _listener: NameListener | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._renewal = Renewal(
            config=self.names.acme,
            store=self.names.certificates,
            wanted=WantedNames(self.pool, self.config.domain),
            challenges=self.challenges,
            methods=(HTTP01, ALPN01),
            lock=self.lock,
            record=self._record,
            events=self.events,
        )

    def take_config(self, config: ServerConfig, acme: AcmeConfig) -> None:
        """These count from now on, for connections and orders that come."""
        self.config = config
        self._renewal.config = acme
        if self._listener is not None:
            self._listener.take_config(config)

    def _record(self, name: str) -> str | None:
        if self.public is None:
            return None
        return dns_records.record_of(name, self.names.domain, self.public)

    async def wait_for_certificate(self, name: str) -> Entry:
        """Return the certificate for a name, which is ordered where there is none; see `Renewal.wait_for`."""
        if self.ask_certificate is None:
            return await self._renewal.wait_for(name)
        await self.ask_certificate(name)
        await self.names.certificates.refresh()
        if (entry := self.names.certificates.find(name)) is None:
            raise OrderError("here", f"{name}: the certificate cannot be read")
        return entry

    async def order_certificate(self, name: str) -> dict[str, str | None]:
        """Have the certificate for a name on the disk; return the code and the reason where there is none, as they are for another process."""
        try:
            await self.wait_for_certificate(name)
        except OrderError as error:
            return {"code": error.code, "reason": str(error)}
        return {"code": None, "reason": None}

    def certificates(self) -> list[NameStatus]:
        """Return how the certificates of the names stand that somebody has."""
        return self._renewal.status()

    def start(self, nursery: trio.Nursery, besides: trio.Nursery | None = None) -> NameListener:
        """Order, renew and watch certificates in `besides`, if given, else in `nursery`, and return who serves connections there."""
        besides = besides or nursery
        besides.start_soon(self.names.certificates.watch, name="watch certificates")
        besides.start_soon(self.names.pages.watch, name="watch pages")
        if self.ask_certificate is None:
            besides.start_soon(self._renewal.run, name="renew certificates")
            besides.start_soon(self._tell_names, name="names that want certificates")
        dispatcher = Dispatcher(
            config=self.config,
            names=self.pool.names,
            acceptor=self.acceptor,
            pages=self.names.pages,
            challenge=self.challenges.http01_answer,
            leaving=self.leaving,
            shares_names=self.ask_certificate is not None,
            access_log=self.names.access_log,
        )
        if self.names.access_log is not None:
            nursery.start_soon(self.names.access_log.run, name="access log")
        self._listener = NameListener(
            config=self.config,
            dispatcher=dispatcher,
            certificates=self.names.certificates,
            challenges=self.challenges,
            wait_for_certificate=self.wait_for_certificate,
            handshakes=PendingHandshakes(
                self.config.max_handshakes,
                self.config.max_handshakes_per_address,
                self.refusals,
                self.is_in_use,
            ),
            shuts_out=self.shuts_out,
            refusals=self.refusals,
            connection_log=ConnectionLog(self.refusals),
            nursery=nursery,
            passes_on=self.passes_on,
        )
        return self._listener

    async def _tell_names(self) -> None:
        while True:
            await self.pool.names_changed.wait()
            self._renewal.names_changed()
