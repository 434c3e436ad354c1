"""What a source of configuration holds: plain data, with the line of every key and value; `yaml_text` reads it out of a file."""

from __future__ import annotations

import attrs


@attrs.frozen
class Scalar:
    """One value as it is written; `line` counts from 1 and is None outside files. An `empty` one is null or nothing."""

    text: str
    line: int | None = None
    empty: bool = False


@attrs.frozen
class Sequence:
    """A list."""

    items: tuple[Value, ...]
    line: int | None = None


@attrs.frozen
class Mapping:
    """Keys and their values, in the order of the file; no key is there twice."""

    entries: tuple[tuple[Scalar, Value], ...]
    line: int | None = None


Value = Scalar | Sequence | Mapping
