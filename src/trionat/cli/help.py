"""`trionat help`."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from trionat.cli.output import say


def help(  # noqa: A001 - the command's name
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]...", help="Such as serve, or user add."),
    ] = None,
    man: Annotated[
        bool, typer.Option("--man", help="Print the manual page, for man -l - or a file.")
    ] = False,
) -> None:
    """Show what a command does, and what it takes. Without one, which commands there are."""
    found = cast("Any", context.find_root())
    if man:
        from trionat.cli.manual import manual  # noqa: PLC0415 - seldom

        say(manual(found), end="")
        return
    for word in command or ():
        group = found.command
        inner = group.get_command(found, word) if hasattr(group, "get_command") else None
        if inner is None:
            context.fail(f"there is no command {' '.join(command or ())!r}: trionat help lists all")
        found = inner.make_context(word, [], parent=found, resilient_parsing=True)
    say(found.get_help())
