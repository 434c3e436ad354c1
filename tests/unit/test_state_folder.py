from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from trionat.address import TCPAddress
from trionat.errors import StartupError
from trionat.server.state_folder import StateFolder, is_self_signed, lock_state, prepare_state
from trionat.store.private_file import create_private, write_private
from trionat.transport.certificate import fingerprint, first_certificate

if TYPE_CHECKING:
    from pathlib import Path


posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")

STARTER = """
import sys
from pathlib import Path
from trionat.server.state_folder import prepare_state

print("ready", flush=True)
sys.stdin.read(1)
state = prepare_state(Path(sys.argv[1]))
print(state.fingerprint.hex(), state.ticket_key.hex())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def loads(state: StateFolder) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(state.certificate_file, state.key_file)


def test_a_first_start_makes_everything_and_a_second_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    state = prepare_state(folder, names=["tunnel.example.com"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "server.crt",
        "server.key",
        "ticket.key",
    ]
    loads(state)
    text = state.certificate_file.read_text()
    assert state.fingerprint == fingerprint(first_certificate(text))
    names = x509.load_pem_x509_certificate(text.encode()).extensions
    assert "tunnel.example.com" in str(names.get_extension_for_class(x509.SubjectAlternativeName))
    assert len(state.ticket_key) == 32
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_state(folder) == state
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert prepare_state(tmp_path / "other") != state


@posix
def test_nobody_else_can_enter_or_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = prepare_state(tmp_path / "state")
        state.remember_address(TCPAddress("example.com", 8007))
    finally:
        os.umask(before)
    assert mode(state.folder) == 0o700
    assert {mode(path) for path in state.folder.iterdir()} == {0o600}


@posix
@pytest.mark.parametrize("name", ["server.key", "ticket.key"])
@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, name: str, open_mode: int) -> None:
    folder = tmp_path / "my state"
    prepare_state(folder)
    (folder / name).chmod(open_mode)
    with pytest.raises(StartupError) as caught:
        prepare_state(folder)
    assert str(caught.value) == (
        f"{folder / name}: others can read or change this key (mode {open_mode:04o}): run chmod 600 '{folder / name}'"
    )
    (folder / name).chmod(0o400)
    prepare_state(folder)


def test_the_secrets_are_not_shown(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    assert repr(state.ticket_key) not in repr(state)


def test_of_many_first_starts_at_once_all_agree(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        starters = [
            subprocess.Popen(
                [sys.executable, "-c", STARTER, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(6)
        ]
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline().strip() == b"ready"
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write(b"g")
            starter.stdin.flush()
        answers = {starter.communicate()[0] for starter in starters}
        assert len(answers) == 1
        state = prepare_state(folder)
        assert answers.pop().decode().split() == [state.fingerprint.hex(), state.ticket_key.hex()]
        loads(state)
        assert len(list(folder.iterdir())) == 3  # nothing temporary is left


def test_a_first_start_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    key = state.key_file.read_bytes()
    state.certificate_file.unlink()
    again = prepare_state(tmp_path)
    assert state.key_file.read_bytes() == key
    loads(again)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("server.key", None, "server.key: the key of server.crt is missing: restore it"),
        ("server.key", b"nonsense", "server.crt: it is damaged or not of server.key: restore both"),
        ("server.crt", b"nonsense", "server.crt: it is damaged or not of server.key"),
        ("server.crt", b"\xff", "server.crt: it is damaged"),
        ("ticket.key", b"short", "ticket.key: a ticket key is 32 bytes, not 5: delete it"),
    ],
)
def test_damage_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    prepare_state(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        write_private(tmp_path / name, content)
    with pytest.raises(StartupError) as caught:
        prepare_state(tmp_path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / ""))
    assert "\n" not in str(caught.value)


def test_a_key_that_is_none_is_told_before_a_certificate_is_made(tmp_path: Path) -> None:
    write_private(tmp_path / "server.key", b"nonsense")
    with pytest.raises(StartupError, match=r"server\.key: there is no private key in it"):
        prepare_state(tmp_path)
    assert not (tmp_path / "server.crt").exists()


def test_key_and_certificate_of_two_servers_are_refused(tmp_path: Path) -> None:
    one, two = prepare_state(tmp_path / "one"), prepare_state(tmp_path / "two")
    shutil.copy(two.certificate_file, one.certificate_file)
    with pytest.raises(StartupError, match="damaged or not of"):
        prepare_state(one.folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=r"file: cannot make the folder: File exists$"):
        prepare_state(tmp_path / "file")
    with pytest.raises(StartupError, match=r"sub: cannot make the folder: Not a directory$"):
        prepare_state(tmp_path / "file" / "sub")


def test_the_address_is_remembered(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    assert state.last_address() is None
    for address in (TCPAddress("example.com", 8007), TCPAddress("2001:db8::7", 1)):
        state.remember_address(address)
        assert prepare_state(tmp_path).last_address() == address
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "address").write_text("nonsense")
    with pytest.raises(StartupError, match=r"address: 'nonsense' has no port"):
        state.last_address()


def test_which_certificate_is_shown_is_remembered(tmp_path: Path) -> None:
    state = prepare_state(tmp_path, self_signed=False)
    assert is_self_signed(tmp_path)  # no server has run
    for self_signed in (False, True):
        state.remember_certificate(self_signed=self_signed)
        assert is_self_signed(tmp_path) is self_signed
    (tmp_path / "certificate").write_bytes(b"\xff")
    with pytest.raises(StartupError, match=r"certificate: .*: start the server once more$"):
        is_self_signed(tmp_path)


def test_a_folder_without_that_note_tells_by_its_certificate(tmp_path: Path) -> None:
    state = prepare_state(tmp_path)
    state.remember_address(TCPAddress("example.com", 8007))
    assert is_self_signed(tmp_path)
    state.certificate_file.unlink()
    with pytest.raises(StartupError, match="its certificate is not known: start it once more"):
        is_self_signed(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartupError, match=r"file: cannot write: No space left on device$"):
        write_private(path, b"new")
    with pytest.raises(StartupError):
        create_private(tmp_path / "other", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_file_is_created_once(tmp_path: Path) -> None:
    assert create_private(tmp_path / "file", b"first")
    assert not create_private(tmp_path / "file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_with_a_certificate_of_ones_own_no_other_is_made_or_looked_at(tmp_path: Path) -> None:
    (tmp_path / "server.crt").write_text("not looked at")
    state = prepare_state(tmp_path, self_signed=False)
    assert state.fingerprint == b""
    assert not state.key_file.exists()


LOCKER = """
import sys, time
from pathlib import Path
from trionat.server.state_folder import lock_state

held = lock_state(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_one_server_at_a_time_has_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with lock_state(folder):
        with pytest.raises(
            StartupError, match="another trionat serve runs on this state folder"
        ) as caught:
            lock_state(folder)
        assert str(caught.value).startswith(f"{folder}: ")
        lock_state(tmp_path / "other").close()
    lock_state(folder).close()
    if os.name == "posix":
        assert mode(folder) == 0o700
        assert mode(folder / "serve.lock") == 0o600


def test_the_lock_of_a_server_that_was_killed_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(StartupError):
            lock_state(tmp_path)
        process.kill()
    lock_state(tmp_path).close()


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "serve.lock").mkdir()
    with pytest.raises(StartupError, match=r"serve\.lock: cannot lock: Is a directory"):
        lock_state(tmp_path)
