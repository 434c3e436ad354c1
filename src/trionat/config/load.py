"""Flags, environment and file become one checked `Configuration`, or one `ConfigError` with every mistake.

Every source is read whole even where a stronger one wins, so that a mistake does not wait behind a flag to be found.
Reading blocks on the file, so it happens before the Trio loop starts.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import attrs

from trionat.config import document
from trionat.config.acme import AcmeConfig
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.cluster import ClusterConfig
from trionat.config.database import DatabaseConfig
from trionat.config.events import EventsConfig
from trionat.config.key import Key, keys_of
from trionat.config.reader import Reader, nearest, unknown
from trionat.config.sections import KEYS, SECTIONS
from trionat.config.server import ServerConfig
from trionat.config.values import UNENCRYPTED
from trionat.errors import ConfigError, Problem
from trionat.text import strip_around

if TYPE_CHECKING:
    from trionat.config.key import Fault

Role: TypeAlias = Literal["server", "client"]
Flag: TypeAlias = str | Sequence[str] | bool | None

SectionT = TypeVar(
    "SectionT",
    ServerConfig,
    AcmeConfig,
    EventsConfig,
    DatabaseConfig,
    ClusterConfig,
    AuthConfig,
    ClientConfig,
)

SECTIONS_OF: Mapping[Role, tuple[str, ...]] = {
    "server": ("Server", "Acme", "Events", "Database", "Cluster"),
    "client": ("Auth", "Client"),
}
"""Whose each section is."""

SEARCHED = (Path(), Path("config"), Path("../config"), Path("../../config"))

# The first wins where one source has both, but never over a stronger source that has the second.
_ALTERNATIVES = (
    ("Client.Servers", "Client.ControllerAddr"),
    ("Client.Services", "Client.LocalServerAddr"),
    ("Client.Ticket", "Client.TicketFile"),
)

# Variables that Kubernetes sets in every pod beside a service called trionat-server or trionat-client.
_SERVICE_LINK = re.compile(r"TRIONAT_(SERVER|CLIENT)_(SERVICE_(HOST|PORT)|PORT)(_.*)?")


@attrs.frozen(kw_only=True)
class Configuration:
    """The values that hold, and where each came from.

    `origins` has every key's path, such as `Server.VisitPort`, with `flag --visit-port`, `environment TRIONAT_…`,
    `server.yml:7` or `default`. `database` and `cluster` are None without their sections; `file` is None where no file was read.
    `warnings` are not wrong, but most likely not what was meant.
    """

    server: ServerConfig
    acme: AcmeConfig
    events: EventsConfig
    database: DatabaseConfig | None
    cluster: ClusterConfig | None
    auth: AuthConfig
    client: ClientConfig
    origins: Mapping[str, str]
    file: Path | None
    warnings: tuple[Problem, ...] = ()


def find_file(role: Role, start: Path = Path()) -> Path | None:
    """Find `server.yml` or `client.yml` in the folders that are searched, from `start` on; None where there is none.

    Raises:
        ConfigError: Something has that name that cannot be read as a file; it must not pass for "none".
    """
    for folder in SEARCHED:
        path = start / folder / f"{role}.yml"
        try:
            found = path.lstat()
        except OSError:  # none there, or a folder that is closed to us, so not ours
            continue
        if stat.S_ISLNK(found.st_mode):
            try:
                found = path.stat()
            except FileNotFoundError:
                reason = f"is a link to {path.readlink()}, which is not there: correct or remove it"
                raise ConfigError(Problem(str(path), reason)) from None
            except OSError:
                return path  # whoever opens it is told why not
        if stat.S_ISDIR(found.st_mode):
            reason = "is a folder: it has to be a file, or to have another name"
            raise ConfigError(Problem(str(path), reason))
        return path
    return None


def read_file(path: Path) -> bytes:
    """Return what is in a configuration file, up to one byte more than one may have. Who reads it twice keeps it: a pipe gives it once.

    Raises:
        OSError: It cannot be read.
    """
    from trionat.config import yaml_text  # noqa: PLC0415 - memory: many have no file

    with path.open("rb") as file:
        return file.read(yaml_text.MAX_BYTES + 1)


def load(
    role: Role,
    *,
    file: Path | None = None,
    flags: Mapping[str, Flag] = MappingProxyType({}),
    environ: Mapping[str, str],
    check_ticket: Callable[[str], object] | None = None,
    read: Callable[[Path], bytes] | None = None,
    needs: Collection[str] | None = None,
) -> Configuration:
    """Read the configuration; a flag beats the environment, which beats the file, which beats the default.

    Args:
        role: Which file to look for where `file` names none; there need not be any.
        file: A file that has to exist.
        flags: Raw texts by the key's path; None and empty lists are flags that were not given.
        environ: The environment; an empty variable counts as not set.
        check_ticket: Raises ValueError for a text that is no ticket, which is then told with all other mistakes.
        read: Returns what is in a file, as `read_file` does, which is the default.
        needs: Paths of keys, and names of whole sections, where of what is returned only these are relied on: mistakes elsewhere are the server's affair. None: all.

    Raises:
        ConfigError: Anything is wrong in any source, whether another one overrides it or not; but a variable without a meaning is only warned of where it is not for the role.
    """
    path = find_file(role) if file is None else file
    sources = _Sources()
    sources.take_flags(flags)
    sources.take_environment(environ)
    if path is not None:
        sources.take_file(path, read or read_file)
    sources.settle_alternatives()
    if check_ticket is not None:
        sources.check("Client.Ticket", check_ticket)
    server = sources.build(ServerConfig)
    acme, events = sources.build(AcmeConfig), sources.build(EventsConfig)
    database = sources.build(DatabaseConfig) if sources.mention(DatabaseConfig) else None
    cluster = sources.build(ClusterConfig) if sources.mention(ClusterConfig) else None
    if cluster is not None and server is not None:
        sources.check_cluster(server, database)
    auth = sources.build(AuthConfig)
    client = sources.build(ClientConfig)
    problems = sources.problems_of(role) if needs is None else sources.problems_in(needs)
    if (
        problems
        or server is None
        or acme is None
        or events is None
        or auth is None
        or client is None
    ):
        raise ConfigError(*problems)
    return Configuration(
        server=server,
        acme=acme,
        events=events,
        database=database,
        cluster=cluster,
        auth=auth,
        client=client,
        origins=MappingProxyType({key: sources.origin(key) for key in KEYS}),
        file=path,
        warnings=tuple(sources.warnings),
    )


def check_flags(flags: Mapping[str, Flag]) -> None:
    """See to it that each flag alone has a value that it may have.

    Raises:
        ConfigError: One has not.
    """
    sources = _Sources()
    sources.take_flags(flags)
    if sources.problems:
        raise ConfigError(*sources.problems)


def load_needed(
    needed: Collection[str],
    *,
    file: Path | None = None,
    flags: Mapping[str, Flag] = MappingProxyType({}),
    environ: Mapping[str, str],
) -> tuple[ServerConfig, DatabaseConfig | None]:
    """Read what a command needs to find a server: the file may be half edited, and its other mistakes are the server's affair.

    Of what is returned only `needed` can be relied on.

    Args:
        needed: Paths of keys, and names of whole sections. Where flags and environment have all of them no file is read.
        file: As for `load`.
        flags: The same.
        environ: The same.

    Raises:
        ConfigError: One of these is wrong, or looks mistyped, or the file cannot be read at all.
    """
    sources = _Sources()
    sources.take_flags(flags)
    sources.take_environment(environ)
    if not sources.given.keys() >= set(needed):
        path = find_file("server") if file is None else file
        if path is not None:
            sources.take_file(path, read_file)
    server = sources.build(ServerConfig)
    database = sources.build(DatabaseConfig) if sources.mention(DatabaseConfig) else None
    problems = sources.problems_in(needed)
    if problems or server is None:
        raise ConfigError(*problems)
    return server, database


def _concerns(path: str, needed: Collection[str]) -> bool:
    """Tell whether a mistake at a path may be one in what is needed: nobody knows that where it has no path, and an unknown name may be meant for one that is needed."""
    if not path:
        return True
    section, _, name = path.partition(".")
    if section not in SECTIONS:
        section, name = nearest(section, SECTIONS) or section, ""
    if name:
        key = re.split(r"[.\[]", name, maxsplit=1)[0]
        names = {each.name for each in keys_of(SECTIONS[section])}
        name = key if key in names else nearest(key, names) or key
    return any(
        section == of and not (name and wanted and name != wanted)
        for of, _, wanted in (each.partition(".") for each in needed)
    )


def _without_secret(problem: Problem) -> Problem:
    """Cut off what stands below a secret key, or stuck to it: it is a part of the secret."""
    for key in KEYS.values():
        secret = [re.escape(key.path)] if key.secret else []
        if key.item is not None:
            place = rf"{re.escape(key.path)}(\[\d+\])?\."
            secret += [place + part.name for part in keys_of(key.item) if part.secret]
        for pattern in secret:
            if found := re.match(pattern, problem.key):
                return attrs.evolve(problem, key=found[0])
    return problem


@attrs.frozen
class _Given:
    """A value of a key, and its place; the source of `rank` 0 is the strongest."""

    value: Any
    rank: int
    where: str
    line: int | None


@attrs.define(eq=False)
class _Sources:
    """What the sources say, taken from the strongest to the weakest, and what is wrong with it."""

    problems: list[Problem] = attrs.field(init=False, factory=list[Problem])
    warnings: list[Problem] = attrs.field(init=False, factory=list[Problem])
    given: dict[str, _Given] = attrs.field(init=False, factory=dict[str, _Given])
    wrong: set[str] = attrs.field(init=False, factory=set[str])
    _meant: dict[Problem, tuple[str, ...]] = attrs.field(
        init=False, factory=dict[Problem, tuple[str, ...]]
    )
    """What unknown variables may be meant for."""

    def problems_in(self, needed: Collection[str]) -> list[Problem]:
        """Return what is wrong, or may be, with what is needed."""
        return [
            problem
            for problem in self.problems
            if any(_concerns(path, needed) for path in self._meant.get(problem, (problem.key,)))
        ]

    def problems_of(self, role: Role) -> list[Problem]:
        """Return what is wrong; variables for the other role only, which one environment may have as well, are warned of."""
        problems: list[Problem] = []
        for problem in self.problems:
            sections = [path.partition(".")[0] for path in self._meant.get(problem, ())]
            is_others = sections and not any(each in SECTIONS_OF[role] for each in sections)
            (self.warnings if is_others else problems).append(problem)
        return problems

    def take_flags(self, flags: Mapping[str, Flag]) -> None:
        for path, flag in flags.items():
            if flag is None or (not isinstance(flag, str | bool) and not flag):
                continue
            name = KEYS[path].flag or path
            where = f"flag {name}" if name.startswith("-") else f"argument {name}"
            value: document.Value
            if isinstance(flag, str | bool):
                value = document.Scalar(str(flag))
            else:
                value = document.Sequence(tuple(map(document.Scalar, flag)))
            self._take(KEYS[path], value, Reader(where, self.problems), 0)

    def take_environment(self, environ: Mapping[str, str]) -> None:
        known: dict[str, str] = {}
        for key in KEYS.values():
            known |= dict.fromkeys(key.environment, key.path)
            for name in key.environment:
                text = environ.get(name, "")
                if strip_around(text):
                    reader = Reader(f"environment {name}", self.problems)
                    self._take(key, document.Scalar(text), reader, 1)
        sections = {f"TRIONAT_{section.upper()}_": section for section in SECTIONS}
        for name in sorted(environ.keys() - known):
            if name.startswith(tuple(sections)) and not _SERVICE_LINK.fullmatch(name):
                problem = Problem(f"environment {name}", unknown("variable", name, known))
                self.problems.append(problem)
                meant = [
                    f"{section}.{name.removeprefix(begin)}"
                    for begin, section in sections.items()
                    if name.startswith(begin)
                ]
                if (near := nearest(name, known)) is not None:
                    meant.append(known[near])
                self._meant[problem] = tuple(meant)

    def take_file(self, path: Path, read: Callable[[Path], bytes]) -> None:
        from trionat.config import yaml_text  # noqa: PLC0415 - memory: many have no file

        reader = Reader(str(path), self.problems)
        try:
            data = read(path)
        except FileNotFoundError:
            reader.fail("there is no such file")
            return
        except OSError as exc:
            reader.fail(f"cannot be read: {exc.strerror}")
            return
        found: list[Problem] = []
        root = yaml_text.read_document(data, reader.where, found)
        self.problems += map(_without_secret, found)
        if not isinstance(root, document.Mapping):
            reader.fail(f"has to hold sections: {', '.join(SECTIONS)}", line=root.line)
            return
        for name, section in root.entries:
            if name.text not in SECTIONS:
                reader.fail_unknown("section", name, SECTIONS)
            elif isinstance(section, document.Scalar) and section.empty:
                continue
            elif not (listed := keys_of(SECTIONS[name.text])[0]).name:
                self._take(listed, section, reader, 2, name.line)
            elif isinstance(section, document.Mapping):
                keys = keys_of(SECTIONS[name.text])
                for key, key_name, value in reader.known(keys, section, name.text):
                    self._take(key, value, reader, 2, key_name.line)
            else:
                reader.fail("is a section: its keys go below it, indented", name.text, name.line)

    def _take(
        self, key: Key, value: document.Value, reader: Reader, rank: int, line: int | None = None
    ) -> None:
        """Read a value; it counts unless a stronger source has one."""
        so_far = len(self.problems)
        found = _Given(reader.read(key, value, key.path), rank, reader.where, line)
        if len(self.problems) > so_far:
            self.wrong.add(key.path)
        self.given.setdefault(key.path, found)

    def settle_alternatives(self) -> None:
        """Drop the one of two alternative keys that a stronger source replaces by the other."""
        for pair in _ALTERNATIVES:
            if self.given.keys() >= set(pair):
                first, second = (self.given[path].rank for path in pair)
                if first != second:
                    del self.given[pair[0] if first > second else pair[1]]

    def check(self, path: str, check: Callable[[str], object]) -> None:
        """Add what a check has against a value that was given; it raises ValueError."""
        given = self.given.get(path)
        if given is None or path in self.wrong:
            return
        try:
            check(given.value)
        except ValueError as exc:
            self.wrong.add(path)
            self.problems.append(Problem(given.where, str(exc), path, given.line))

    def mention(self, section: type[Any]) -> bool:
        """Whether any source has a key of the section."""
        return any(key.path in self.given for key in keys_of(section))

    def origin(self, path: str) -> str:
        if path not in self.given:
            return "default"
        given = self.given[path]
        return given.where if given.line is None else f"{given.where}:{given.line}"

    def build(self, section: type[SectionT]) -> SectionT | None:
        """Build a section from what is right; None where a required key is missing or wrong."""
        keys = keys_of(section)
        paths = {key.field: key.path for key in keys}
        mentioned = [self.given[path] for path in paths.values() if path in self.given]
        lacking = [key for key in keys if key.required and key.path not in self.given]
        for key in lacking:  # never so where nothing of the section is mentioned
            place = min(mentioned, key=lambda given: given.line or 0)
            self.problems.append(
                Problem(place.where, f"is missing: {key.meaning}", key.path, place.line)
            )
        if lacking or any(key.required and key.path in self.wrong for key in keys):
            return None
        built = section(
            **{
                field: self.given[path].value
                for field, path in paths.items()
                if path in self.given and path not in self.wrong
            }
        )
        self.problems += self._placed(built.faults(), paths)
        self.warnings += self._placed(built.warnings(), paths)
        return built

    def check_cluster(self, server: ServerConfig, database: DatabaseConfig | None) -> None:
        """Add what a cluster needs of the other sections."""
        if database is None and not self.mention(DatabaseConfig):
            path = "Cluster.Redis"
            reason = (
                "every node has to know the same accounts, and a file in StateDir is one machine's: name a database (section"
                " Database, MySQL or MariaDB)"
            )
        elif not server.start_auth:
            path = "Server.StartAuth"
            reason = "nodes of a cluster know their clients by accounts: StartAuth has to be true"
        elif 0 in server.visit_port:
            path = "Server.VisitPort"
            reason = (
                "all nodes of a cluster have the same visit ports, and 0 stands for any: name them"
            )
        elif server.proxy_control_addr is not None and server.tunnel_encryption == UNENCRYPTED:
            path = "Server.TunnelEncryption"
            reason = (
                "a proxy before several nodes knows by TLS to which one a tunnel belongs: leave it at tls, or do without"
                " ProxyControlAddr"
            )
        else:
            return
        place = self.given[path]
        self.problems.append(Problem(place.where, reason, path, place.line))

    def _placed(self, faults: Iterable[Fault], paths: Mapping[str, str]) -> Iterator[Problem]:
        """Name the place of the first field that was given; values that are wrong themselves are not blamed a second time, nor are defaults."""
        for fields, reason in faults:
            involved = [paths[field] for field in fields]
            given = [path for path in involved if path in self.given]
            if given and self.wrong.isdisjoint(involved):
                path = given[0]
                place = self.given[path]
                yield Problem(place.where, reason, path, place.line)
