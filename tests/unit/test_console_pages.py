"""The files of the console's pages: complete, as they came from others, in both languages, and with nothing that a strict policy refuses."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trionat.server.console
from trionat.server.events.event import KINDS, LEFT_OUT, left_out

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = Path(trionat.server.console.__file__).parent / "pages"
VENDOR = PAGES / "vendor"
OURS = sorted(file for file in PAGES.rglob("*.js") if VENDOR not in file.parents)
SOURCES = [file for file in OURS if file.parent.name != "languages"]

MADE_OF_PARTS = {
    "action.": "what was changed (`_ACTIONS` in server/console/trail.py, and the operations of the API)",
    "bound.": "what refuses (`Bound` in server/refusals.py)",
    "by.": "how somebody came who has changed something",
    "certificates.": "states of a certificate",
    "event.": "what an event says (`KINDS` in server/events/event.py)",
    "health.": "what a server needs",
    "log.": "levels",
    "menu.": "groups of the menu",
    "nodes.": "states of a node",
    "points.": "states of a point",
    "source.": "where a value is from",
    "tokens.": "scopes",
    "type.": "types of events",
    "types.": "kinds of them",
    "users.": "states of an account",
    "webhooks.": "states of a webhook",
    "worker.": "states of a worker",
}
"""Keys that are put together in the pages, so that no search finds them."""


def texts(code: str) -> dict[str, str]:
    source = (PAGES / "languages" / f"{code}.js").read_text(encoding="utf-8")
    values: dict[str, str] = json.loads(source.partition("export default")[2].rstrip().rstrip(";"))
    return values


def test_what_others_wrote_is_as_it_came() -> None:
    lines = (VENDOR / "hashes").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDOR.iterdir()
        if file.name != "hashes"
    }
    assert found == listed
    packages = {"htm", "lean-qr", "preact", "uplot"}
    assert {name.removesuffix(".LICENSE") for name in found if name.endswith("LICENSE")} == packages


def test_both_languages_say_the_same() -> None:
    english, chinese = texts("en"), texts("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert text.strip()
        assert chinese[key].strip()
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[key]))


def test_each_text_is_there_and_used() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    known = set(texts("en"))
    wanted = set(re.findall(r"\bt(?:Or)?\(\"([^\"]+)\"", source))
    assert not wanted - known
    literal = set(re.findall(r"\"([a-z_]+(?:\.\w+)?)\"", source))
    titles = {key for key in known if key.endswith(".title")}
    unused = {
        key
        for key in known - literal - titles
        if not key.startswith(tuple(MADE_OF_PARTS)) and not key.startswith("span.")
    }
    assert not unused


@pytest.mark.parametrize("code", ["en", "zh"])
def test_each_event_is_told_in_plain_words(code: str) -> None:
    told = texts(code)
    source = (PAGES / "screens" / "events.js").read_text(encoding="utf-8")
    for type_, make in {**KINDS, LEFT_OUT: left_out}.items():
        assert told[f"type.{type_}"]
        used = set(re.findall(r"\{(\w+)\}", told[f"event.{type_}"]))
        assert used <= set(inspect.signature(make).parameters), type_
        is_filtered = re.search(rf'\b"?{re.escape(type_)}"?: "', source)
        assert is_filtered or type_ == LEFT_OUT, f"the filter lacks {type_}"
    wanted = {f"event.{each}" for each in (*KINDS, LEFT_OUT)}
    assert {key for key in told if key.startswith("event.")} == wanted


def test_each_module_is_there_and_used() -> None:
    imported = {PAGES / "main.js"}
    for file in PAGES.rglob("*.js"):
        for found in re.finditer(
            r"(?:from ?|import ?\(?)\"(\.[^\"]+)\"", file.read_text(encoding="utf-8")
        ):
            target = (file.parent / found[1]).resolve()
            assert target.is_file(), f"{file.name} imports {found[1]}"
            imported.add(target)
    languages = {file for file in OURS if file.parent.name == "languages"}
    assert set(PAGES.rglob("*.js")) - imported - languages == set()


def forbidden() -> Iterator[tuple[str, str]]:
    yield r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", "a text could become HTML"
    yield r"\beval\(|new Function|setTimeout\(\s*[\"'`]", "the policy refuses it"
    yield r"\bstyle=(?!\$\{\{)", "the policy refuses it: give an object"
    yield r"\son[a-z]+=", "the policy refuses it"
    yield r"[\"'`(]https?://(?!\$)", "nothing is fetched from elsewhere"


@pytest.mark.parametrize(("pattern", "reason"), list(forbidden()))
def test_nothing_that_the_policy_refuses(pattern: str, reason: str) -> None:
    for file in (*SOURCES, PAGES / "index.html", PAGES / "style.css"):
        found = re.findall(pattern, file.read_text(encoding="utf-8"))
        assert not found, f"{file.name}: {found}: {reason}"
