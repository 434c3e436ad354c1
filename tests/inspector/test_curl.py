"""What is copied as curl means in a shell what the visitor has said, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trionat.client.inspector.curl import as_curl
from trionat.client.inspector.http_view import raw_body, read_conversation

if TYPE_CHECKING:
    from pathlib import Path

SPY = """#!{python} -IS
import json, os, sys
with open({told!r}, "w") as file:
    words = [list(os.fsencode(word)) for word in sys.argv[1:]]
    json.dump([words, list(sys.stdin.buffer.read()) if "@-" in sys.argv else None], file)
"""

URL = "http://shop.example/a"


class Shell:
    """A POSIX shell in which curl only tells what it was told."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder, self.shell = folder, shell
        self.told = folder / "told"
        spy = folder / "curl"
        spy.write_text(SPY.format(python=sys.executable, told=str(self.told)))
        spy.chmod(0o755)

    def run(self, command: str) -> tuple[list[bytes], bytes | None]:
        """Return the words that curl got, and its standard input."""
        self.told.unlink(missing_ok=True)
        before = set(self.folder.iterdir())
        result = subprocess.run(
            [self.shell],
            input=command.encode(),
            capture_output=True,
            cwd=self.folder,
            env={"PATH": f"{self.folder}:{os.environ['PATH']}"},
            timeout=20,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b""), command
        assert set(self.folder.iterdir()) - before == {self.told}, "something else was run"
        words, data = json.loads(self.told.read_text())
        return [bytes(word) for word in words], None if data is None else bytes(data)


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(tmp_path, request.param)


def command_of(received: bytes, url: str = URL) -> str:
    request = read_conversation(received, b"").exchanges[0].request
    return as_curl(request, raw_body(received, request), url=url)


def after(words: list[bytes], flag: bytes) -> list[bytes]:
    return [words[at + 1] for at, word in enumerate(words) if word == flag]


def body_of(words: list[bytes], data: bytes | None) -> bytes:
    """Return what curl would send."""
    if data is None:
        (said,) = after(words, b"--data-raw")
        return said
    assert after(words, b"--data-binary") == [b"@-"]
    return data


def test_a_request(shell: Shell) -> None:
    received = (
        b"PUT /a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-Empty:\r\n"
        b"Content-Type: text/plain\r\nAccept-Encoding: gzip\r\nContent-Length: 9\r\n\r\nit's \xc3\xa4 \n"
    )
    words, data = shell.run(command_of(received))
    assert data is None
    assert after(words, b"--request") == [b"PUT"]
    assert after(words, b"--header") == [
        b"X-Empty;",
        b"Content-Type: text/plain",
        b"Accept-Encoding: gzip",
    ]
    assert after(words, b"--data-raw") == [b"it's \xc3\xa4 \n"]
    assert b"--compressed" in words
    assert words[-1] == URL.encode()


NASTY = [
    b"$(touch pwned)",
    b"`touch pwned`",
    b"'; touch pwned; '",
    b'"; touch pwned; "',
    b"\\'; touch pwned #",
    b"a\x1b]0;title\x07b",
    b"${HOME} $HOME ~ * ? [a-z] !! %s %b \\n \\0101",
    b"\xe2\x80\xaeevil",
    b"\xff\xfe",
    b"--output pwned",
    b"@/etc/passwd",
    b"a\tb",
    b"a\rb",
    b"&& touch pwned",
    b"# comment",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_of_it_is_obeyed(shell: Shell, nasty: bytes) -> None:
    value = nasty.strip()
    received = b"POST /a HTTP/1.1\r\nX-Evil: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        nasty,
        len(nasty),
        nasty,
    )
    words, data = shell.run(command_of(received))
    assert after(words, b"--header")[0] == b"X-Evil: " + value
    assert body_of(words, data) == nasty


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    value=st.binary(max_size=30).filter(lambda v: not set(v) & {0, 10, 13}),
    body=st.binary(min_size=1, max_size=60),
)
def test_any_bytes(shell: Shell, value: bytes, body: bytes) -> None:
    received = b"POST / HTTP/1.1\r\nX: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        value,
        len(body),
        body,
    )
    words, data = shell.run(command_of(received))
    stripped = value.strip(b" \t")
    assert after(words, b"--header")[0] == (b"X: " + stripped if stripped else b"X;")
    assert body_of(words, data) == body


def test_a_method_or_a_name_that_looks_like_a_flag(shell: Shell) -> None:
    words, _ = shell.run(command_of(b"-o HTTP/1.1 HTTP/1.1\r\n@file: x\r\n-H: y\r\n\r\n"))
    assert after(words, b"--request") == [b"-o"]
    assert after(words, b"--header") == [b"-H: y"]
    words, _ = shell.run(command_of(b"HEAD / HTTP/1.1\r\n\r\n"))
    assert b"--head" in words
