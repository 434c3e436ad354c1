"""`trionat help`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer

from trionat.cli.output import say


def _next_words(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return which words may come next, with what each does."""
    found = _find(context.find_root(), context.params.get("command") or ())
    commands: dict[str, Any] = {} if found is None else getattr(found.command, "commands", {})
    return [
        (name, each.get_short_help_str())
        for name, each in commands.items()
        if name.startswith(incomplete)
    ]


def _find(root: Any, words: Sequence[str]) -> Any:
    """Return the context of a command; None where there is no such command."""
    found = root
    for word in words:
        group = found.command
        inner = group.get_command(found, word) if hasattr(group, "get_command") else None
        if inner is None:
            return None
        found = inner.make_context(word, [], parent=found, resilient_parsing=True)
    return found


def help(  # noqa: A001 - the command's name
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...",
            help="Such as serve, or user add.",
            autocompletion=_next_words,
        ),
    ] = None,
    man: Annotated[
        bool, typer.Option("--man", help="Print the manual page, for man -l - or a file.")
    ] = False,
) -> None:
    """Show what a command does, and what it takes. Without one, which commands there are."""
    if man:
        from trionat.cli.manual import manual  # noqa: PLC0415 - seldom

        say(manual(cast("Any", context.find_root())), end="")
        return
    found = _find(context.find_root(), command or ())
    if found is None:
        context.fail(f"there is no command {' '.join(command or ())!r}: trionat help lists all")
    say(found.get_help())
