"""What Typer says on its own (help, and complaints about a command line) goes out where everything else does.

So it is escaped, ends quietly where nobody reads, and shows no ticket that stands in a wrong place.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import import_module
from typing import Any, Final, NoReturn, TypeVar, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from trionat.cli.output import say
from trionat.text import is_ticket_like, mask_secrets

_WHOLE: Final = 1000
"""Characters, more than any first sentence has."""

Function = TypeVar("Function", bound=Callable[..., Any])


def as_typed(*names: str) -> Callable[[Function], Function]:
    """Have a command get these arguments as they were typed: texts, lists of texts, and None where one was not given.

    From 0.29 on Typer imports pydantic to make anything else of them, even of a text: 11 MiB, which whoever serves for a year would hold for a year.
    """

    def decorate(function: Function) -> Function:
        function.__dict__["as_typed"] = frozenset(names)
        return function

    return decorate


class _AsTyped:
    """What `as_typed` means for Typer's commands and groups. `process_value` and `get_help_option` are methods of Click's that may be overridden."""

    callback: Callable[..., Any] | None
    params: list[Any]

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        names: frozenset[str] = getattr(self.callback, "as_typed", frozenset())
        for parameter in self.params:
            if parameter.name in names:
                parameter.process_value = _as_typed
            if parameter.param_type_name == "argument":
                parameter.get_help_record = partial(
                    _by_metavar, parameter.get_help_record, parameter
                )

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence for the list of commands, whole: it is wrapped where it does not fit, and not cut at `limit`."""
        del limit
        return str(cast("Any", super()).get_short_help_str(_WHOLE))

    def get_help_option(self, ctx: Any) -> Any:
        """Return `--help`, which shows it where it is given."""
        option: Any = cast("Any", super()).get_help_option(ctx)

        def process_value(ctx: Any, value: Any) -> Any:
            return option.callback(ctx, option, bool(value))

        if option is not None:
            option.process_value = process_value
        return option


def _by_metavar(record: Callable[[Any], Any], parameter: Any, ctx: Any) -> Any:
    """Return what the help says of an argument, without its type of Python, which newer versions of Typer add."""
    found = record(ctx)
    return found and (parameter.metavar or str(parameter.name).upper(), found[1])


def _as_typed(_: object, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(cast("Sequence[str]", value)) or None
    return value


class _Command(_AsTyped, TyperCommand):
    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments; `--help` prints here."""
        with _said():
            return super().make_context(*args, **extra)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, these by topics where there are many."""
        from trionat.cli.topics import (  # noqa: PLC0415 - start time
            EXAMPLES,
            OTHER,
            TOPICS,
            rank,
            topic_of,
        )

        name = str(self.name)
        if name not in TOPICS:
            super().format_options(ctx, formatter)
            return
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        sections |= {topic: [] for topic in (*TOPICS[name], OTHER)}
        for parameter in sorted(self.get_params(ctx), key=lambda each: rank(name, each.opts)):
            if (record := parameter.get_help_record(ctx)) is not None:
                is_option = parameter.param_type_name == "option"
                topic = topic_of(name, parameter.opts) if is_option else "Arguments"
                sections[topic].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        with formatter.section("Examples"):
            for line, meaning in EXAMPLES[name]:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.write(f"{'':{formatter.current_indent}}    {meaning}\n")


class LaterCommand(_Command):
    """A command, or a group of them, whose module is imported when it is used: else each start would pay for all of them.

    `place` is its module, of the same name, and the function or the `App` in it; `help` is the first sentence of what that says.
    """

    def __init__(self, place: str, help: str) -> None:  # noqa: A002 (Typer's word for it)
        self.module, _, self.attribute = place.partition(":")
        super().__init__(self.module, help=help)

    def load(self) -> Any:
        """Import it, and return what Typer makes of it."""
        found = getattr(import_module(f"trionat.cli.{self.module}"), self.attribute)
        holder = App(help="")
        if isinstance(found, App):
            holder.add_typer(found, name=self.module)
        else:
            holder.command(self.module)(found)
        return get_group(holder).commands[self.module]

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments, as the command itself does."""
        return self.load().make_context(*args, **extra)


class Group(_AsTyped, TyperGroup):
    """Commands that belong together, as Typer makes it of an `App`."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the arguments; `--help` prints here."""
        with _said():
            return super().make_context(*args, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; where a ticket stands before or instead of one, `connect` was meant."""
        if args[0] not in self.commands and any(map(is_ticket_like, args)):
            ctx.fail("did you mean `trionat connect TICKET SERVICE`?")
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> NoReturn:
        """Run the command, and exit with its code."""
        code = 0
        if "_TRIONAT_COMPLETE" in os.environ:
            from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415

            completion_init()
        try:
            code = super().main(args, *more, **{**extra, "standalone_mode": False}) or 0
        except typer.Abort as abort:
            if isinstance(abort.__cause__, EOFError):
                # No Ctrl-D, which has no cause, but a bug, or a damaged installation.
                raise abort.__cause__ from None
            say("Aborted!", err=True)
            code = 1
        except Exception as error:
            # Those that show themselves are complaints; where Typer has their class is its own affair.
            show: Callable[[io.StringIO], None] | None = getattr(error, "show", None)
            if show is None:
                raise
            text = io.StringIO()
            show(text)
            # Typer puts the name of an error of pydantic before what its own types say.
            told = text.getvalue().replace(": Value error, ", ": ", 1)
            say(mask_secrets(told), err=True, end="")
            code = getattr(error, "exit_code", 2)
        sys.exit(code)


@contextmanager
def _said() -> Generator[None]:
    """Print, in the end, what is printed on standard output meanwhile."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            yield
    finally:
        if text.getvalue():
            say(text.getvalue(), end="")


class App(typer.Typer):
    """A group of commands."""

    def __init__(self, *, help: str, cls: type[Group] = Group) -> None:  # noqa: A002 (Typer's word for it)
        super().__init__(
            cls=cls,
            help=help,
            no_args_is_help=True,
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Make a function a command, as `typer.Typer.command` does."""
        settings.setdefault("cls", _Command)
        return super().command(name, **settings)
