"""docs/reliability.md names tests and keys that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from trionat.config.sections import KEYS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, f"{file} has no {name}"


def test_every_key_that_is_named_is_there() -> None:
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z]+[a-z]*)+)`", PAGE))
    assert "PeerTimeout" in named
    assert named <= {path.rpartition(".")[2] for path in KEYS}
