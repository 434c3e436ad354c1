"""`trionat doctor`: what is wrong, and what to do."""

from __future__ import annotations

import functools
import json
import logging
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final

import attrs
import trio
import typer

from trionat.cli.config import rows_of
from trionat.cli.connect import read_arguments
from trionat.cli.diagnostics import find_open_secrets, find_problems, find_warnings, holds_secrets
from trionat.cli.flags import Flags, with_flags
from trionat.cli.local_server import told
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.client.native.dialer import find_servers, find_ticket
from trionat.config.client import NATIVE, AuthConfig, ClientConfig
from trionat.config.load import SECTIONS_OF, Configuration, Flag, Role, load, read_file
from trionat.doctor.bundle import check_place, last_lines, machine, versions, write_bundle
from trionat.doctor.check import Check, run_checks
from trionat.doctor.checkup import client_checks, given, machine_checks, server_checks
from trionat.doctor.configuration import check_configuration
from trionat.doctor.files import SecretFile
from trionat.doctor.finding import Finding, Verdict, wrong
from trionat.doctor.masking import Masker, secret_contents
from trionat.errors import ConfigError, Problem, StartupError
from trionat.log import escape
from trionat.protocol.ticket import Ticket
from trionat.text import counted, mask_secrets
from trionat.transport.isolation import leaves
from trionat.transport.names import NameResolver

_SERVER_FILES: Final = ("server.key", "ticket.key", "trionat.db", "cluster.key")
"""One of which is in the state folder of a server that has run."""

_SPACE: Final = 16
"""Characters for the name of a check."""


@with_flags(AuthConfig, ClientConfig)
def doctor(
    flags: Flags,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TICKET] [SERVICE]...",
            help="As for trionat connect; without any, what is configured here is looked at: a client, a server, or both.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The configuration file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, for scripts.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a zip for a bug report: this, the configuration, versions, the end of the log. Secrets are masked.",
        ),
    ] = None,
) -> None:
    """Look at all between here and visitors, and say what to do. Nothing is changed.

    The exit code is 6 where something is wrong.
    """
    with told():
        patient = _Patient.find(flags, arguments or [], config)
        if bundle is not None:
            check_place(bundle)
    report = _Report(as_json)
    _run(patient, report)
    wrong_ones = report.count(Verdict.WRONG)
    if bundle is not None:
        with told():
            write_bundle(bundle, patient.texts(report), patient.masker())
            say(f"wrote {bundle}: look through it before you give it away", err=as_json)
    if not as_json:
        warnings = report.count(Verdict.WARNING)
        also = f", {counted(warnings, 'warning')}" if warnings else ""
        say(f"\n{wrong_ones or 'nothing'} wrong{also}")
    if wrong_ones:
        raise typer.Exit(ExitCode.FINDINGS)


def _run(patient: _Patient, report: _Report) -> None:
    """Run the checks. What ends it before, a reader that has gone or Ctrl-C, comes grouped out of the nursery."""
    code: int | None = None
    try:
        with _quiet():
            trio.run(_examine, patient.checks(), report)
    except* typer.Exit as group:
        code = max(getattr(each, "exit_code", 0) for each in leaves(group))
    except* KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    if code is not None:
        raise typer.Exit(code)


async def _examine(checks: Iterable[Check], report: _Report) -> None:
    trio.socket.set_custom_hostname_resolver(NameResolver())
    await run_checks(list(checks), report.show)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep what trionat logs of the doctor's own session off the terminal."""
    handler = logging.NullHandler()
    log = logging.getLogger("trionat")
    propagated, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagated


@attrs.define(eq=False)
class _Report:
    """Prints each finding as it comes, and keeps it."""

    as_json: bool
    shown: list[tuple[Check, Finding]] = attrs.field(
        init=False, factory=list[tuple[Check, Finding]]
    )

    def show(self, check: Check, finding: Finding) -> None:
        self.shown.append((check, finding))
        for line in self._json(check, finding) if self.as_json else self._text(check, finding):
            say(line)

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict is verdict for _, finding in self.shown)

    def text(self) -> str:
        return "\n".join(line for each in self.shown for line in self._text(*each)) + "\n"

    def json(self) -> str:
        return "\n".join(line for each in self.shown for line in self._json(*each)) + "\n"

    def _text(self, check: Check, finding: Finding) -> Iterator[str]:
        about = f"{check.about}: " if check.about and check.about not in finding.text else ""
        yield escape(
            mask_secrets(f"{finding.verdict:8} {check.name:{_SPACE}} {about}{finding.text}")
        )
        if finding.advice:
            yield escape(mask_secrets(f"{'':8} {'':{_SPACE}} -> {finding.advice}"))

    def _json(self, check: Check, finding: Finding) -> Iterator[str]:
        yield json.dumps(
            {
                "check": check.name,
                "about": mask_secrets(check.about),
                "verdict": finding.verdict,
                "text": mask_secrets(finding.text),
                "advice": mask_secrets(finding.advice),
            }
        )


@attrs.define(eq=False, kw_only=True)
class _Patient:
    """What is looked at: the configurations of the roles that are here, and what was wrong when they were read."""

    configurations: dict[Role, Configuration]
    problems: list[Problem]
    _read: Callable[[Path], bytes] = attrs.field(
        init=False, factory=lambda: functools.cache(read_file)
    )

    @classmethod
    def find(cls, flags: Flags, arguments: list[str], config: Path | None) -> _Patient:
        """Find out what is here.

        Raises:
            ConfigError: The command line is wrong, or there is nothing to look at.
        """
        ticket, services = read_arguments(arguments)
        given = {**flags, "Client.Ticket": ticket, "Client.Services": services or None}
        state_dir = flags.get("Client.StateDir")
        asked = any(value for path, value in given.items() if path != "Client.StateDir")
        patient = cls(configurations={}, problems=[])
        client = patient._load("client", config, given)
        if client is not None and (asked or _is_client(client)):
            patient.configurations["client"] = client
        if not asked:
            of_server = {"Server.StateDir": state_dir if isinstance(state_dir, str) else None}
            server = patient._load("server", config, of_server)
            # A file that was named and is a client's says nothing of a server that has run here.
            is_clients = config is not None and "client" in patient.configurations
            if server is not None and _is_server(server, has_run=not is_clients):
                patient.configurations["server"] = server
        if not patient.configurations and not patient.problems:
            reason = (
                "there is neither a server nor a client here: give the ticket (trionat doctor TICKET 8080), or name the server's"
                " folder or file (--state-dir, --config)"
            )
            raise ConfigError(Problem("configuration", reason))
        return patient

    def _load(
        self, role: Role, file: Path | None, flags: Mapping[str, Flag]
    ) -> Configuration | None:
        try:
            found = load(
                role,
                file=file,
                flags=flags,
                environ=os.environ,
                check_ticket=Ticket.decode,
                read=self._read,
            )
            if role == "client":
                found = attrs.evolve(found, client=_with_ticket_of_pipe(found.client))
        except ConfigError as error:
            typed = [
                each for each in error.problems if each.where.startswith(("flag ", "argument "))
            ]
            if typed:
                raise ConfigError(*typed) from error
            self.problems += [each for each in error.problems if each not in self.problems]
            return None
        return found

    def checks(self) -> Iterator[Check]:
        """Return all checks, in their order."""
        problems, warnings = list(self.problems), list[Problem]()
        for role, configuration in self.configurations.items():
            problems += [each for each in find_problems(configuration) if each not in problems]
            # The check of files looks at these as well.
            passed = [*problems, *warnings, *find_open_secrets(configuration, role)]
            warnings += [each for each in find_warnings(configuration, role) if each not in passed]
        sources = [
            f"{role}: {configuration.file or 'no file, but flags, environment and defaults'}"
            for role, configuration in self.configurations.items()
        ]
        found = check_configuration(problems, warnings, "; ".join(sources))
        inner = list(self._inner(found, problems))
        yield given("configuration", found)
        yield from inner

    def _inner(self, found: list[Finding], problems: Iterable[Problem]) -> Iterator[Check]:
        """Yield all checks but that of the configuration, and add to what that has `found`, which was made of these problems."""
        if not self.configurations:
            yield from machine_checks()
        secrets: list[SecretFile] = []
        if (configuration := self.configurations.get("client")) is not None:
            client = configuration.client
            try:
                servers = find_servers(client, configuration.auth)
            except ConfigError as error:
                servers = ()
                # Those of the ticket's file are there with the key that names it.
                told = {each.reason for each in problems if each.key == "Client.TicketFile"}
                found += [
                    wrong(str(each), "")
                    for each in error.problems
                    if each.key or each.reason not in told
                ]
            services = client.effective_services() if _has_services(client) else ()
            secrets = self._secrets_and_itself(configuration)
            yield from client_checks(
                client, servers, services, secrets, beside_server="server" in self.configurations
            )
        if (configuration := self.configurations.get("server")) is not None:
            others = [
                each for each in self._secrets_and_itself(configuration) if each not in secrets
            ]
            beside = self.configurations.get("client")
            try:
                yield from server_checks(
                    configuration, others, None if beside is None else beside.client
                )
            except StartupError as error:
                found.append(wrong(str(error), ""))

    def _secrets(self, configuration: Configuration) -> list[SecretFile]:
        """Return the files that the configuration names, or is itself, and that hold secrets."""
        cluster, key = configuration.cluster, configuration.server.certificate_key
        found: list[SecretFile] = []
        if (ticket := configuration.client.ticket_file) is not None:
            found.append(SecretFile(ticket, "the ticket", for_group=True))
        if key is not None:
            found.append(SecretFile(key, "the certificate's key", for_group=True))
        if cluster is not None:
            found.append(SecretFile(cluster.key_file, "the cluster's key"))
            if cluster.redis_password_file is not None:
                password = cluster.redis_password_file
                found.append(SecretFile(password, "the password for Redis", for_group=True))
        return found

    def _secrets_and_itself(self, configuration: Configuration) -> list[SecretFile]:
        found = self._secrets(configuration)
        if configuration.file is not None and holds_secrets(configuration):
            found.append(SecretFile(configuration.file, "passwords or tickets", for_group=True))
        return found

    def masker(self) -> Masker:
        """Return what masks all that is secret here. Blocks."""
        secret: list[Path] = []
        for configuration in self.configurations.values():
            secret += [file.path for file in self._secrets(configuration)]
            try:
                folder = configuration.server.effective_state_dir
            except StartupError:
                folder = None
            if folder is not None:
                names = ("server.key", "ticket.key", "identity", "certificates/account.key")
                secret += [folder / name for name in names]
        configurations = [*self.configurations.values(), *self._files_alone()]
        return Masker.of(configurations, secret_contents(secret))

    def _files_alone(self) -> Iterator[Configuration]:
        """Return what stands in the files, although a flag or the environment has something else."""
        for role, configuration in self.configurations.items():
            if configuration.file is not None:
                with suppress(ConfigError):
                    yield load(role, file=configuration.file, environ={}, read=self._read)

    def texts(self, report: _Report) -> dict[str, str]:
        """Return what goes into a bundle, by name. Blocks."""
        rows: list[str] = []
        logs: list[Path] = []
        for role, configuration in self.configurations.items():
            for path, value, origin in rows_of(configuration, SECTIONS_OF[role]):
                rows.append(f"{path}\t{value}\t{origin}")
            name = configuration.client.log_filename
            if role == "server":
                try:
                    name = configuration.server.effective_log_filename
                except StartupError:
                    name = None
            if name is not None:
                logs.append(Path(name))
        return {
            "doctor.txt": report.text(),
            "doctor.jsonl": report.json(),
            "configuration.txt": "\n".join(rows) + "\n",
            "versions.txt": versions(),
            "machine.txt": machine(os.environ),
            "log.txt": last_lines(logs),
        }


def _with_ticket_of_pipe(client: ClientConfig) -> ClientConfig:
    """Return a configuration that holds the ticket itself where that comes through a pipe, which can be read once only. Blocks.

    Raises:
        ConfigError: What comes is no ticket.
    """
    file = client.ticket_file
    if client.ticket is not None or file is None or not _is_pipe(file):
        return client
    ticket = find_ticket(client)
    return client if ticket is None else attrs.evolve(client, ticket=ticket.encode())


def _is_pipe(file: Path) -> bool:
    try:
        return stat.S_ISFIFO(file.stat().st_mode)
    except OSError:
        return False


def _has_services(client: ClientConfig) -> bool:
    return bool(client.services or client.local_server_addr is not None)


def _is_client(configuration: Configuration) -> bool:
    client = configuration.client
    return bool(
        client.ticket
        or client.ticket_file
        or client.servers
        or client.controller_addr
        or client.dialect != NATIVE
    )


def _is_server(configuration: Configuration, *, has_run: bool) -> bool:
    """Tell whether a server is configured here, or, with `has_run`, has run."""
    if any(
        origin != "default"
        for path, origin in configuration.origins.items()
        if path.partition(".")[0] in SECTIONS_OF["server"] and path != "Server.StateDir"
    ):
        return True
    if not has_run:
        return False
    try:
        folder = configuration.server.effective_state_dir
        return any((folder / name).exists() for name in _SERVER_FILES)
    except (StartupError, OSError):
        return False
