"""One source's texts, lists and mappings to the values that the keys' kinds make of them."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from trionat.config.document import Mapping, Scalar, Sequence, Value
from trionat.config.key import Key, keys_of
from trionat.errors import Problem
from trionat.text import invisible_in, strip_line_end, tidy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


_HEAD = re.compile(r"(?P<name>\w+)\s*(?P<mark>[:=])?.*", re.DOTALL)
"""The name of a key, and what may stand behind it where no blank follows the colon."""

_LISTED: Final = 12
"""Known names that a line about an unknown one has at most: a section such as Database; Server has some seventy."""


@attrs.define(eq=False)
class Reader:
    """Reads values and keeps account of what is wrong: nothing is raised, so that one mistake does not hide the next."""

    where: str
    problems: list[Problem]

    def fail(self, reason: str, path: str = "", line: int | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(self.where, reason, path, line))

    def fail_unknown(self, what: str, name: Scalar, known: Collection[str], path: str = "") -> None:
        """Add that a name of a file is unknown. Where its value stuck to it, that is not shown: it may be a password."""
        head = _HEAD.match(name.text)
        if head is not None and (head["mark"] or head["name"] in known):
            reason = f"the value has to be apart from the name: write {head['name']}: VALUE"
            self.fail(reason, f"{path}{head['name']}", name.line)
        elif (found := invisible_in(name.text)) is not None:
            self.fail(f"this name has {found}: type it again", f"{path}{name.text}", name.line)
        else:
            self.fail(unknown(what, name.text, known), f"{path}{name.text}", name.line)

    def known(
        self, keys: Iterable[Key], mapping: Mapping, path: str
    ) -> Iterator[tuple[Key, Scalar, Value]]:
        """The entries whose key is known and whose value is not null; unknown keys are problems."""
        by_name = {key.name: key for key in keys}
        for name, value in mapping.entries:
            if name.text not in by_name:
                self.fail_unknown("key", name, by_name, f"{path}.")
            elif not (isinstance(value, Scalar) and value.empty):
                yield by_name[name.text], name, value

    def read(self, key: Key, value: Value, path: str) -> Any:
        """Read the value of a key; None and a problem where it is wrong."""
        if not key.many:
            return self._scalar(key, value, path)
        several = isinstance(value, Sequence)
        found: list[Any] = []
        for index, item in enumerate(value.items if isinstance(value, Sequence) else (value,)):
            item_path = f"{path}[{index}]" if several else path
            if key.item is not None and isinstance(item, Mapping):
                found.extend(self._item(key.item, item, item_path))
            elif not isinstance(item, Scalar) or item.empty:
                self.fail(f"has to be {key.kind.words}", item_path, item.line)
            else:
                for part in _parts(key, item.text):
                    found.extend(self._scalar(key, attrs.evolve(item, text=part), item_path) or ())
        return tuple(found)

    def _item(self, owner: type[Any], mapping: Mapping, path: str) -> Iterator[Any]:
        """Build an entry that is written as a mapping, unless it is wrong."""
        so_far = len(self.problems)
        keys = keys_of(owner)
        fields = {
            key.field: self.read(key, value, f"{path}.{key.name}")
            for key, _, value in self.known(keys, mapping, path)
        }
        for key in keys:
            if key.required and key.field not in fields:
                self.fail(f"lacks {key.name}: {key.meaning}", path, mapping.line)
        if len(self.problems) == so_far:
            yield owner(**fields)

    def _scalar(self, key: Key, value: Value, path: str) -> Any:
        if not isinstance(value, Scalar):
            self.fail(f"has to be a single value: {key.kind.words}", path, value.line)
            return None
        try:
            return key.kind.read(strip_line_end(value.text) if key.secret else tidy(value.text))
        except ValueError as exc:
            reason = f"is no {key.kind.words} in UTF-8" if key.secret else str(exc)
            self.fail(reason, path, value.line)
            return None


def _parts(key: Key, text: str) -> list[str]:
    """Return what one text says of a key with many values. A password may have a comma in it, but no line end."""
    return strip_line_end(text).split("\n") if key.secret else text.split(",")


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Say that a name is unknown, and which known one is nearest, or which there are, unless they are many."""
    if (near := nearest(name, known)) is not None:
        return f"unknown {what}: did you mean {near}?"
    if len(known) > _LISTED:
        return f"unknown {what}: docs/configuration.md lists all that there are"
    return f"unknown {what}: known here are {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return which of the known names is meant by an unknown one; None where none is near. Case, `-` and `_` make no distance."""
    folded = {_fold(each): each for each in known}
    near = difflib.get_close_matches(_fold(name), folded, n=1)
    return folded[near[0]] if near else None


def _fold(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
