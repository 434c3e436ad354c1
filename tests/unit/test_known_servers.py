from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

import pytest

from trionat.address import TCPAddress
from trionat.client.native.identity import load_identity
from trionat.client.native.known_servers import KnownServers, check_fingerprint
from trionat.errors import IdentityError, StartupError
from trionat.fingerprint import format_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")

HERE, THERE, SIXTH = (
    TCPAddress("example.com", 8007),
    TCPAddress("example.com", 8008),
    TCPAddress("2001:db8::7", 8007),
)
ONE, TWO = bytes(range(32)), bytes(range(1, 33))


def test_nobody_is_known_at_first_and_looking_makes_nothing(tmp_path: Path) -> None:
    known = KnownServers.of(tmp_path / "state")
    assert known.lookup(HERE) is None
    assert not known.path.parent.exists()


def test_who_is_remembered_is_known_by_host_and_port(tmp_path: Path) -> None:
    KnownServers.of(tmp_path).remember(HERE, ONE)
    KnownServers.of(tmp_path).remember(SIXTH, TWO)
    known = KnownServers.of(tmp_path)
    assert known.lookup(HERE) == ONE
    assert known.lookup(TCPAddress("Example.COM", 8007)) == ONE
    assert known.lookup(SIXTH) == TWO
    assert known.lookup(THERE) is None
    assert known.path.read_text() == (
        f"example.com:8007 {format_fingerprint(ONE)}\n[2001:db8::7]:8007 {format_fingerprint(TWO)}\n"
    )


def test_what_is_remembered_anew_replaces_the_old_and_nothing_else(tmp_path: Path) -> None:
    known = KnownServers.of(tmp_path)
    known.path.write_text(
        f"# mine\n\nExample.com:8007 {ONE.hex(':')}\n  # of a friend\nexample.com:8008 {ONE.hex()}"
    )
    known.remember(HERE, TWO)
    assert known.lookup(HERE) == TWO
    assert known.lookup(THERE) == ONE
    assert known.path.read_text() == (
        f"# mine\n\n  # of a friend\nexample.com:8008 {ONE.hex()}\nexample.com:8007 {format_fingerprint(TWO)}\n"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("example.com:8007", "a line is HOST:PORT SHA256:…"),
        (
            f"exam\u200bple.com:8007 {ONE.hex()}",
            "there is an invisible character U+200B at position 5",
        ),
        (f"example.com:8007 {ONE.hex()} more", "a line is HOST:PORT SHA256:…"),
        (f"example.com {ONE.hex()}", "'example.com' has no port"),
        (
            f"example.com:8007 {ONE.hex()[1:]}",
            "a value of 63 characters is not a valid fingerprint: write SHA256: and 32 bytes",
        ),
        (f"known.example:1 {TWO.hex()}", "another fingerprint for known.example:1 than above"),
    ],
)
def test_a_damaged_line_is_told_by_its_number_and_left(
    tmp_path: Path, line: str, reason: str
) -> None:
    known = KnownServers.of(tmp_path)
    content = f"# mine\nknown.example:1 {ONE.hex()}\n{line}\n"
    known.path.write_text(content)
    for call in (partial(known.lookup, THERE), partial(known.remember, THERE, ONE)):
        with pytest.raises(StartupError) as caught:
            call()
        assert str(caught.value).startswith(f"{known.path}:3: {reason}")
        assert "\n" not in str(caught.value)
    assert known.path.read_text() == content


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    known = KnownServers.of(tmp_path)
    known.path.write_bytes(b"\xff\n")
    with pytest.raises(StartupError, match=r"known_servers:1: this is not UTF-8 text"):
        known.lookup(HERE)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_file_of_another_system_is_read_and_written_as_ours(
    tmp_path: Path, encoding: str
) -> None:
    known = KnownServers.of(tmp_path)
    known.path.write_bytes(f"# mine\r\n{HERE} {ONE.hex()} \r\n".encode(encoding))
    assert known.lookup(HERE) == ONE
    known.remember(THERE, TWO)
    assert known.lookup(HERE) == ONE
    assert known.path.read_bytes().startswith(b"# mine\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_an_identity_of_another_system_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "identity").write_bytes(f"{'ab' * 16}\r\n".encode(encoding))
    assert load_identity(tmp_path) == "ab" * 16


@posix
def test_both_files_are_for_the_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    before = os.umask(0)
    try:
        KnownServers.of(folder).remember(HERE, ONE)
        load_identity(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert files == dict.fromkeys(("known_servers", "known_servers.lock", "identity"), 0o600)


def test_the_right_server_passes() -> None:
    check_fingerprint(ONE, bytes(bytearray(ONE)), HERE)


def test_another_server_is_told_with_both_fingerprints_in_one_line() -> None:
    with pytest.raises(IdentityError) as caught:
        check_fingerprint(ONE, TWO, HERE)
    text = str(caught.value)
    assert text.startswith("WRONG SERVER at example.com:8007: ")
    assert f"shows {format_fingerprint(TWO)} " in text
    assert f"has to show {format_fingerprint(ONE)};" in text
    assert "\n" not in text
    for almost in (ONE[:-1] + b"\0", ONE[:-1], b""):
        with pytest.raises(IdentityError):
            check_fingerprint(ONE, almost, HERE)
