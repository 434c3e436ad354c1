"""YAML text to plain data with the line of every key and value.

Values stay text: what `60001:6001` or `00000000` means is for the key to say, not for the implicit types of YAML 1.1,
which reads both as other numbers. Knows nothing of the keys themselves.
"""

from __future__ import annotations

import attrs
import yaml

from trionat.errors import Problem
from trionat.text import decode_text

# Chosen, not measured: hundreds of times what a large configuration needs, and read in well under a second. They also
# bound what an alias bomb or an alias of itself can unfold to.
MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 16

_STANDARD_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "timestamp", "merge", "value", "seq", "map")
}
_NULL = "tag:yaml.org,2002:null"


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


class _TooMuchError(Exception):
    """The document unfolds beyond the bounds; `args[0]` is the line."""


@attrs.define(eq=False)
class _Walk:
    """One walk over a node graph, which aliases can make larger than its text, or endless."""

    where: str
    problems: list[Problem]
    values: int = 0

    def value(self, node: yaml.Node, path: str, depth: int) -> Value:
        line = node.start_mark.line + 1
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise _TooMuchError(line)
        if node.tag not in _STANDARD_TAGS:
            self.problems.append(
                Problem(
                    self.where, f"the tag {node.tag!r} means nothing here: remove it", path, line
                )
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = (
                self.value(item, f"{path}[{index}]", depth + 1)
                for index, item in enumerate(node.value)
            )
            return Sequence(tuple(items), line)
        return Scalar(node.value, line, empty=node.tag == _NULL)

    def mapping(self, node: yaml.MappingNode, path: str, depth: int) -> Mapping:
        entries: dict[str, tuple[Scalar, Value]] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(
                    Problem(self.where, "a key has to be a single word", path, line)
                )
                continue
            name = key_node.value
            key_path = f"{path}.{name}" if path else name
            value = self.value(value_node, key_path, depth + 1)
            if name in entries:
                reason = f"given twice: line {entries[name][0].line} has it already"
                self.problems.append(Problem(self.where, reason, key_path, line))
            else:
                entries[name] = Scalar(name, line), value
        return Mapping(tuple(entries.values()), node.start_mark.line + 1)


def read_document(data: bytes, where: str, problems: list[Problem]) -> Value:
    """Read one YAML document.

    Args:
        data: UTF-8, or UTF-16 that begins with a byte order mark; at most `MAX_BYTES`.
        where: What problems call the document.
        problems: Gets what is wrong, with lines.

    Returns:
        What the document holds; an empty mapping where it is empty or cannot be read.
    """
    nothing = Mapping((), 1)
    if len(data) > MAX_BYTES:
        problems.append(Problem(where, f"the file is longer than {MAX_BYTES} bytes"))
        return nothing
    try:
        text = decode_text(data)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        problems.append(Problem(where, "this is not UTF-8 text: save the file as UTF-8", line=line))
        return nothing
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None or node.tag == _NULL:
            return nothing
        return _Walk(where, problems).value(node, "", 0)
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        problems.append(
            Problem(where, f"the character {exc.character!r} is not allowed in YAML", line=line)
        )
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        reason = ", ".join(filter(None, (exc.context, exc.problem)))
        problems.append(
            Problem(where, f"this is not YAML: {reason}", line=mark.line + 1 if mark else None)
        )
    except _TooMuchError as exc:
        problems.append(
            Problem(
                where, "this holds too many values, or too deeply nested ones", line=exc.args[0]
            )
        )
    except RecursionError:
        # The composer calls itself for every level, before the walk can count them.
        problems.append(Problem(where, "this holds too deeply nested values"))
    return nothing
