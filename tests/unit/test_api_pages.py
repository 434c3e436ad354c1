"""Lists of the API that come in pages."""

from __future__ import annotations

import json

import attrs
import pytest

from trionat.protocol.fields import to_json, write_json
from trionat.server.console.operation import Page, cut_page_behind
from trionat.server.console.problem import Code, Problem


def cut(queue: str, after: str | None) -> Page[str]:
    return cut_page_behind(queue, str, limit=2, after=after)


def test_a_queue_in_pages_shows_everybody_whoever_leaves_meanwhile() -> None:
    assert cut("abcde", None) == Page(("a", "b"), "b")
    assert cut("bcde", "b") == Page(("c", "d"), "d")
    assert cut("de", "d") == Page(("e",), None)
    assert cut("ab", None) == Page(("a", "b"), None)
    assert cut("", None) == Page((), None)


def test_who_has_left_is_no_place_to_go_on_from() -> None:
    with pytest.raises(Problem, match="begin with the first page") as caught:
        cut("acde", "b")
    assert (caught.value.code, caught.value.field) == (Code.CONFLICT, "after")


@attrs.frozen
class Leaf:
    name: str
    more: dict[str, int | None]


@attrs.frozen
class Tree:
    number: float
    leaves: tuple[Leaf, ...]
    none: None
    texts: tuple[str, ...]


@pytest.mark.parametrize(
    "value",
    [
        Tree(1.5, (Leaf("é\ud800", {"a": None}), Leaf("", {})), None, ()),
        Tree(0, (), None, ("a", "b")),
        [Leaf("x", {"b": 1})],
        {"plain": [1, {"2": 3}]},
        "text",
        None,
    ],
)
def test_json_by_pieces_is_the_same_json(value: object) -> None:
    whole = attrs.asdict(value) if isinstance(value, Tree | Leaf) else value
    if isinstance(value, list):
        whole = [attrs.asdict(each) for each in value]
    written = write_json(value, to_json)
    assert written == to_json(whole)
    assert json.loads(written) == json.loads(json.dumps(whole))
