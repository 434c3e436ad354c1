from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionat.config.document import Mapping, Scalar, Sequence, Value
from trionat.config.yaml_text import MAX_BYTES, read_document

if TYPE_CHECKING:
    from trionat.errors import Problem


def read(text: str | bytes) -> tuple[Value, list[str]]:
    problems: list[Problem] = []
    data = text.encode() if isinstance(text, str) else text
    value = read_document(data, "f.yml", problems)
    return value, [str(problem) for problem in problems]


def test_values_stay_text_and_know_their_lines() -> None:
    value, problems = read("a: 00000000\nb:\n  - 6379:6001\n  - '~'\nc: ~\nd:\ne: null\n")
    assert problems == []
    assert value == Mapping(
        (
            (Scalar("a", 1), Scalar("00000000", 1)),
            (Scalar("b", 2), Sequence((Scalar("6379:6001", 3), Scalar("~", 4)), 3)),
            (Scalar("c", 5), Scalar("~", 5, empty=True)),
            (Scalar("d", 6), Scalar("", 6, empty=True)),
            (Scalar("e", 7), Scalar("null", 7, empty=True)),
        ),
        1,
    )


def test_aliases_are_followed() -> None:
    value, problems = read("a: &x [1]\nb: *x\n")
    assert problems == []
    assert isinstance(value, Mapping)
    assert value.entries[0][1] == value.entries[1][1]


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff", "---\n", "~"])
def test_an_empty_document_is_an_empty_mapping(text: str) -> None:
    value, problems = read(text)
    assert problems == []
    assert value == Mapping((), 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yml:4: b.c: given twice: line 3 has it already"),
        ("a: b: c\n", "f.yml:1: this is not YAML: mapping values are not allowed here"),
        (
            "a:\n\tb: 1\n",
            "f.yml:2: this is not YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        (
            "a: 1\nb: *nope\n",
            "f.yml:2: this is not YAML: found undefined alias …: put a text that begins with * in quotes",
        ),
        (
            "a: 1\nb: &nope\nc: 1\n",
            "f.yml:2: a text that begins with & is the name of an anchor, and there is no value behind it: put it in quotes",
        ),
        ("a: 1\nb: \x01\n", "f.yml:2: the character 1 is not allowed in YAML"),
        (
            "a: 1\nb: 2\n".encode("utf-16-le"),
            "f.yml:1: there is a zero byte, which no text has: save the file as UTF-8",
        ),
        (
            "a: 1\r\nb: ü\r\n".encode("latin-1"),
            "f.yml:2: this is not UTF-8 text: save the file as UTF-8",
        ),
        (
            "a: 1\n---\nb: 1\n",
            "f.yml:2: this is not YAML: expected a single document in the stream, but found another document",
        ),
        (
            "a: 1\nb: \0\n",
            "f.yml:2: there is a zero byte, which no text has: save the file as UTF-8",
        ),
        (b"a: 1\nb: \xff\n", "f.yml:2: this is not UTF-8 text: save the file as UTF-8"),
        ("a: 1\n[b]: 1\n", "f.yml:2: a key has to be a single word"),
        (
            "a: !!python/object/apply:os.system [x]\n",
            "f.yml:1: a: a tag, which begins with !, means nothing here: remove it, or put the value in quotes",
        ),
        ("a: 1\nb: &x\n  - *x\n", "f.yml:2: this holds too many values, or too deeply nested ones"),
        ("[" * 5000, "f.yml: this holds too deeply nested values"),
        ("#" * (MAX_BYTES + 1), f"f.yml: the file is longer than {MAX_BYTES} bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_wrong_is_told_with_its_line(text: str | bytes, problem: str) -> None:
    assert read(text)[1] == [problem]


@pytest.mark.parametrize(
    "data",
    [
        "a: b\nc: d\n".encode("utf-16"),
        b"\xfe\xff" + "a: b\nc: d\n".encode("utf-16-be"),
        b"\xef\xbb\xbfa: b\r\nc: d\r\n",
        b"a: b\rc: d\r",
    ],
)
def test_files_of_other_systems_are_read(data: bytes) -> None:
    assert read(data) == read("a: b\nc: d\n")


@pytest.mark.parametrize("secret", ["&hunter2", "*hunter2", "!hunter2", "!hunter2!x", "{hunter2: 1", "'hunter2"])  # fmt: skip
def test_no_problem_shows_what_may_be_a_password(secret: str) -> None:
    _, problems = read(f"Auth:\n  Password: {secret}\n")
    assert problems
    assert "hunter2" not in "".join(problems)


def test_an_anchor_of_a_value_is_one() -> None:
    assert read("a: &x ''\nb: *x\n")[1] == []


def test_an_alias_bomb_is_bounded() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
    )
    started = time.monotonic()
    assert read(bomb)[1][0].endswith("this holds too many values, or too deeply nested ones")
    assert time.monotonic() - started < 5


@settings(deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.text(alphabet="ab:-[]{}&*!|>'\"#\n \t?,%@~", max_size=80).map(str.encode)
)
def test_any_bytes_are_a_value_or_problems(data: bytes) -> None:
    value, problems = read(data)
    assert problems or isinstance(value, Scalar | Sequence | Mapping)
    assert all(problem.isprintable() for problem in problems)
