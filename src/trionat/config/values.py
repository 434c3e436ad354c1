"""Kinds of values: how the text of a key is read, how a value is written, and in which words both are explained.

Every value arrives as text, whatever its source: a flag, an environment variable or a scalar of a file. So `6379:60001`
and `00000000` mean what they look like, and not the numbers that YAML 1.1 would make of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs
import platformdirs

from trionat.address import (
    Address,
    TCPAddress,
    parse_address,
    parse_host,
    parse_port,
    parse_public_address,
    parse_tcp_address,
)
from trionat.errors import StartupError
from trionat.fingerprint import format_fingerprint, parse_fingerprint
from trionat.hostnames import parse_hostname, parse_name
from trionat.networks import parse_network, plain_host, write_network
from trionat.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
"""Where browsers look."""

MAX_SERVERS: Final = 15
"""How many servers a list has at most: so many as a ticket names besides one more."""

MAX_LOGINS: Final = 64
"""How many users a service has at most: so many as one message tells of."""

_LONGEST_USER: Final = 64
_LONGEST_PASSWORD: Final = 1024

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


@attrs.frozen
class Kind(Generic[T]):
    """What the value of a key may be.

    `words` completes the sentence "it is …"; `read` raises ValueError with a message that says what would be right, and
    `write` gives a text that `read` takes. `unit` is what numbers of it are in, where it is not said otherwise.
    """

    words: str
    read: Callable[[str], T]
    write: Callable[[Any], str] = str
    unit: str | None = None


def whole(low: int, high: int) -> Kind[int]:
    """Whole numbers within a range, both ends included."""
    words = f"a whole number from {low} to {high}"

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"{quoted(text)} is not {words}")
        return int(text)

    return Kind(words, read)


def seconds(low: float, high: float) -> Kind[float]:
    """Durations in seconds within a range, both ends included."""
    words = f"seconds from {low:g} to {high:g}"

    def read(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text) or not low <= float(text) <= high:
            raise ValueError(f"{quoted(text)} is not a number of {words}")
        return float(text)

    return Kind(words, read, lambda value: f"{value:g}", "s")


AUTO: Final = 0
"""What `auto` stands for where a number is counted by the program."""


def count_or_auto(high: int) -> Kind[int]:
    """Whole numbers from 1 on, or the word `auto`, which is read as `AUTO`."""
    number = whole(1, high)
    words = f"{number.words}, or auto"

    def read(text: str) -> int:
        if text.lower() == "auto":
            return AUTO
        try:
            return number.read(text)
        except ValueError:
            raise ValueError(f"{quoted(text)} is not {words}") from None

    return Kind(words, read, lambda value: "auto" if value == AUTO else str(value))


ENCRYPTED: Final = "tls"
UNENCRYPTED: Final = "none"
"""What `TunnelEncryption` may be, on both sides."""


NO_PROXY: Final = "none"
"""What `ProxyProtocol` may be besides a version: the service is told nothing."""


def one_of(*words: str) -> Kind[str]:
    """One of a few words, written exactly so."""
    listed = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{quoted(text)} is not {listed}")
        return text

    return Kind(listed, read)


_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_OTHER_LEVELS: Final = {"WARN": "WARNING", "FATAL": "CRITICAL"}
"""What other programs call them."""


def read_level(text: str) -> str:
    """Read a level of the log.

    Raises:
        ValueError: There is no such level.
    """
    level = _OTHER_LEVELS.get(text.upper(), text.upper())
    if level not in _LEVELS:
        raise ValueError(
            f"{quoted(text.upper())} is not a valid level: write one of {', '.join(_LEVELS)}"
        )
    return level


def _read_boolean(text: str) -> bool:
    if (word := text.lower()) not in _TRUE | _FALSE:
        raise ValueError(f"{quoted(text)} is neither true nor false")
    return word in _TRUE


def _read_label(text: str) -> str:
    if not 0 < len(text) <= 128 or not text.isprintable():
        raise ValueError(f"{quoted(text)} is not text of 1 to 128 printable characters")
    return text


def _read_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{quoted(text)} is not a valid path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{quoted(text)} names a home folder that cannot be found") from None


def _read_ports(text: str) -> tuple[int, ...]:
    first, dash, last = text.partition("-")
    if not dash:
        return (parse_port(first.strip()),)
    try:
        low, high = parse_port(first.strip()), parse_port(last.strip())
    except ValueError:
        reason = "write two ports from 1 to 65535"
    else:
        if 0 < low <= high:
            return tuple(range(low, high + 1))
        reason = "write the lower one first" if low else "0 stands for any free port: begin with 1"
    raise ValueError(f"{quoted(text)} is not a valid range of ports: {reason}, as in 60000-60099")


def _write_ports(ports: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for port in ports:
        if runs and runs[-1][0] and port == runs[-1][-1] + 1:
            runs[-1].append(port)
        else:
            runs.append([port])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _read_text(text: str) -> str:
    # A command line and the environment can hold bytes that are no text (PEP 383); a file, a peer or a log cannot.
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise ValueError(f"{quoted(text)} is not valid UTF-8")
    return text


def _read_host_port(text: str) -> str:
    parse_public_address(text)
    return text


def _read_public(text: str) -> str:
    host, _ = parse_public_address(text)
    if _is_unspecified(host):
        raise ValueError(
            f"{quoted(text)} stands for every address of this machine, and nobody outside can dial it: write a name or an address of it"
        )
    return text


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(plain_host(host)).is_unspecified
    except ValueError:  # a name
        return False


def _read_own_address(text: str) -> TCPAddress:
    port = text.removeprefix(":")
    if port.isdecimal():
        return TCPAddress("127.0.0.1", parse_port(port))
    return parse_tcp_address(text)


def _read_server(text: str) -> TCPAddress:
    address = parse_tcp_address(_read_public(text))
    if not address.port:
        raise ValueError(f"{quoted(text)} has port 0: write the control port of that server")
    return address


def wrong_with_servers(servers: Sequence[TCPAddress]) -> str | None:
    """Return what is wrong with a list of servers, None where nothing is."""
    for address, count in Counter(servers).items():
        if count > 1:
            return f"{address} is named more than once"
    if len(servers) > MAX_SERVERS:
        return f"{len(servers)} servers are more than {MAX_SERVERS}"
    return None


def _read_local(text: str) -> Address:
    address = parse_address(text)
    if isinstance(address, TCPAddress) and not address.port:
        raise ValueError(f"{quoted(text)} has port 0: write the port that the service listens on")
    return address


def _read_loopback(text: str) -> TCPAddress:
    address = parse_address(text)
    if not isinstance(address, TCPAddress):
        raise ValueError(f"{quoted(text)} is not HOST:PORT, nor a port")  # noqa: TRY004 - a kind's error
    if not _is_loopback(address.host):
        raise ValueError(
            f"{quoted(text)} can be reached from other machines, who must not see what visitors send: write 127.0.0.1:{address.port} or [::1]:{address.port}"
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(plain_host(host)).is_loopback
    except ValueError:  # a name
        return host.lower().rstrip(".") == "localhost"


def _read_domain(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        return parse_hostname(text)


def _read_own_name(text: str) -> str:
    if text.lower() in _TRUE:  # as for Http, where the server makes one
        raise ValueError(f"{quoted(text)} is not the name in its certificate, which it has to be")
    return parse_name(text)


def _read_name(text: str) -> str | None:
    """Read the name of a service; nothing stands for one that the server makes."""
    if text.lower() in _TRUE:
        return ""
    return None if text.lower() in _FALSE else parse_name(text)


def _read_basic_auth(text: str) -> tuple[str, ...]:
    """Read user and password, or a hash in its place; never shown in the message."""
    user, colon, password = text.partition(":")
    if not (colon and user and password) or not (user + password).isprintable():
        raise ValueError("the text is not USER:PASSWORD")
    if len(user) > _LONGEST_USER or len(password.encode()) > _LONGEST_PASSWORD:
        raise ValueError(
            f"the user has more than {_LONGEST_USER} characters, or the password more than {_LONGEST_PASSWORD}"
        )
    return (text,)


def wrong_with_logins(logins: Sequence[str]) -> str | None:
    """Return what is wrong with `USER:PASSWORD` of several users, None where nothing is; no password is shown."""
    for user, count in Counter(login.partition(":")[0] for login in logins).items():
        if count > 1:
            return f"the user {quoted(user)} is named more than once: each has one password"
    if len(logins) > MAX_LOGINS:
        return f"{len(logins)} users are more than {MAX_LOGINS}"
    return None


def _read_rate(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", text) or not float(text):
        raise ValueError(f"{quoted(text)} is not a number above 0")
    return float(text)


def _read_fingerprint(text: str) -> str:
    return format_fingerprint(parse_fingerprint(text))


TEXT = Kind("text", _read_text)
LABEL = Kind("text of 1 to 128 printable characters", _read_label)
BOOLEAN = Kind("true or false", _read_boolean, lambda value: "true" if value else "false")
LEVEL = Kind("DEBUG, INFO, WARNING, ERROR or CRITICAL", read_level)
PATH = Kind("a path; ~ is the home folder", _read_path)
PORT = Kind("a port from 0 to 65535", parse_port)
PORTS = Kind("ports and ranges such as 60000-60099", _read_ports, _write_ports)
NETWORKS = Kind(
    "addresses and networks such as 192.0.2.0/24 or 2001:db8::/32",
    lambda text: (parse_network(text.strip()),),
    lambda networks: ", ".join(map(write_network, networks)),
)
HOST = Kind("a host", parse_host)
HOST_PORT: Kind[str] = Kind("HOST or HOST:PORT", _read_host_port)
PUBLIC: Kind[str] = Kind(HOST_PORT.words, _read_public)
TCP: Kind[TCPAddress] = Kind("HOST:PORT", parse_tcp_address)
TCP_OR_PORT: Kind[TCPAddress] = Kind("HOST:PORT, or a port of 127.0.0.1", _read_own_address)
HOSTS: Kind[tuple[str, ...]] = Kind(
    "a host", lambda text: (parse_host(text.strip()).lower(),), ", ".join
)
SERVERS: Kind[tuple[TCPAddress, ...]] = Kind(
    "HOST:PORT",
    lambda text: (_read_server(text.strip()),),
    lambda servers: ", ".join(map(str, servers)),
)
LOCAL: Kind[Address] = Kind(
    "HOST:PORT, a port of 127.0.0.1, or the path of a Unix socket", _read_local
)
LOOPBACK: Kind[TCPAddress] = Kind(
    "HOST:PORT of this machine's loopback, or a port of 127.0.0.1", _read_loopback
)
PROXY = one_of(NO_PROXY, "v1", "v2")
DOMAIN = Kind("a domain such as tunnel.example.com, or an IP address", _read_domain)
NAME = Kind("a label such as shop, or a whole name such as shop.example.org", _read_own_name)
NAME_OR_TRUE: Kind[str | None] = Kind(
    "a label such as shop, a whole name such as shop.example.org, or true", _read_name
)
BASIC_AUTH = Kind("USER:PASSWORD", _read_basic_auth)
RATE = Kind("a number above 0", _read_rate, lambda value: f"{value:g}")
FINGERPRINT = Kind("SHA256: and 32 bytes in base64 or hex", _read_fingerprint)


def user_state_dir() -> Path:
    """Return the platform's state folder of the user; it may not exist yet.

    Raises:
        StartupError: This user has no home, as in a container with a number for a user.
    """
    try:
        return platformdirs.user_state_path("trionat")
    except (RuntimeError, OSError) as error:
        raise StartupError(
            "there is no home folder here to keep the state in: name one (--state-dir DIR or TRIONAT_STATE_DIR)"
        ) from error


STATE_DIR_UNSET = "the platform's state folder of the user"
