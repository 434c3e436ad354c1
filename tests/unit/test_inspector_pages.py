"""The files of the inspector's page: complete, in both languages, and with nothing that a strict policy refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import trionat.client

PAGES = Path(trionat.client.__file__).parent / "inspector" / "pages"
SOURCES = sorted(PAGES.glob("*.js"))
START = (PAGES / "index.html").read_text(encoding="utf-8")


def texts(code: str) -> dict[str, str]:
    source = (PAGES / "languages" / f"{code}.js").read_text(encoding="utf-8")
    values: dict[str, str] = json.loads(source.partition("export default")[2].rstrip().rstrip(";"))
    return values


def test_both_languages_say_the_same() -> None:
    english, chinese = texts("en"), texts("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert text.strip()
        for part in (r"\{\w+\}", "`[^`]*`"):
            assert sorted(re.findall(part, text)) == sorted(re.findall(part, chinese[key])), key
        assert re.search("[\u4e00-\u9fff]", chinese[key]) or text in ("HAR", "HTTP"), key


def test_each_text_is_there_and_used() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in SOURCES)
    known = set(texts("en"))
    wanted = set(re.findall(r"\bt\(\"([^\"]+)\"", source))
    wanted |= set(re.findall(r"data-(?:text|label)=\"([^\"]+)\"", START))
    assert not wanted - known
    named = set(re.findall(r"\"([a-z_]+(?:\.\w+)?)\"", source))
    assert not {key for key in known - wanted - named if not key.startswith("tab.")}


def test_no_text_is_in_the_modules() -> None:
    """But for those in `api.js`, which are for a client that answers nonsense."""
    for file in SOURCES:
        source = file.read_text(encoding="utf-8")
        found = re.findall(
            r"\}, \"(?!WebSocket)([A-Z][a-z][^\"]*)\"|\"aria-label\": \"([^\"]+)\"", source
        )
        assert not found, f"{file.name}: {found}"


def test_each_module_is_there_and_used() -> None:
    imported = {PAGES / "main.js"}
    for file in SOURCES:
        for found in re.finditer(r"from \"(\.[^\"]+)\"", file.read_text(encoding="utf-8")):
            target = (file.parent / found[1]).resolve()
            assert target.is_file(), f"{file.name} imports {found[1]}"
            imported.add(target)
    assert set(SOURCES) == imported
    assert {file.stem for file in (PAGES / "languages").iterdir()} == {"en", "zh"}


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", "a text could become HTML"),
        (r"\beval\(|new Function|setTimeout\(\s*[\"'`]", "the policy refuses it"),
        (r"\bstyle=|\son[a-z]+=", "the policy refuses it"),
        (r"[\"'`(]https?://", "nothing is fetched from elsewhere"),
        (r"EventSource\(|\.cookie\b|credentials: \"(?!omit)", "it goes to all ports of the host"),
    ],
)
def test_nothing_that_lets_others_in(pattern: str, reason: str) -> None:
    for file in (*SOURCES, PAGES / "index.html", PAGES / "style.css"):
        found = re.findall(pattern, file.read_text(encoding="utf-8"))
        assert not found, f"{file.name}: {found}: {reason}"
