"""What is wrong with the things that a configuration names (certificates, authorities, tickets, folders), and what most likely was not meant.

Blocks on the files that it looks at.
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trionat.config.client import NATIVE
from trionat.config.cluster import ClusterConfig
from trionat.config.load import Configuration, Role
from trionat.config.sections import KEYS
from trionat.config.server import ServerConfig
from trionat.errors import ConfigError, Problem, StartupError
from trionat.log import get_logger
from trionat.protocol.frames import CONTROL_FRAME_BYTES
from trionat.protocol.messages import Expose, ServiceRequest
from trionat.store.private_file import everybody_can_use, others_can_write
from trionat.transport.certificate import first_certificate, validity
from trionat.transport.tls import (
    client_context,
    find_refusal,
    is_for_other_name,
    lacks_authority,
    name_mismatch,
    server_context,
)

log = get_logger(__name__)


def _services_that_fit() -> int:
    """How many services one EXPOSE carries, with names as long as that of a port of this machine."""
    name = "127.0.0.1:60000"
    service = ServiceRequest(name=name, local=name, visit_port=60000, preferred_port=60000)
    one, two = (len(Expose(services=(service,) * number).payload()) for number in (1, 2))
    return (CONTROL_FRAME_BYTES - one) // (two - one) + 1


_SERVICES_THAT_FIT: Final = _services_that_fit()


def find_problems(configuration: Configuration) -> Iterator[Problem]:
    """Find what does not work: files that are not there, or hold something else."""
    from trionat.client.native.dialer import find_ticket  # noqa: PLC0415 - a server needs no client
    from trionat.client.native.expose import check_services  # noqa: PLC0415 - the same

    client, database, cluster = configuration.client, configuration.database, configuration.cluster
    try:
        find_ticket(client)
    except ConfigError as error:
        for found in error.problems:  # a ticket that is in the file itself was checked with it
            yield _problem(configuration, "Client.TicketFile", found.reason)
    for path, ca_file in (
        ("Client.CAFile", client.ca_file),
        ("Database.CAFile", None if database is None else database.ca_file),
        ("Cluster.CAFile", None if cluster is None else cluster.ca_file),
    ):
        if ca_file is not None:
            try:
                client_context(pinned=False, ca_file=ca_file)
            except OSError as error:
                reason = f"{ca_file}: no certificate authorities: {error.strerror or error}"
                yield _problem(configuration, path, reason)
    if client.dialect == NATIVE and (client.services or client.local_server_addr):
        try:
            check_services(client.effective_services(), client.group)
        except ConfigError as error:
            yield _problem(configuration, "Client.Services", error.problems[0].reason)
    yield from _certificate_problems(configuration)
    if cluster is not None:
        yield from _cluster_problems(configuration, cluster)
    yield from _folder_problems(configuration)


def _cluster_problems(configuration: Configuration, cluster: ClusterConfig) -> Iterator[Problem]:
    from trionat.server.cluster.redis_link import require_library  # noqa: PLC0415 - memory

    try:
        require_library()
    except StartupError as error:
        yield _problem(configuration, "Cluster.Redis", str(error))
    file = cluster.redis_password_file
    if file is None:
        return
    try:
        with file.open("rb") as opened:
            line = opened.readline().strip()
    except OSError as error:
        reason = f"{file}: cannot be read: {error.strerror}"
        yield _problem(configuration, "Cluster.RedisPasswordFile", reason)
        return
    if not line:
        reason = f"{file}: its first line is empty: write the password for Redis there"
        yield _problem(configuration, "Cluster.RedisPasswordFile", reason)


def _folder_problems(configuration: Configuration) -> Iterator[Problem]:
    server = configuration.server
    for path, folder in (
        ("Server.CertificatesDir", server.certificates_dir),
        ("Server.PagesDir", server.pages_dir),
    ):
        if folder is None:
            continue
        try:
            is_there = folder.is_dir()
        except OSError as error:  # it may be in one that is closed to us
            reason = f"{folder}: cannot be read: {error.strerror}"
            yield _problem(configuration, path, reason)
        else:
            if not is_there:
                yield _problem(configuration, path, f"{folder}: there is no such folder")


def _certificate_problems(configuration: Configuration) -> Iterator[Problem]:
    server = configuration.server
    files = (
        ("Server.Certificate", server.certificate),
        ("Server.CertificateKey", server.certificate_key),
    )
    readable = True
    for path, file in files:
        if file is not None:
            try:
                file.open("rb").close()
            except OSError as error:
                readable = False
                yield _problem(configuration, path, f"{file}: cannot be read: {error.strerror}")
    if not readable or server.certificate is None or server.certificate_key is None:
        return
    try:
        first_certificate(server.certificate.read_text())
    except ValueError:
        reason = f"{server.certificate}: there is no certificate in it (PEM)"
        yield _problem(configuration, "Server.Certificate", reason)
        return
    try:
        server_context(server.certificate, server.certificate_key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"{server.certificate_key}: it is the key of another certificate than {server.certificate}"
        else:
            reason = f"{server.certificate_key}: no private key without a password (PEM), or the chain in {server.certificate} is damaged: {error}"
        yield _problem(configuration, "Server.CertificateKey", reason)


def find_warnings(configuration: Configuration, *roles: Role) -> Iterator[Problem]:
    """Find what works, but is risky or of no use; whatever `find_problems` has is passed over."""
    yield from configuration.warnings
    yield from find_open_secrets(configuration, *roles)
    if "server" in roles:
        yield from _server_warnings(configuration)
    if "client" in roles:
        yield from _client_warnings(configuration)


def find_open_secrets(configuration: Configuration, *roles: Role) -> Iterator[Problem]:
    """Find files with secrets, the configuration itself among them, that everybody on this machine may read or change; it works nevertheless."""
    client, server, cluster = configuration.client, configuration.server, configuration.cluster
    named: list[tuple[str, Path | None, str]] = []
    if "client" in roles:
        named.append(("Client.TicketFile", client.ticket_file, "read this ticket"))
    if "server" in roles:
        named.append(("Server.CertificateKey", server.certificate_key, "use this key"))
        password = None if cluster is None else cluster.redis_password_file
        named.append(("Cluster.RedisPasswordFile", password, "read this password"))
    for path, file, doing in named:
        if file is not None and everybody_can_use(file):
            reason = f"{file}: everybody on this machine can {doing}: run chmod o-rwx {shlex.quote(str(file))}"
            yield _problem(configuration, path, reason)
    file = configuration.file
    secret = _secret_in(configuration)
    if file is not None and secret is not None and everybody_can_use(file):
        reason = (
            f"everybody on this machine can read it there: run chmod o-rwx {shlex.quote(str(file))}"
        )
        yield _problem(configuration, secret, reason)


def holds_secrets(configuration: Configuration) -> bool:
    """Tell whether the file of a configuration has a ticket or a password in it."""
    return _secret_in(configuration) is not None


def _secret_in(configuration: Configuration) -> str | None:
    file = str(configuration.file)
    for path, key in KEYS.items():
        if key.secret and configuration.origins[path].startswith(file):
            return path
    return None


def _server_warnings(configuration: Configuration) -> Iterator[Problem]:
    from trionat.server.state_folder import database_file  # noqa: PLC0415 - a client needs no server

    server = configuration.server
    if server.max_services > _SERVICES_THAT_FIT:
        yield _problem(
            configuration,
            "Server.MaxServices",
            f"{server.max_services} are more than a client can ask for: its message of {CONTROL_FRAME_BYTES // 1024} KiB carries"
            f" about {_SERVICES_THAT_FIT}",
        )
    if (refused := _why_refused(server)) is not None:
        yield _problem(configuration, "Server.Certificate", f"{server.certificate}: {refused}")
    if (mismatch := _other_name(server)) is not None:
        yield _problem(configuration, "Server.Certificate", f"{server.certificate}: {mismatch}")
    try:
        folder = server.effective_state_dir
    except StartupError:
        return
    yield from _open_to_others(configuration, "Server.StateDir", folder, database_file(folder))


def _why_refused(server: ServerConfig) -> str | None:
    """Say why clients that check a configured certificate by the system's authorities refuse it; None where they do not."""
    certificate, key = server.certificate, server.certificate_key
    if certificate is None or key is None:
        return None
    try:
        begins, ends = validity(certificate.read_text())
        error = find_refusal(certificate, key, server.public_host)
    except (OSError, ValueError):
        return None
    now = datetime.now(UTC)
    if not begins <= now < ends:
        when = f"expired on {ends:%Y-%m-%d}" if now >= ends else f"begins on {begins:%Y-%m-%d}"
        return f"it {when}: clients that check it by authority refuse it"
    if error is None:
        return None
    told = error.verify_message.rstrip(".")
    if is_for_other_name(error):
        return None  # told by itself
    if lacks_authority(error):
        return (
            f"no authority of this system vouches for it ({told}): a client needs --fingerprint or --ca-file besides its"
            " ticket; without Certificate the ticket would be enough"
        )
    return f"clients that check it by authority refuse it ({told}): they need --fingerprint besides their ticket"


def _other_name(server: ServerConfig) -> str | None:
    """Say that tickets lead to an address that a configured certificate is not for; None where it is for it."""
    certificate, key, host = server.certificate, server.certificate_key, server.public_host
    if certificate is None or key is None or host is None:
        return None
    try:
        told = name_mismatch(certificate, key, host)
    except (OSError, ValueError):
        return None
    if told is None:
        return None
    advice = "set PublicAddr (--public-addr) to a name that it is for; else they need --fingerprint besides their ticket"
    if server.domain is not None:
        advice += "; a certificate that is for visitors alone belongs into CertificatesDir"
    return (
        f"tickets lead to {host}, and it is not for that, so clients refuse it ({told}): {advice}"
    )


def _client_warnings(configuration: Configuration) -> Iterator[Problem]:
    try:
        folder = configuration.client.effective_state_dir
    except StartupError:
        return
    known = folder / "known_servers"
    yield from _open_to_others(configuration, "Client.StateDir", folder, known)


def _open_to_others(configuration: Configuration, path: str, *files: Path) -> Iterator[Problem]:
    for file in files:
        if others_can_write(file):
            reason = f"{file}: others can change what is kept there: run chmod go-w {shlex.quote(str(file))}"
            yield _problem(configuration, path, reason)


def log_warnings(warnings: Iterable[Problem]) -> None:
    """Log what `find_warnings` has found, when there is a log."""
    for warning in warnings:
        log.warning(
            "the configuration may not be what was meant",
            place=warning.where if warning.line is None else f"{warning.where}:{warning.line}",
            key=warning.key,
            reason=warning.reason,
        )


def _problem(configuration: Configuration, path: str, reason: str) -> Problem:
    return Problem(configuration.origins[path], reason, path)
