"""Which Redis server has the cluster's keys now, and a client for it.

A single Redis is at its address. Of a Redis Cluster, any node tells which one has the slot of our keys: all of them have one hash tag. Sentinels tell
which server is the master of their group. Whoever is asked may be down, or know nothing newer than before it was cut off, so all are asked at
once, and the one with the newest configuration is believed.

With that, a failover is what every loss of Redis is: the connection ends or turns out to be a replica's, and the next generation of the link asks anew.
"""

from __future__ import annotations

import socket
import ssl
import warnings
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import attrs
import trio

from trionat.address import TCPAddress, parse_host
from trionat.errors import RegistryAwayError, StartupError, TrionatError
from trionat.server.cluster.dialect import (
    NO_CERTIFICATE,
    NOBODY_FROM_OUTSIDE,
    find_dialect_fault,
    wants_certificate,
)
from trionat.server.cluster.scripts import KEYS, PREFIX
from trionat.server.cluster.table import readable
from trionat.store.private_file import read_private
from trionat.transport.isolation import leaves
from trionat.transport.tls import client_context, lacks_authority, speaks_no_tls

if TYPE_CHECKING:
    import coredis

    from trionat.config.cluster import ClusterConfig

    Client: TypeAlias = coredis.Redis[bytes]

DEADLINE: Final = 2.0
"""Seconds for one command, and for connecting. A node is dead to the others after three times as long."""

_FOR_OTHERS: Final = 0.25
"""Seconds that others of those that are asked have after the first one has answered: it may be the one that knows nothing new."""


_DEEPEST: Final = 4
"""How often the library and what is below it wrap an error."""

_THEIRS: Final = frozenset({"coredis", "anyio", "trio", "ssl"})
"""Whose exceptions are no bugs of ours."""


@attrs.frozen
class Greeting:
    """What a server says of itself. `run_id` tells one life of it from the next, `mode` is `standalone`, `cluster` or `sentinel`."""

    run_id: str
    mode: str
    is_replica: bool


async def look(client: Client) -> Greeting:
    """Ask a server what it is.

    Raises:
        RegistryAwayError: it answers with something else.
    """
    found: Any = await client.info()  # of two sections at once, a Redis 6 knows nothing
    if not isinstance(found, dict):
        raise RegistryAwayError("Redis gave a strange answer")
    said = cast("dict[str, object]", found)
    run_id, mode, role = (
        readable(str(said.get(name, ""))) for name in ("run_id", "redis_mode", "role")
    )
    return Greeting(run_id[:64], mode, role == "slave")


@attrs.frozen
class _Place:
    """Where the master is, by a configuration with this number; the highest one is the newest."""

    epoch: int
    address: TCPAddress


async def find_primary(config: ClusterConfig) -> TCPAddress:
    """Return the address of the server that has the cluster's keys now.

    Raises:
        RegistryAwayError: nobody tells; says why.
    """
    addresses = config.address.addresses
    places: dict[TCPAddress, _Place] = {}
    reasons: dict[TCPAddress, str] = {}

    async def ask(address: TCPAddress, scope: trio.CancelScope) -> None:
        try:
            with trio.fail_after(DEADLINE):
                places[address] = await _ask(config, address)
        except* Exception as group:
            found = list(leaves(group))
            if any(map(is_ours, found)):
                raise
            ours = [str(error) for error in found if isinstance(error, RegistryAwayError)]
            reasons[address] = next(iter(ours or map(words_of, found)))
            if not ours and any(map(_is_unclear, found)):
                encrypted = config.address.encrypted
                fault = await find_dialect_fault(address, encrypted=encrypted)
                reasons[address] = fault or reasons[address]
        else:
            scope.deadline = min(scope.deadline, trio.current_time() + _FOR_OTHERS)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(ask, address, nursery.cancel_scope, name=f"ask {address}")
    if places:
        return max(places.values(), key=lambda place: place.epoch).address
    told = [reasons.get(address, "it did not answer") for address in addresses]
    if len(addresses) == 1:
        raise RegistryAwayError(told[0])
    raise RegistryAwayError(
        "; ".join(f"{address}: {why}" for address, why in zip(addresses, told, strict=True))
    )


async def _ask(config: ClusterConfig, address: TCPAddress) -> _Place:
    master = config.address.master
    async with open_client(config, address, asks_way=True) as client:
        greeting = await look(client)
        if master:
            if greeting.mode != "sentinel":
                raise RegistryAwayError("this is no Sentinel: write redis://, without a name")
            return await _ask_sentinel(client, master)
        if greeting.mode == "sentinel":
            raise RegistryAwayError(
                "this is a Sentinel: write redis+sentinel://HOST:PORT,HOST:PORT/NAME, with the name of its master"
            )
        if greeting.mode == "cluster":
            if config.address.database:
                raise RegistryAwayError("a Redis Cluster has no database numbers: leave it out")
            return await _ask_cluster(client, address)
        if greeting.is_replica:
            raise RegistryAwayError(
                "this is a replica, in which nothing can be written: name its master, or its Sentinels"
            )
        return _Place(0, address)


async def _ask_sentinel(client: Client, master: str) -> _Place:
    found: Any = await client.sentinel_master(master)
    try:
        return _Place(
            int(found["config-epoch"]),
            TCPAddress(parse_host(_text(found["ip"])), int(found["port"])),
        )
    except (KeyError, ValueError, TypeError):
        raise RegistryAwayError("the Sentinel gave a strange answer") from None


async def _ask_cluster(client: Client, asked: TCPAddress) -> _Place:
    info: Any = await client.cluster_info()
    slot: Any = await client.cluster_keyslot(KEYS[0])
    with warnings.catch_warnings(action="ignore"):  # what is newer, a Redis 6 does not know
        asked_for = client.cluster_slots()
    shards: Any = await asked_for
    try:
        if _text(info["cluster_state"]) != "ok":
            raise RegistryAwayError("the Redis Cluster is down (cluster_state)")
        for (first, last), servers in shards.items():
            if first <= slot <= last:
                host = _text(servers[0]["host"]) or asked.host  # empty: the one that was asked
                address = TCPAddress(parse_host(host), int(servers[0]["port"]))
                return _Place(int(info["cluster_current_epoch"]), address)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        raise RegistryAwayError("the Redis Cluster gave a strange answer") from None
    raise RegistryAwayError("no node of the Redis Cluster has the slot of {trionat}")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def open_client(config: ClusterConfig, address: TCPAddress, *, asks_way: bool = False) -> Client:
    """Return a client for one server, which is not connected yet. What goes wrong is raised at once: nothing is tried twice.

    `asks_way`: it is only to say where the keys are. It may be a Sentinel, or of a Redis Cluster, which have no database numbers.

    Raises:
        RegistryAwayError: the certificate authorities or the password cannot be read.
    """
    import coredis  # noqa: PLC0415 - see `require_library`
    from coredis.retry import NoRetryPolicy  # noqa: PLC0415

    url = config.address
    context = None
    if url.encrypted:
        try:
            context = client_context(pinned=False, ca_file=config.ca_file)
        except OSError as error:
            raise RegistryAwayError(
                f"{config.ca_file}: no certificate authorities: {error.strerror or error}"
            ) from error
    return coredis.Redis(
        host=address.host,
        port=address.port,
        db=0 if asks_way else url.database,
        username=url.username,
        password=url.password if asks_way and url.master else _password(config),
        ssl=url.encrypted,
        ssl_context=context,
        connect_timeout=DEADLINE,
        stream_timeout=DEADLINE,
        max_connections=8,
        decode_responses=False,
        retry_policy=NoRetryPolicy(),
    )


def _password(config: ClusterConfig) -> str | None:
    if config.redis_password_file is not None:
        try:
            lines = read_private(config.redis_password_file).decode(errors="replace").splitlines()
        except StartupError as error:
            raise RegistryAwayError(str(error)) from error
        return lines[0] if lines else ""
    return config.redis_password or config.address.password


def words_of(error: BaseException) -> str:
    """Say in one line what went wrong, and what to do; the library's words may have the address, but never the password."""
    if _is_late(error):
        return (
            f"it did not answer within {DEADLINE:g} s: does it hang, or is a firewall in the way?"
        )
    failure = _failure_of(error)
    if isinstance(failure, ssl.SSLError):
        return readable(_words_of_tls(failure))
    text = str(error).partition("\n")[0].strip()
    if isinstance(failure, OSError) and failure.strerror:
        # The library has put the address before the system's words.
        text = failure.strerror.removeprefix("Error connecting to ").rpartition(": ")[2]
    return readable(_with_remedy(text, failure or error)) or type(error).__name__


def _is_late(error: BaseException) -> bool:
    """Tell whether a deadline has passed. The library makes a lost connection without a cause of that, where it was still connecting."""
    import coredis.exceptions as kinds  # noqa: PLC0415 - see `require_library`

    if isinstance(error, trio.TooSlowError | TimeoutError):
        return True
    return isinstance(error, kinds.ConnectionError) and isinstance(
        error.__cause__ or error.__context__, trio.Cancelled
    )


def _failure_of(error: BaseException) -> OSError | None:
    """Return what the system or OpenSSL said, which the library has wrapped once or twice."""
    found: OSError | None = None
    cause: BaseException | None = error
    for _ in range(_DEEPEST):
        if isinstance(cause, ssl.SSLError):
            return cause
        if isinstance(cause, OSError) and (cause.strerror or found is None):
            found = cause
        cause = None if cause is None else cause.__cause__
    return found


def _with_remedy(text: str, error: BaseException) -> str:
    """Add what to do, where that follows from it."""
    import coredis.exceptions as kinds  # noqa: PLC0415 - see `require_library`

    match error:
        case ConnectionRefusedError():
            return f"{text}: is it running there, and does it listen at that address (bind, port)?"
        case socket.gaierror():
            return f"{text}: is the host in Cluster.Redis right?"
        case kinds.AuthenticationRequiredError():
            return "it wants a password: name it in Cluster.RedisPasswordFile (that of Sentinels in the URL)"
        case kinds.AuthenticationFailureError():
            return (
                "it does not take this user and password: check Cluster.RedisPasswordFile, RedisPassword and the URL (a user in it"
                " has to be one of Redis's)"
            )
        case kinds.AuthorizationError():
            return f"{text}: its ACL has to let trionat run scripts, publish and subscribe, at keys and channels {PREFIX}*"
        case kinds.ResponseError() if text.startswith("DENIED"):
            return NOBODY_FROM_OUTSIDE
        case kinds.InvalidResponse():
            return f"{text}: is that a Redis at all?"
        case kinds.ResponseError() if "DB index" in text:
            return f"{text}: write a lower number behind Cluster.Redis, or raise databases in redis.conf"
        case _:
            return text


def _words_of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        if lacks_authority(error):
            return f"no authority that is known here vouches for its certificate ({why}): name the one that does in Cluster.CAFile"
        return f"its certificate is refused ({why}): it has to be good today, and for the host in Cluster.Redis"
    if wants_certificate(error):
        return NO_CERTIFICATE
    if error.reason == "TLSV1_ALERT_PROTOCOL_VERSION":
        return "it does not speak TLS 1.3, which nodes want: see tls-protocols in redis.conf"
    return f"TLS with it is not possible ({error.reason or error})"


def _is_unclear(error: BaseException) -> bool:
    """Tell whether it may be the way in which the server was spoken to: it was reached, and what came then was nothing, or the end."""
    if _is_late(error):
        return True
    failure, cause = _failure_of(error), error.__cause__
    if failure is not None:
        return isinstance(failure, ConnectionResetError) or speaks_no_tls(failure)
    return cause is not None and type(cause).__module__.partition(".")[0] == "anyio"


def is_ours(error: BaseException) -> bool:
    """Tell a bug of ours from what the library, the network or Redis did.

    The library raises errors of its own kinds, and whatever else comes out of an answer that it cannot read.
    """
    if isinstance(error, OSError | EOFError | TrionatError):
        return False
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    places = [type(error).__module__]
    if raised is not None:
        places.append(str(raised.tb_frame.f_globals.get("__name__", "")))
    return not any(place.partition(".")[0] in _THEIRS for place in places)
