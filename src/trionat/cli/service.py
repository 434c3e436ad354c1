"""`trionat service`: have the system keep a server or a client up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import attrs
import typer

from trionat.address import UnixAddress
from trionat.cli.command_line import App
from trionat.cli.connect import check_complete, split_arguments
from trionat.cli.flags import Flags, flag_text
from trionat.cli.local_server import AsJson, given, told
from trionat.cli.output import say
from trionat.cli.reloading import prepare_watching
from trionat.cli.running import ExitCode, Verbosity
from trionat.cli.serve import require_parts
from trionat.config.key import Key, keys_of
from trionat.config.load import Role, check_flags, find_file, load
from trionat.config.sections import SECTIONS
from trionat.config.service import parse_service
from trionat.config.values import LOCAL, PATH
from trionat.errors import ConfigError, Problem, StartupError
from trionat.log import escape
from trionat.protocol.ticket import Ticket
from trionat.service_manager.daemon import (
    DEFAULT_NAMES,
    Daemon,
    Side,
    check_name,
    find_program,
)
from trionat.service_manager.manager import ServiceManager, find_manager
from trionat.system import is_root

service_app = App(
    help="Have the system keep a server or a client up. It is systemd, launchd or Windows."
)

Machine = Annotated[
    bool | None,
    typer.Option(
        "--system/--user",
        help="For the whole machine, from its start on, or for you, while you are logged in; default: --system for root.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What it is called; default: trionat for a server, trionat-client for a client."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be written and run, and do nothing.")
]


@service_app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
def install(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="serve|connect [ARGUMENTS]...",
            help="What to keep up, as you would type it after trionat: serve --domain example.com, or connect TICKET 8080.",
        ),
    ],
    machine: Machine = None,
    name: Name = None,
    dry_run: DryRun = False,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Let it start next time, not now.")
    ] = False,
) -> None:
    """Keep a server or a client up: it starts by itself, and again when it has failed. One of the same name is replaced.

    Options of its own come first: trionat service install --name camera connect TICKET 8554. A ticket goes into a file of its own, which others cannot read.
    """
    with told():
        side, arguments, given_words = _split(context, command)
        ticket, arguments = split_arguments(arguments) if side == "connect" else (None, arguments)
        if not all(map(str.isprintable, arguments)):
            reason = "there is a character that cannot be seen, or no text at all, which the system's own files cannot hold"
            raise ConfigError(Problem(f"arguments of {side}", reason))
        daemon = Daemon(
            side=side,
            name=DEFAULT_NAMES[side] if name is None else check_name(name),
            arguments=tuple(arguments),
            machine=_is_for_machine(machine),
            program=find_program(),
            ticket=ticket,
        )
        manager = find_manager(machine=daemon.machine)
        plan = manager.installation(daemon, start=not no_start)
        names = sorted(
            key for key, value in os.environ.items() if key.startswith("TRIONAT_") and value
        )
        if names:
            say(
                escape(
                    f"note: the service does not get {', '.join(names)} of this environment: give what it needs as an option, or in a file"
                ),
                err=True,
            )
        if (unread := _check(side, given_words, manager.folder(daemon.name))) is not None:
            say(escape(f"note: {unread}"), err=True)
        if dry_run:
            for line in plan.lines():
                say(escape(line))
            return
        _require_power(machine=daemon.machine)
        try:
            plan.carry_out()
        except StartupError as error:
            lines = [] if no_start else list(manager.last_words(daemon.name))
            if daemon.name in manager.installed():
                lines.append(
                    f"{daemon.name} is installed all the same: the same words again replace it, and trionat service uninstall {daemon.name} takes it away"
                )
            raise StartupError("\n  ".join([str(error), *lines])) from error
        for file in plan.files:
            say(f"wrote {file.path}" + (" (a secret)" if file.secret else ""))
        say(escape(f"{daemon.name}: {manager.state(daemon.name).text}"))
        for note in plan.notes:
            say(f"note: {note}")


@service_app.command()
def uninstall(
    name: Annotated[
        str | None, typer.Argument(help="Its name; may be left out where there is only one.")
    ] = None,
    machine: Machine = None,
    dry_run: DryRun = False,
) -> None:
    """Stop it, and take it away again. Its state (keys, users, known servers) stays."""
    with told():
        for_machine = _is_for_machine(machine)
        manager = find_manager(machine=for_machine)
        found = _find(manager, name)
        plan = manager.removal(found)
        if dry_run:
            for line in plan.lines():
                say(escape(line))
            return
        _require_power(machine=for_machine)
        plan.carry_out()
        say(f"{found} is gone")


@service_app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Its name; without it, all are shown.")] = None,
    machine: Machine = None,
    as_json: AsJson = False,
) -> None:
    """Show how what was installed stands. The exit code is 3 where one of them is not up, or none is installed."""
    with told():
        manager = find_manager(machine=_is_for_machine(machine))
        names = manager.installed() if name is None else [_find(manager, name)]
        if not names:
            raise StartupError("nothing is installed here: trionat service install does that")
        states = [manager.state(each) for each in names]
    for state in states:
        if as_json:
            line = {"name": state.name, "active": state.active, "text": state.text}
            say(json.dumps({**line, "file": str(state.file)}))
        else:
            say(escape(f"{state.name}: {state.text}"))
    if not all(state.active for state in states):
        raise typer.Exit(ExitCode.STARTUP)


def _split(context: typer.Context, words: list[str]) -> tuple[Side, list[str], Mapping[str, Any]]:
    """Return which command is meant, and its arguments, with the paths of files and sockets from the root on: it starts in another folder; and what its parameters get.

    Raises:
        ConfigError: It is another one, or a secret would stand in a file that everybody can read. What is wrong with its options is Typer's to say.
        StartupError: There is no working directory.
    """
    side, *arguments = words
    if side not in DEFAULT_NAMES:
        reason = "write serve or connect, and what comes after it"
        raise ConfigError(Problem("argument serve|connect", reason))
    root = context.find_root()
    command = cast(Any, root.command).get_command(root, side)
    parsed = command.make_context(side, list(arguments), parent=root)
    keys = [key for key in _keys() if f"{key.section}_{key.field}" in parsed.params]
    for key in keys:
        if key.secret and parsed.params[f"{key.section}_{key.field}"]:
            reason = "what is kept up is shown to everybody on this machine: write it into a file, and name that with --config"
            raise ConfigError(Problem(", ".join(_flags(key)), reason))
    takes_value = {
        flag
        for parameter in parsed.command.params
        if not getattr(parameter, "is_flag", True)
        for flag in parameter.opts
    }
    try:
        return side, list(_with_whole_paths(arguments, keys, takes_value)), parsed.params
    except FileNotFoundError as error:
        raise StartupError("the working directory no longer exists: change to another") from error


def _check(side: Side, given_words: Mapping[str, Any], folder: Path) -> str | None:
    """See to it that a daemon that starts in `folder` with these words does not end at once; return what could not be looked at here.

    Raises:
        ConfigError: Something is wrong, or missing, in its words or its configuration file.
        StartupError: A library is missing.
    """
    Verbosity.of(quiet=given_words["quiet"], verbose=given_words["verbose"])
    flags: Flags = {
        key.path: flag_text(given_words[f"{key.section}_{key.field}"])
        for key in _keys()
        if f"{key.section}_{key.field}" in given_words
    }
    role: Role = "server" if side == "serve" else "client"
    if side == "connect":
        ticket, services = split_arguments(list(given_words["arguments"] or ()))
        flags |= {"Client.Ticket": ticket, "Client.Services": services or None}
    named = given_words["config"]
    file = find_file(role, folder) if named is None else Path(_whole_path(str(named)))
    if file is not None:
        try:
            file.open("rb").close()
        except PermissionError:
            check_flags(flags)
            return f"{file} cannot be read by you, so nobody has looked whether the {role} can start with what is in it"
        except OSError:
            pass  # `load` tells
    configuration = load(
        role,
        file=Path(os.devnull) if file is None else file,
        flags=flags,
        environ={},  # it gets none of ours
        check_ticket=Ticket.decode,
    )
    if side == "serve":
        require_parts(configuration)
    else:
        prepare_watching(configuration, role)
        check_complete(configuration)
    return None


def _keys() -> Iterable[Key]:
    for section in SECTIONS.values():
        yield from keys_of(section)


def _flags(key: Key) -> list[str]:
    return [*([f"-{key.letter}"] if key.letter else []), *filter(None, [key.flag]), *key.aliases]


def _with_whole_paths(
    arguments: list[str], keys: Iterable[Key], takes_value: Container[str]
) -> Iterable[str]:
    """Return the arguments with whole paths; `keys` have flags among them, `takes_value` those after which a value comes."""
    readers: dict[str, Callable[[str], str]] = {"--config": _whole_path}
    for key in keys:
        if key.kind in {PATH, LOCAL}:
            read = _whole_path if key.kind is PATH else _whole_service
            readers.update(dict.fromkeys(_flags(key), read))
    flag: str | None = None  # whose value comes next
    for argument in arguments:
        if flag is not None:
            with given(flag):
                yield readers.get(flag, str)(argument)
            flag = None
        elif argument.startswith("-"):
            name, equals, value = argument.partition("=")
            with given(name):
                yield f"{name}={readers.get(name, str)(value)}" if equals else argument
            flag = None if equals else _awaiting(argument, takes_value)
        else:
            yield _whole_service(argument)


def _awaiting(argument: str, takes_value: Container[str]) -> str | None:
    """Return the flag of an argument that gets its value from the next one: `--config`, `-c`, or the last letter of `-vc`."""
    if argument.startswith("--"):
        return argument if argument in takes_value else None
    for place, letter in enumerate(argument[1:], start=2):
        if f"-{letter}" in takes_value:
            return f"-{letter}" if place == len(argument) else None
    return None


def _whole_path(text: str) -> str:
    return str(PATH.read(text).absolute())


def _whole_service(text: str) -> str:
    """Return a service, or where one is, with the whole path of its socket. What is neither is for the program to complain about."""
    try:
        service = parse_service(text)
    except ValueError:
        return text
    if not isinstance(service.local, UnixAddress):
        return text
    path = UnixAddress(str(Path(service.local.path).absolute()))
    return str(attrs.evolve(service, local=path))


def _is_for_machine(wanted: bool | None) -> bool:
    return is_root() if wanted is None else wanted


def _require_power(*, machine: bool) -> None:
    """See to it that who asks may change what is kept up.

    Raises:
        StartupError: It is the whole machine's, and he is not root.
    """
    if machine and not is_root():
        raise StartupError(
            "only root may change what the whole machine keeps up: write sudo before it, or --user for a service of your own"
        )


def _find(manager: ServiceManager, name: str | None) -> str:
    names = list(manager.installed())
    if name is None:
        if len(names) == 1:
            return names[0]
        reason = f"say which: {', '.join(names)}" if names else "nothing is installed here"
        raise ConfigError(Problem("NAME", reason))
    if name not in names:
        there = f": {', '.join(names)} are" if names else ", nor is any other"
        raise ConfigError(Problem("NAME", f"{name} is not installed here{there}"))
    return name
