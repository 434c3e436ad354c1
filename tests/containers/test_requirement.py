"""No test of this folder is skipped in `nox -s containers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers.requirement import give_up


def test_only_there_it_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no engine"):
        give_up("no engine")
    monkeypatch.setenv("CONTAINERS", "1")
    with pytest.raises(RuntimeError, match="no engine"):
        give_up("no engine")


def test_nothing_else_skips() -> None:
    here = Path(__file__)
    skipping = {
        file.name
        for file in here.parent.glob("*.py")
        if file != here
        and any(word in file.read_text() for word in ("pytest.skip", "skipif", "importorskip"))
    }
    assert skipping == {"requirement.py"}
