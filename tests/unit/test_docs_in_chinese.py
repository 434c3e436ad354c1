"""The Chinese pages say nothing that the English ones do not: their commands, files and messages are those, letter by letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAIRS = {
    "README.zh-CN.md": "README.md",
    **{
        f"docs/zh-CN/{path.name}": f"docs/{path.name}"
        for path in sorted((ROOT / "docs/zh-CN").glob("*.md"))
    },
}
CHINESE = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_comment(line: str) -> str:
    """Return a line of a block without what it says to people behind `#`, and without the placeholders that people read."""
    return re.sub(r"\s+# .*$", "", line).strip()


@pytest.mark.parametrize("chinese", PAIRS)
def test_what_is_typed_and_shown_is_the_same(chinese: str) -> None:
    english = text(PAIRS[chinese])
    for block in re.findall(r"```[^\n]*\n(.*?)```", text(chinese), flags=re.DOTALL):
        for line in block.splitlines():
            plain = without_comment(line)
            assert plain in english or CHINESE.search(plain), plain


@pytest.mark.parametrize("chinese", PAIRS)
def test_each_message_and_word_is_in_the_english_page(chinese: str) -> None:
    english = " ".join(text(PAIRS[chinese]).split())
    prose = re.sub(r"```[^\n]*\n.*?```", "", text(chinese), flags=re.DOTALL)
    for word in re.findall(r"`([^`]+)`", prose):
        if not CHINESE.search(word):
            assert " ".join(word.split()) in english, word


@pytest.mark.parametrize("chinese", PAIRS)
def test_each_links_to_the_other_language(chinese: str) -> None:
    up = "" if "/" not in chinese else "../"
    assert f"[English]({up}{Path(PAIRS[chinese]).name})" in text(chinese)
