"""Who may visit one service that is published by name: as its client says, beside what the server and the account allow."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import secrets
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StoreError
from trionat.log import get_logger
from trionat.networks import Admittance, Networks, network_of, parse_network
from trionat.server.visitors.approvals import Approval, Approvals
from trionat.store.passwords import COST, costs_more_than_ours, is_whole_hash, verify_password

if TYPE_CHECKING:
    from trionat.protocol.messages import Publish

log = get_logger(__name__)

_MOST_NETWORKS: Final = 10_000
"""Networks whose rate, and whose failures, are remembered of one service, those that came last."""

_MOST_KNOWN: Final = 1_000
"""Right credentials that need not be hashed again."""

_MOST_FAILURES: Final = 10
_FAILURES_WITHIN: Final = 60.0
"""So many wrong passwords of a network within so many seconds, and it has to wait for the rest of them."""

_MOST_WAITING: Final = 32
"""Passwords that wait to be checked; more are told to come again."""

_MOST_WAITING_IN_ALL: Final = 128
"""Of all services of this process, which share a thread: some 3 s. Chosen."""

_LEAST_BURST: Final = 10.0
"""Requests at once that are let in whatever the rate: a page brings its pictures along. Chosen."""

_WHAT_TO_DO: Final = "give the password itself, which the client hashes"

_THREADS: Final = trio.CapacityLimiter(1)
"""Not those of logins, which visitors who guess must not hold up."""


@attrs.frozen(kw_only=True)
class Denial:
    """Why a visitor may not see what it asks for: the status of the page that says so, and after how many seconds it is worth trying again. `text` is for the log, `told` for the visitor where the usual words do not say it. `is_asked`: the owner was asked, and the page looks again by itself."""

    status: int
    text: str
    retry_after: int | None = None
    is_asked: bool = False
    told: str = ""


@attrs.define(eq=False)
class _Bucket:
    tokens: float
    at: float


@attrs.define(eq=False)
class Restrictions:
    """See the module. Made of what the client has said, once for as long as that is the same. `asked` says whether the owner is asked for addresses.

    Raises:
        ValueError: a network, or the hash of a password, is none, or that costs more to check than ours.
    """

    publish: Publish
    approvals: Approvals = attrs.field(factory=Approvals)
    _admittance: Admittance = attrs.field(init=False)
    _users: dict[bytes, str] = attrs.field(init=False)
    _key: bytes = attrs.field(init=False, repr=False, factory=lambda: secrets.token_bytes(32))
    _known: dict[bytes, None] = attrs.field(init=False, factory=lambda: {}, repr=False)
    _buckets: dict[str, _Bucket] = attrs.field(init=False, factory=lambda: {})
    _failures: dict[str, deque[float]] = attrs.field(init=False, factory=lambda: {})
    _waiting: int = attrs.field(init=False, default=0)
    _told_guesses: float = attrs.field(init=False, default=-math.inf)

    def __attrs_post_init__(self) -> None:
        self._admittance = Admittance(
            Networks(map(parse_network, self.publish.allow)),
            Networks(map(parse_network, self.publish.deny)),
        )
        self._users = {}
        for entry in self.publish.basic_auth:
            user, colon, password_hash = entry.partition(":")
            if not colon or not is_whole_hash(password_hash):
                raise ValueError(f"BasicAuth: what was sent is no hash by Argon2id: {_WHAT_TO_DO}")
            # Visitors of all services wait for the one thread that checks it.
            if costs_more_than_ours(password_hash):
                raise ValueError(
                    f"BasicAuth: the hash costs more to check than {COST}: {_WHAT_TO_DO}"
                )
            self._users[user.encode()] = password_hash

    @property
    def needs_password(self) -> bool:
        """Whether visitors have to log in; what they log in with is for us, and not for the service."""
        return bool(self._users)

    def denial(self, host: str) -> Denial | None:
        """Return why a request, or a connection, from an address is not let in; None: it is, as far as its password and its owner allow it. Takes one of its rate."""
        if not self._admittance.includes(host):
            return Denial(status=403, text="its address may not visit this service (Allow, Deny)")
        if (rate := self.publish.rate) is not None and (wait := self._take(host, rate)):
            return Denial(
                status=429,
                text=f"more than {rate:g} requests a second from its address (Rate)",
                retry_after=wait,
            )
        return None

    def _take(self, host: str, rate: float) -> int:
        """Take one from the bucket of a network; return how many seconds it is until there is one, 0 where there was."""
        network, now = network_of(host), trio.current_time()
        most = max(_LEAST_BURST, 2 * rate)
        bucket = self._buckets.pop(network, None) or _Bucket(most, now)
        if len(self._buckets) >= _MOST_NETWORKS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[network] = bucket
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            return max(1, math.ceil((1 - bucket.tokens) / rate))
        bucket.tokens -= 1
        return 0

    def ask(self, host: str, what: str) -> Denial | None:
        """Return why the owner has not let an address in, who is asked where he was not; None: he has, or need not be asked."""
        if not self.publish.approve:
            return None
        approval = self.approvals.find(host, what)
        if approval is Approval.APPROVED:
            return None
        return Denial(
            status=403,
            text=f"its address is not approved ({approval.value})",
            is_asked=approval is Approval.WAITING,
        )

    def knows(self, authorization: bytes | None, host: str) -> bool:
        """Tell whether a visitor has shown a password from this address that was right before, or needs none.

        Not one that was right elsewhere: who guesses would learn of it, however often he was wrong.
        """
        if not self._users:
            return True
        return authorization is not None and self._digest(authorization, host) in self._known

    def _digest(self, authorization: bytes, host: str) -> bytes:
        """Return what stands for a credential in memory; nobody without the key can tell what its like would be, so a lookup tells nothing."""
        shown = network_of(host).encode() + b" " + authorization
        return hashlib.blake2b(shown, key=self._key, digest_size=32).digest()

    async def log_in(self, authorization: bytes | None, host: str) -> Denial | None:
        """Check what a visitor has shown (RFC 7617); the first time costs 25 ms of a thread. None: it is right, or nothing is needed."""
        if self.knows(authorization, host):
            return None
        network, now = network_of(host), trio.current_time()
        failures = self._failures.get(network) or deque[float]()
        recent = sum(now - at < _FAILURES_WITHIN for at in failures)
        if recent >= _MOST_FAILURES:
            self._tell_guesses(network, now)
            return Denial(
                status=429,
                text="too many wrong passwords from its address",
                told="There were too many wrong passwords from your address. Wait a minute before you try again.",
                retry_after=max(1, math.ceil(failures[0] + _FAILURES_WITHIN - now)),
            )
        if authorization is None:
            return Denial(status=401, text="no password")
        waiting_in_all = _THREADS.statistics().tasks_waiting
        if self._waiting >= _MOST_WAITING or waiting_in_all >= _MOST_WAITING_IN_ALL:
            return Denial(status=429, text="too many passwords are being checked", retry_after=1)
        self._waiting += 1
        # Before it is checked: those that come meanwhile count as well.
        self._note_failure(network, now)
        try:
            is_right = await self._is_right(authorization)
        finally:
            self._waiting -= 1
        if not is_right:
            return Denial(status=401, text="a wrong password")
        self._take_back_failure(network, now)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[self._digest(authorization, host)] = None
        return None

    def _tell_guesses(self, network: str, now: float) -> None:
        if now - self._told_guesses >= _FAILURES_WITHIN:
            self._told_guesses = now
            log.warning(
                "too many wrong passwords of visitors: the address has to wait",
                network=network,
                users=", ".join(user.decode(errors="replace") for user in self._users),
            )

    def _note_failure(self, network: str, now: float) -> None:
        failures = self._failures.pop(network, None) or deque(maxlen=_MOST_FAILURES)
        if len(self._failures) >= _MOST_NETWORKS:
            del self._failures[next(iter(self._failures))]
        self._failures[network] = failures
        failures.append(now)

    def _take_back_failure(self, network: str, at: float) -> None:
        """Forget one try that was right after all; what else the network has tried may have been the password of another user."""
        failures = self._failures.get(network, deque[float]())
        with suppress(ValueError):  # so many came after it that it is forgotten
            failures.remove(at)
        if not failures:
            self._failures.pop(network, None)

    async def _is_right(self, authorization: bytes) -> bool:
        scheme, _, encoded = authorization.partition(b" ")
        try:
            user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
            text = password.decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        if scheme.lower() != b"basic" or not colon:
            return False
        try:
            # Of a user that is not there it takes as long.
            return await verify_password(self._users.get(user), text, limiter=_THREADS)
        except StoreError:
            log.warning("a hash of a password of visitors costs too much to check, or is damaged")
            return False
