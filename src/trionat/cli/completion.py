"""`trionat completion`: what a shell needs to complete commands and flags."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from trionat.cli.output import say


class Shell(StrEnum):
    """The shells that Typer knows."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish|powershell")],
) -> None:
    """Print a script by which your shell completes trionat's words.

    bash: trionat completion bash >> ~/.bashrc. zsh: trionat completion zsh > a folder of $fpath/_trionat. fish: trionat completion fish >
    ~/.config/fish/completions/trionat.fish. PowerShell: trionat completion powershell >> $PROFILE.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # noqa: PLC0415

    say(
        get_completion_script(
            prog_name="trionat", complete_var="_TRIONAT_COMPLETE", shell=shell.value
        )
    )
