"""YAML text to plain data with the line of every key and value.

Values stay text: what `60001:6001` or `00000000` means is for the key to say, not for the implicit types of YAML 1.1,
which reads both as other numbers. Knows nothing of the keys themselves. Imported where there is a file: many servers have none.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
import yaml

from trionat.config.document import Mapping, Scalar, Sequence, Value
from trionat.errors import Problem
from trionat.text import NotTextError, decode_text

# Chosen, not measured: hundreds of times what a large configuration needs, and read in well under a second. They also
# bound what an alias bomb or an alias of itself can unfold to.
MAX_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 16

_STANDARD_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "timestamp", "merge", "value", "seq", "map")
}
_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"

# What the parser quotes of a document, but for single characters and names of its own such as '<block end>': that of an alias or
# of a tag may be a password without quotes.
_QUOTED = re.compile(r"""(['"])[^'"<\\][^'"]+\1""")

_EMPTY_ANCHOR = "a text that begins with & is the name of an anchor, and there is no value behind it: put it in quotes"


class _Loader(yaml.SafeLoader):
    """Notes the lines of anchors that stand before nothing: `&secret` looks like a value, and would count as none."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.empty_anchors: list[int] = []

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Compose a node as ever."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if anchor is not None and node.value == "" and node.style is None:
            self.empty_anchors.append(node.start_mark.line + 1)
        return node


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
                    self.where,
                    "a tag, which begins with !, means nothing here: remove it, or put the value in quotes",
                    path,
                    line,
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
            if key_node.tag == _MERGE:
                reason = "keys are not merged here: write each of them out"
                self.problems.append(Problem(self.where, reason, key_path, line))
                continue
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
        data: At most `MAX_BYTES`; `trionat.text.decode_text` says in which encodings.
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
    except NotTextError as exc:
        problems.append(Problem(where, str(exc), line=exc.line))
        return nothing
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problems += [Problem(where, _EMPTY_ANCHOR, line=line) for line in loader.empty_anchors]
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
        reason = _QUOTED.sub("…", ", ".join(filter(None, (exc.context, exc.problem))))
        if "undefined alias" in reason:
            reason += ": put a text that begins with * in quotes"
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
