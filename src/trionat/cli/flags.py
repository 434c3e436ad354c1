"""Command-line flags from the table of keys, so that file, environment and flags can never differ in what they offer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from trionat.cli.command_line import as_typed
from trionat.config.key import Key, keys_of
from trionat.config.values import BOOLEAN

Flags: TypeAlias = dict[str, str | bool | list[str] | None]
"""What was given on the command line, by key path such as `Server.Name`; None where it was not given."""


_CHOICES: Final = re.compile(r"([A-Za-z0-9-]+, )*[A-Za-z0-9-]+ or [A-Za-z0-9-]+")
"""How a kind says that it is one of a few words."""

_METAVARS: Final = {
    "HOST or HOST:PORT": "HOST[:PORT]",
    "HOST:PORT": "HOST:PORT",
    "USER:PASSWORD": "USER:PASSWORD",
    "SHA256:": "SHA256:…",
    "a path": "PATH",
    "a host": "HOST",
    "a domain": "DOMAIN",
    "a port": "PORT",
    "ports": "PORTS",
    "addresses and networks": "NETWORK",
    "seconds": "SECONDS",
    "a whole number": "NUMBER",
    "a number": "NUMBER",
}
"""By how the words of a kind begin."""


def with_flags(*sections: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each key of these sections; it gets all of them as its argument `flags`.

    A key that is true or false and false by default becomes a bare flag (`--once`); one that is true by default takes the
    word (`--start-auth false`), as the Go program's do.
    """
    keys = {
        f"{section.section}_{key.field}": key  # two sections may have one field
        for section in sections
        for key in keys_of(section)
        if (key.flag or "").startswith("--")
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @as_typed(*keys, "arguments", "config")
        def wrapper(**given: Any) -> None:
            flags: Flags = {key.path: flag_text(given.pop(name)) for name, key in keys.items()}
            if given.get("config") is not None:
                given["config"] = Path(given["config"])
            command(flags=flags, **given)

        own = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.name != "flags"
        ]
        parameters = [*own, *(_parameter(name, key) for name, key in keys.items())]
        wrapper.__doc__ = command.__doc__
        wrapper.__name__ = command.__name__
        # Typer reads both.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _parameter(name: str, key: Key) -> inspect.Parameter:
    names = [f"-{key.letter}"] * bool(key.letter) + [key.flag or "", *key.aliases]
    default = f"default: {key.write(key.default)}"
    if key.kind is BOOLEAN and key.default is False:
        option = typer.Option(*names, help=key.meaning, show_default=False)
        kind: Any = Annotated[bool, option]
        value: object = False
    else:
        option = typer.Option(
            *names, help=f"{key.help}; {default}", metavar=_metavar(key), show_default=False
        )
        kind = Annotated[list[str] | None, option] if key.many else Annotated[str | None, option]
        value = None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)


def _metavar(key: Key) -> str:
    """Return a word for what a flag takes; its help says it in full."""
    words = key.kind.words
    if key.kind is BOOLEAN:
        return "true|false"
    choices = _CHOICES.fullmatch(words)
    if choices is not None:
        return words.replace(", ", "|").replace(" or ", "|")
    for beginning, word in _METAVARS.items():
        if words.startswith(beginning):
            return word
    return "TEXT"


def flag_text(value: Any) -> str | bool | list[str] | None:
    """A bare flag that was not given is None: it must not beat the file's `true`."""
    return None if value is False or value == [] else value
