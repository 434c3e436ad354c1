"""`trionat config`: check a configuration file, and show what holds and where it came from."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from trionat.cli.command_line import App
from trionat.cli.diagnostics import find_problems, find_warnings
from trionat.cli.output import say
from trionat.cli.running import ExitCode
from trionat.config.key import Key, keys_of
from trionat.config.load import SECTIONS_OF, Configuration, Role, load, read_file
from trionat.config.sections import SECTIONS
from trionat.errors import ConfigError, Problem, StartupError
from trionat.log import escape
from trionat.protocol.ticket import Ticket

_MASK = "********"
config_app = App(help="Check configuration files, and show which values hold.")


@config_app.command()
def check(file: Annotated[Path, typer.Argument(help="The file, of either role.")]) -> None:
    """Check a file, what it names (tickets, certificates, authorities) included, and say which keys it sets.

    What works, but is risky or of no use, is told as a warning, which does not change the exit code. Flags and environment are left out, and nothing is connected to.
    """
    configuration = _load_or_exit("server", file, {}, Ticket.decode)
    if problems := list(find_problems(configuration)):
        _exit_with(problems)
    for warning in find_warnings(configuration, *_roles(configuration)):
        say(escape(f"warning: {warning}"), err=True)
    say(escape(f"{file}: ok"))
    for section, owner in SECTIONS.items():
        names = [key.name for key in keys_of(owner) if configuration.origins[key.path] != "default"]
        if names:
            say(f"  {section}: {', '.join(names)}" if all(names) else f"  {section}")


@config_app.command()
def show(
    config: Annotated[Path | None, typer.Option(help="The file, instead of the one found.")] = None,
    role: Annotated[
        Literal["server", "client", "both"], typer.Option(help="Whose values to show.")
    ] = "both",
) -> None:
    """Show the value of every key and where it comes from; passwords and tickets are masked."""
    roles: tuple[Role, ...] = ("server", "client") if role == "both" else (role,)
    rows: list[tuple[str, str, str]] = []
    read = functools.cache(read_file)
    for each in roles:
        found = _load_or_exit(each, config, os.environ, read=read)
        rows += rows_of(found, SECTIONS_OF[each])
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for path, value, origin in rows:
        say(escape(f"{path:{widths[0]}}  {value:{widths[1]}}  {origin}"))


def rows_of(
    configuration: Configuration, sections: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    """Return key, value and origin of each key of these sections, on one line each; what is secret is masked."""
    for section in sections:
        values = getattr(configuration, section.lower())
        for key in keys_of(SECTIONS[section]):
            yield key.path, _shown(key, values), configuration.origins[key.path]


def _shown(key: Key, values: Any) -> str:
    """The value as it takes effect, on one line."""
    value = getattr(values, key.field, None)
    if key.secret and value:
        return _MASK
    if value is None and values is not None and key.derived is not None:
        try:
            value = getattr(values, key.derived)
        except StartupError:  # no home: there is none
            return key.unset
    text = key.write(value)
    return text if text.isprintable() else ascii(text)


def _roles(configuration: Configuration) -> Iterator[Role]:
    """Whose file it is: it may be both's."""
    for role, sections in SECTIONS_OF.items():
        keys = (key for section in sections for key in keys_of(SECTIONS[section]))
        if any(configuration.origins[key.path] != "default" for key in keys):
            yield role


def _load_or_exit(
    role: Role,
    file: Path | None,
    environ: Mapping[str, str],
    check_ticket: Callable[[str], object] | None = None,
    read: Callable[[Path], bytes] = read_file,
) -> Configuration:
    try:
        return load(role, file=file, environ=environ, check_ticket=check_ticket, read=read)
    except ConfigError as exc:
        _exit_with(exc.problems)


def _exit_with(problems: Iterable[Problem]) -> NoReturn:
    for problem in problems:
        say(escape(str(problem)), err=True)
    raise typer.Exit(ExitCode.CONFIGURATION)
