"""What is asked for before it is imported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from trionat import libraries
from trionat.errors import StartupError
from trionat.libraries import CONSOLE, INSPECTOR, NAMES, require_libraries

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize(("extra", "names"), [("console", CONSOLE), ("names", NAMES)])
def test_each_library_of_an_extra_is_asked_for(extra: str, names: tuple[str, ...]) -> None:
    needed = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][extra]
    found = {re.split("[<>=]", each)[0].replace("-", "_") for each in needed}
    assert set(names) == found
    require_libraries("it", names, extra=extra)


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: name == "starlette" or None)
    with pytest.raises(StartupError) as raised:
        require_libraries("Server.ConsoleAddr", CONSOLE, extra="console")
    assert (
        str(raised.value)
        == "Server.ConsoleAddr needs anycorn and prometheus_client, not installed here: run pip install '.[console]' in the folder of trionat's source"
    )
    with pytest.raises(StartupError, match="--inspect needs anycorn, not installed"):
        require_libraries("--inspect", INSPECTOR, extra="console")
