"""docs/library.md says what the library is: its reference is that of the docstrings, and its programs run."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import trionat
import trionat.testing
from tests import library_page
from tests.library_page import BEGIN, CHAPTERS, FIXTURES, METHODS, PAGE, find

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BLOCKS = [
    textwrap.dedent(block)
    for block in re.findall(
        r"```python\n(.*?)```", PAGE.read_text("utf-8").partition(BEGIN)[0], flags=re.DOTALL
    )
]
PORTAL = next(block for block in BLOCKS if "start_blocking_portal" in block)


def public(package: Any) -> set[str]:
    return {*package.__all__} - {"__version__"}


def test_the_reference_is_up_to_date() -> None:
    written = PAGE.read_text("utf-8").partition(BEGIN)[2]
    assert written == library_page.reference(), "run python -m tests.library_page"


def test_every_public_name_is_in_it_once() -> None:
    names = [name for chapter in CHAPTERS.values() for name in chapter if name not in FIXTURES]
    assert sorted(names) == sorted({*public(trionat), *public(trionat.testing)})


@pytest.mark.parametrize("package", [trionat, trionat.testing])
def test_checkers_see_the_same_names(package: Any) -> None:
    source = Path(str(package.__file__)).read_text("utf-8")
    told = re.findall(r"^    from \S+ import (\w+) as \1$", source, flags=re.MULTILINE)
    assert sorted(told) == sorted(public(package))
    assert public(package) <= {*dir(package)}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def functions() -> Iterator[Any]:
    """Go through all that can be called, and is not a class."""
    for chapter, names in CHAPTERS.items():
        where = "trionat.testing" if chapter == "For tests" else "trionat"
        for name in names:
            thing = find(where, name)
            if inspect.isfunction(thing):
                yield pytest.param(thing, id=name)
            for method in METHODS.get(name, ()):
                if inspect.isfunction(value := inspect.getattr_static(thing, method)):
                    yield pytest.param(value, id=f"{name}.{method}")


@pytest.mark.parametrize("function", list(functions()))
def test_what_waits_says_what_cancelling_does(function: Any) -> None:
    plain = inspect.unwrap(function)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        assert re.search("[Cc]ancel", inspect.getdoc(function) or "")


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_its_programs_are_parts_of_those_that_are_run(block: str) -> None:
    run = [ROOT / "README.md", *(ROOT / "examples").glob("*.py")]
    lines = block.strip("\n")
    assert block == PORTAL or any(
        lines in text or textwrap.indent(lines, "    ") in text
        for text in (path.read_text("utf-8") for path in run)
    )


def test_the_portal_does_it_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    any_port = trionat.TCPAddress("127.0.0.1", 0)
    server = trionat.ServerConfig(
        controller_addr=any_port, tunnel_addr=any_port, visit_port=(0,), drain_grace=0
    )
    with trionat.TrioThread(trionat.open_server(server), timeout=30) as ready:
        config = trionat.ClientConfig(
            ticket=ready.ticket, services=(trionat.parse_service("9"),), drain_grace=0
        )
        exec(PORTAL, {"trionat": trionat, "config": config})
        assert capsys.readouterr().out == f"127.0.0.1:{ready.visit_ports[0]}\n"
