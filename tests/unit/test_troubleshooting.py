"""docs/troubleshooting.md starts from messages: each that it quotes is one that the program can say.

What the program can say is read out of its source: each text in it, where `{…}` of an f-string stands for anything. A message is made of such texts, one in
the other, and of values: names, addresses, numbers. So each of its words has to be in one of them, or be a value.
"""

from __future__ import annotations

import ast
import errno
import os
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_layers import parsed
from trionat.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = ("docs/troubleshooting.md", "docs/zh-CN/troubleshooting.md")

Template = tuple[str, ...]
"""The fixed parts of a text, in their order."""

EXAMPLES = {"alice", "web", "nat", "anycorn"}
"""What accounts, groups, databases and libraries are called in the pages."""

BESIDE = {
    "self-signed certificate": "OpenSSL says so, and it is passed on",
    "CREATE command denied to user": "MariaDB and MySQL",
    "for table": "the same",
    "unknown key": "`unknown {what}`, where that is a word of three letters",
}
"""What is in messages and in no text of the source, or in too short a one, and why."""

_FEWEST = 4
"""Characters by which a text is recognized."""

_VALUE = re.compile(r".*[0-9./@_].*|[A-Z]{2,}|.*[a-z][A-Z].*|--?[a-z-]+|\W*|SHA256:", re.DOTALL)
_PAIR = re.compile(r" (\w+)=(?:'(.*?)'(?= \w+=|$)|(\S*))")
_COMMANDS = {command.module for command in COMMANDS}


@cache
def templates() -> list[Template]:
    """Return every text in the source but its docstrings."""
    found: set[Template] = set()
    for _, tree in parsed():
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
                found.add(tuple(map(str, parts)))
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in inner | docs
            ):
                found.add(tuple(re.split(r"\{[^{}]*\}", node.value)))  # for `str.format`
    texts = [*BESIDE, *map(os.strerror, errno.errorcode)]
    spoken = {tuple(part for part in each if re.search("[a-zA-Z]", part)) for each in found}
    telling = {
        each
        for each in spoken
        if len("".join(each)) >= _FEWEST
        and (len(each) == 1 or any(" " in part.strip() for part in each))
    }
    return sorted(telling.union((text,) for text in texts))


def strange_words(message: str) -> list[str]:
    """Return the words of a message that no text of the program has where they stand, and that are no value. `…` stands for whatever was left out."""
    covered = [False] * len(message)
    for template in templates():
        for start, end in places(template, message):
            covered[start:end] = [True] * (end - start)
    return [
        word[0]
        for word in re.finditer(r"[^\s…]+", message)
        if not all(covered[at] for at in range(*word.span()) if message[at].isalnum())
        and not is_value(word[0].strip("'\"(),;:."))
    ]


def places(template: Template, message: str) -> list[tuple[int, int]]:
    """Return where the parts of a template are in a message, in order and as whole words; nowhere, if one is missing and nothing was left out."""
    found: list[tuple[int, int]] = []
    at = 0
    for part in template:
        start = find(part, message, at)
        if start >= 0:
            at = start + len(part)
            found.append((start, at))
        elif "…" not in message:
            return []
        elif cut := cut_off(part, message, at):
            found.append(cut)
            at = cut[1]
    return found


def find(part: str, message: str, at: int) -> int:
    """Return where a part begins from there on, as whole words; -1 where it is not there."""
    while (at := message.find(part, at)) >= 0:
        before, after = message[at - 1 : at], message[at + len(part) :][:1]
        if not (before.isalnum() and part[0].isalnum()) and not (
            after.isalnum() and part[-1].isalnum()
        ):
            return at
        at += 1
    return -1


def cut_off(part: str, message: str, at: int) -> tuple[int, int] | None:
    """Return where the beginning of a part is before something that was left out, or its end behind it, or some of it in between: two words at least."""
    for piece in re.finditer(r"[^… ][^…]*[^… ]", message[at:]):
        begin, end = at + piece.start(), at + piece.end()
        after_gap, before_gap = "…" in message[:begin], "…" in message[end:]
        starts = [begin + word.start() for word in re.finditer(r"\S+", piece[0])]
        for start in starts if before_gap else ():
            kept = message[start:end]
            whole = part.lstrip(" ,;:").startswith(kept) or (
                start == begin and after_gap and kept in part
            )
            if whole and " " in kept:
                return start, end
        for stop in (start - 1 for start in starts[:0:-1]) if after_gap else ():
            if " " in message[begin:stop] and part.endswith(message[begin:stop]):
                return begin, stop
        if after_gap and " " in piece[0] and part.endswith(piece[0]):
            return begin, end
    return None


def is_value(word: str) -> bool:
    return bool(_VALUE.fullmatch(word)) or word in EXAMPLES


def sayings(page: str) -> list[str]:
    """Return the messages that a page quotes, without what is before and around them; of a line of the log each part."""
    found: list[str] = []
    for double, single in re.findall(r"``(.+?)``|`([^`\n]+)`", page):
        text = (double or single).removeprefix("trionat: ")
        words = text.split()
        first = words[1] if words[0] == "trionat" and len(words) > 1 else words[0]
        if len(words) < 3 or first in _COMMANDS or text.startswith(("-", "TRIONAT_", "pip ")):
            continue  # what is typed
        event, values = _PAIR.sub("", f" {text}").strip(), _PAIR.findall(f" {text}")
        found += [event.strip("'"), *(value for _, value, _ in values)]
    return [saying for saying in found if len(saying.split()) > 2]


@pytest.mark.parametrize("page", PAGES)
def test_the_program_can_say_what_is_quoted(page: str) -> None:
    quoted = sayings((ROOT / page).read_text(encoding="utf-8"))
    assert len(quoted) > 20
    strange = {saying: words for saying in quoted if (words := strange_words(saying))}
    assert strange == {}


@pytest.mark.parametrize(
    "message",
    [
        "visit port 60001 is taken",
        "the account alice is expired",
        "descriptors are too few for what is configured: raise a limit …",
    ],
)
def test_what_it_does_not_say_is_found(message: str) -> None:
    assert strange_words(message)


def test_a_word_that_is_missing_is_found() -> None:
    """Where a word in the middle is gone from a message, what is left is none; hardly ever it is another one."""
    quoted = [
        saying
        for saying in sayings((ROOT / PAGES[0]).read_text(encoding="utf-8"))
        if "…" not in saying
    ]
    missed: list[str] = []
    for saying in quoted:
        words = saying.split()
        fixed = [
            number for number, word in enumerate(words) if word.isalpha() and not is_value(word)
        ]
        middle = fixed[len(fixed) // 2]
        changed = " ".join(words[:middle] + words[middle + 1 :])
        if not strange_words(changed):
            missed.append(changed)
    assert len(missed) < len(quoted) / 10, missed
