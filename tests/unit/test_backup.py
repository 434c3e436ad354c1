"""Backups of a state folder, and what a restored one is, as a person at the command line sees them."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import pty
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.unit.commands import Trionat
from trionat.backup import collection, restoration
from trionat.backup.archive import Archive
from trionat.backup.contents import is_kept
from trionat.backup.manifest import NAME, BackupError, Manifest
from trionat.client.native.identity import load_identity
from trionat.client.native.known_servers import KnownServers
from trionat.errors import StartupError
from trionat.server.events.audit import read_audit
from trionat.server.state_folder import database_file, lock_state, prepare_state
from trionat.store.backend import open_store
from trionat.store.journal import Journal, load_journal, save_journal
from trionat.store.sqlite_file import copy_file, open_file
from trionat.system import is_root

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
MONTH = "2026-11"
OTHERS = {
    "address": b"tunnel.example.com:8007\n",
    "certificate": b"self-signed\n",
    "cluster": b"c" * 32,
    "events/journal.jsonl": b'{"number":3}\n{"number":4}\n',
    "events/journal.older.jsonl": b'{"number":1}\n{"number":2}\n',
    "events/positions.json": b'{"positions": {}, "runs": []}',
    "certificates/account.key": b"key",
    "certificates/schedule.json": b"{}",
    "certificates/shop.tunnel.example.com/certificate.pem": b"pem",
    f"certificates/{'a' * 240}.example/certificate.pem": b"a long one",
    "known_servers": b"",
    "identity": b"0" * 32 + b"\n",
}
LEFT = {
    "serve.lock": b"",
    "node": b"this one",
    "server.log": b"a log",
    "server.log.1": b"a log",
    "access.log": b"a log",
    "mine.txt": b"what is that?",
}


@pytest.fixture
def state(tmp_path: Path) -> Trionat:
    """A state folder that has everything."""
    folder = tmp_path / "state"
    user = Trionat(folder=folder)
    assert user("add", "alice", stdin="geheim123\n").code == 0
    prepare_state(folder)
    for name, content in (OTHERS | LEFT).items():
        path = folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        path.write_bytes(content)
    save_journal(folder, Journal().counted(MONTH, {"alice": 17}))
    return Trionat(folder=folder, command="state")


@pytest.fixture
def file(state: Trionat, tmp_path: Path) -> Path:
    """A backup of it."""
    path = tmp_path / "backup.tar.gz"
    assert state("backup", str(path)).code == 0
    return path


@pytest.fixture
def new(tmp_path: Path) -> Trionat:
    """Where it is put."""
    return Trionat(folder=tmp_path / "new", command="state")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_restored_is_what_was_there(state: Trionat, file: Path, new: Trionat) -> None:
    ticket = Trionat(folder=state.folder)("ticket", "alice", "--public-addr", "a.example:1")
    outcome = new("restore", str(file))
    assert (outcome.code, outcome.err) == (0, "")
    before, after = contents(state.folder), contents(new.folder)
    assert set(after) - {"audit.lock"} == {name for name in before if is_kept(name)}
    differ = {"trionat.db", "audit.log"}
    assert {name: after[name] for name in after if name not in differ | {"audit.lock"}} == {
        name: before[name] for name in before if name not in differ and is_kept(name)
    }
    user = Trionat(folder=new.folder)
    assert user.password_is("alice", "geheim123")
    assert user.accepts("alice", ticket.out.strip())
    assert prepare_state(new.folder).fingerprint == prepare_state(state.folder).fingerprint
    assert [each["action"] for each in read_audit(new.folder, 9)] == [
        "state.restored",
        "account.added",
    ]


def test_a_person_is_told_what_is_in_it(state: Trionat, tmp_path: Path, new: Trionat) -> None:
    file = tmp_path / "b.tar.gz"
    outcome = state("backup", str(file))
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"{file}: 18 files, ")
    assert lines[0].endswith("; there are secrets in it: keep it as you keep those")
    assert (
        "left out: node: it tells this node of a cluster from others: a copy must not pass for it"
        in lines
    )
    assert "left out: mine.txt: no file of trionat" in lines
    assert {line.split(": ")[1] for line in lines[1:]} == {*LEFT, "audit.lock"}
    told = new("restore", str(file)).out.splitlines()
    assert told[0].endswith(f"Z are in {new.folder}")
    assert told[1].startswith("the fingerprint of the server is SHA256:")


def test_it_is_told_to_scripts(state: Trionat, tmp_path: Path, new: Trionat) -> None:
    file = tmp_path / "b.tar.gz"
    told = json.loads(state("backup", str(file), "--json").out)
    by_name = {each["name"]: each for each in told["files"]}
    key = (state.folder / "server.key").read_bytes()
    assert by_name["server.key"] == {
        "name": "server.key",
        "bytes": len(key),
        "sha256": hashlib.sha256(key).hexdigest(),
        "secret": True,
    }
    assert (told["file"], told["format"], told["schema"]) == (str(file), 1, 5)
    assert (told["database"], told["dump"]) == ("", "")
    assert {each["name"] for each in told["left_out"]} == {*LEFT, "audit.lock"}
    restored = json.loads(new("restore", str(file), "--json").out)
    assert restored.pop("fingerprint").startswith("SHA256:")
    assert restored == {
        "state_dir": str(new.folder),
        "aside": None,
        "made": told["made"],
        "trionat": told["trionat"],
        "files": 18,
    }


@POSIX
def test_nobody_else_can_read_it(file: Path, new: Trionat) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    new("restore", str(file))
    modes = {
        path.is_dir(): stat.S_IMODE(path.stat().st_mode)
        for path in [new.folder, *new.folder.rglob("*")]
    }
    assert modes == {True: 0o700, False: 0o600}


def test_a_client_alone(tmp_path: Path, new: Trionat) -> None:
    folder = tmp_path / "client"
    identity = load_identity(folder)
    KnownServers.of(folder).path.write_text("a.example:8007 SHA256:x\n")
    file = tmp_path / "b.tar.gz"
    outcome = Trionat(folder=folder, command="state")("backup", str(file))
    assert outcome.out.startswith(f"{file}: 2 files, ")
    assert "accounts" not in outcome.out
    assert new("restore", str(file)).code == 0
    assert load_identity(new.folder) == identity
    assert set(contents(new.folder)) == {"identity", "known_servers"}


def test_standard_output_and_input(state: Trionat, new: Trionat) -> None:
    words = [sys.executable, "-m", "trionat", "state"]
    packed = subprocess.run(
        [*words, "backup", "-", "--state-dir", str(state.folder)], capture_output=True, check=True
    )
    assert packed.stderr.startswith(b"standard output: 18 files, ")
    subprocess.run(
        [*words, "restore", "-", "--state-dir", str(new.folder)], input=packed.stdout, check=True
    )
    assert Trionat(folder=new.folder).user("alice")


@pytest.mark.skipif(sys.platform == "win32", reason="terminals as POSIX has them")
def test_not_to_a_terminal(state: Trionat) -> None:
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "trionat", "state", "backup", "-"]
    result = subprocess.run(
        [*words, "--state-dir", str(state.folder)],
        stdout=slave,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(slave)
    os.close(master)
    message = b"trionat: standard output: a backup is nothing for a terminal: name a file\n"
    assert (result.returncode, result.stderr) == (2, message)


def test_nobody_reads_standard_output(state: Trionat) -> None:
    """Half a backup is a failure, not a quiet end."""
    ends = os.pipe()
    os.close(ends[0])
    words = [sys.executable, "-m", "trionat", "state", "backup", "-"]
    result = subprocess.run(
        [*words, "--state-dir", str(state.folder)],
        stdout=ends[1],
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(ends[1])
    assert (result.returncode, result.stderr) == (3, b"trionat: standard output: Broken pipe\n")


def test_a_disk_that_fails_is_told_by_the_folder_and_not_by_where_the_backup_goes(
    state: Trionat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(collection, "copy_file", fail)
    reason = state.fails(3, "backup", str(tmp_path / "backup"))
    assert reason == f"{state.folder}: cannot read: Input/output error"


@pytest.mark.parametrize("room", [8192, 40_000], ids=["beside the accounts", "for the copy"])
def test_no_room_for_a_copy_is_told_by_where_that_is(
    room: int, state: Trionat, tmp_path: Path
) -> None:
    """And not by the accounts, which can be read."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        reason = state.fails(3, "backup", str(tmp_path / "backup"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    start = f"{state.folder}: cannot write here, for a copy of trionat.db (is the disk full?)"
    assert reason == f"{start}: disk I/O error"
    assert not list(state.folder.glob(".trionat.db.*"))


def test_a_copy_that_is_gone_is_told_by_its_name(state: Trionat) -> None:
    with collection.collect(state.folder, None) as found:
        copy = found.contents["trionat.db"]
        assert isinstance(copy, Path)
        copy.unlink()
        with pytest.raises(StartupError) as caught:
            found.write(io.BytesIO())
    assert str(caught.value) == f"{copy}: cannot read: No such file or directory"


def test_other_sections_may_be_half_edited(state: Trionat, new: Trionat, tmp_path: Path) -> None:
    """What a backup is of is needed, and of what is not in it the names."""
    config = tmp_path / "server.yml"
    config.write_text("Server: {VisitPort: many}\nEvents: [nobody]\n")
    options, file = ("--config", str(config)), str(tmp_path / "backup")
    outcome = state("backup", file, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert new("restore", file, *options).code == 0
    config.write_text("Database: {Hots: x}\n")
    assert "Database.Hots: unknown key" in state("backup", f"{file}2", *options).err


def test_what_is_no_state_folder(tmp_path: Path) -> None:
    state = Trionat(folder=tmp_path / "nothing", command="state")
    file = tmp_path / "b.tar.gz"
    assert "there is no state of a server or a client here" in state.fails(3, "backup", str(file))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(state: Trionat, file: Path) -> None:
    content = file.read_bytes()
    reason = state.fails(3, "backup", str(file))
    assert reason == f"{file}: there is such a file already: name another one"
    assert file.read_bytes() == content


def test_a_folder_that_is_not_there(state: Trionat, tmp_path: Path) -> None:
    reason = state.fails(3, "backup", str(tmp_path / "no" / "b.tar.gz"))
    assert reason == f"{tmp_path / 'no' / 'b.tar.gz'}: cannot write: No such file or directory"


def test_the_accounts_are_in_a_database(state: Trionat, tmp_path: Path, new: Trionat) -> None:
    """The database is not asked, so it need not be there."""
    config = tmp_path / "server.yml"
    config.write_text("Database: {Username: nat, Password: x, Host: db.example, DBName: my nat}\n")
    file = tmp_path / "b.tar.gz"
    lines = state("backup", str(file), "--config", str(config)).out.splitlines()
    where = "the database my nat at db.example:3306"
    assert lines[1:3] == [
        f"not in it: the accounts and their traffic, which are in {where}: copy them with",
        "  mysqldump --single-transaction -h db.example -P 3306 -u nat -p 'my nat' > 'my nat.sql'",
    ]
    assert f"not in it: the configuration {config}" in lines
    assert "left out: trionat.db: not used: the configuration names a database" in lines
    assert any(line.startswith("left out: traffic.json: ") for line in lines)
    told = new("restore", str(file)).out.splitlines()
    assert told[-1] == f"not in it: the accounts and their traffic, which are in {where}"
    assert not {"trionat.db", "traffic.json"} & set(contents(new.folder))


def test_no_accounts_and_no_word_of_a_database(tmp_path: Path) -> None:
    prepare_state(tmp_path / "state")
    save_journal(tmp_path / "state", Journal().counted(MONTH, {"alice": 17}))
    outcome = Trionat(folder=tmp_path / "state", command="state")(
        "backup", str(tmp_path / "b.tar.gz")
    )
    assert "left out: traffic.json: " in outcome.out
    assert "if they are in a database, name its configuration (--config)" in outcome.out


def test_a_line_that_is_being_written_is_left_out(
    state: Trionat, tmp_path: Path, new: Trionat
) -> None:
    with (state.folder / "events/journal.jsonl").open("ab") as journal:
        journal.write(b'{"numb')
    assert state("backup", str(tmp_path / "b.tar.gz")).code == 0
    assert new("restore", str(tmp_path / "b.tar.gz")).code == 0
    content = (new.folder / "events/journal.jsonl").read_bytes()
    assert content == OTHERS["events/journal.jsonl"]


# --- while a server runs ---


def test_each_byte_is_in_a_backup_once(tmp_path: Path) -> None:
    """A server counts, writes its journal and flushes; whenever a backup is taken, store and journal have what was counted at one moment."""
    folder = tmp_path / "state"
    assert Trionat(folder=folder)("add", "alice", stdin="geheim123\n").code == 0
    save_journal(folder, Journal())
    over = threading.Event()

    async def count() -> int:
        journal, rounds = load_journal(folder), 0
        async with open_store(None, database_file(folder)) as store:
            while not over.is_set():
                rounds += 1
                journal = journal.counted(MONTH, {"alice": 1})
                save_journal(folder, journal)
                journal = journal.attempt()
                save_journal(folder, journal)
                assert journal.attempted is not None
                assert await store.add_traffic(journal.attempted)
                journal = journal.settled()
        return rounds

    counted: list[int] = []
    thread = threading.Thread(target=lambda: counted.append(trio.run(count)))
    thread.start()
    try:
        totals = [total_in_backup(folder, tmp_path / f"{number}") for number in range(8)]
    finally:
        over.set()
        thread.join()
    assert counted[0] > 20
    assert totals == sorted(totals)
    for total, flushes in totals:
        assert total == flushes, totals


def total_in_backup(folder: Path, place: Path) -> tuple[int, int]:
    """Return what a server has that begins with a backup of the folder, when it has flushed: bytes, and the rounds in which they were counted."""
    state = Trionat(folder=folder, command="state")
    assert state("backup", str(place.with_suffix(".tgz"))).code == 0
    new = Trionat(folder=place, command="state")
    assert new("restore", str(place.with_suffix(".tgz"))).code == 0
    journal = load_journal(place)
    rounds = journal.number + bool(journal.waiting)

    async def flush() -> int:
        again = journal
        async with open_store(None, database_file(place)) as store:
            while (flush := (again := again.attempt()).attempted) is not None:
                await store.add_traffic(flush)
                again = again.settled()
            return (await store.traffic()).get("alice", 0)

    return trio.run(flush), rounds


def test_the_journal_is_read_while_nobody_can_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the three moments at which a flush would make a byte count twice, or not at all."""
    folder = tmp_path / "state"
    assert Trionat(folder=folder)("add", "alice", stdin="geheim123\n").code == 0
    threads: list[threading.Thread] = []

    def count_and_flush() -> None:
        async def flush() -> None:
            journal = load_journal(folder).counted(MONTH, {"alice": 1}).attempt()
            save_journal(folder, journal)
            assert journal.attempted is not None
            async with open_store(None, database_file(folder)) as store:
                assert await store.add_traffic(journal.attempted)
            save_journal(folder, journal.settled())

        trio.run(flush)

    def copy(path: Path, target: Path, *, meanwhile: Any, told: Any) -> Any:
        count_and_flush()

        def while_another_flushes() -> Any:
            threads.append(threading.Thread(target=count_and_flush))
            threads[0].start()
            threads[0].join(0.3)
            return meanwhile()

        found = copy_file(path, target, meanwhile=while_another_flushes, told=told)
        threads[0].join()
        return found

    monkeypatch.setattr(collection, "copy_file", copy)
    save_journal(folder, Journal().counted(MONTH, {"alice": 1}))
    total, rounds = total_in_backup(folder, tmp_path / "b")
    assert total == 3  # with what was attempted, and waits in the journal
    assert rounds == 2


def test_an_older_database_is_copied_as_it_is(state: Trionat, tmp_path: Path) -> None:
    """Before an upgrade, the new program must not change what the old one runs on."""
    with closing(sqlite3.connect(database_file(state.folder))) as connection:
        connection.execute("pragma user_version = 4")
    told = json.loads(state("backup", str(tmp_path / "b.tar.gz"), "--json").out)
    assert told["schema"] == 4
    with closing(sqlite3.connect(database_file(state.folder))) as connection:
        assert connection.execute("pragma user_version").fetchone() == (4,)


def test_a_newer_database(state: Trionat, file: Path, new: Trionat, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database_file(state.folder))) as connection:
        connection.execute("pragma user_version = 99")
    newer = "written by a newer trionat (schema 99, this one knows 5): update this one"
    database = database_file(state.folder)
    assert state.fails(3, "backup", str(tmp_path / "b")) == f"{database}: {newer}"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    changed = repacked(file, {"trionat.db": database.read_bytes()}, honest=True)
    assert new.fails(2, "restore", str(changed)) == f"{changed}: trionat.db: {newer}"
    assert not new.folder.exists()


def test_a_database_that_is_locked_or_none(state: Trionat, tmp_path: Path) -> None:
    file = database_file(state.folder)
    file.write_bytes(b"no database" * 1000)
    assert "file is not a database" in state.fails(3, "backup", str(tmp_path / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert not [path for path in state.folder.iterdir() if path.name.endswith(".tmp")]


# --- where it is put ---


def test_no_server_may_run_there(file: Path, new: Trionat) -> None:
    with lock_state(new.folder):
        reason = new.fails(3, "restore", str(file), "--force")
    assert reason.startswith(f"{new.folder}: another trionat serve runs on this state folder")


def test_a_folder_that_is_not_empty(file: Path, new: Trionat) -> None:
    new.folder.mkdir()
    (new.folder / "mine").write_text("mine")
    reason = new.fails(3, "restore", str(file))
    assert reason == (
        f"{new.folder}: it is not empty: restore into another folder (--state-dir), or move what is there aside (--force)"
    )
    assert contents(new.folder) == {"mine": b"mine"}
    outcome = new("restore", str(file), "--force")
    aside = Path(outcome.out.splitlines()[-1].removeprefix("what was there is in "))
    assert aside.name.startswith("new.before-")
    assert contents(aside).keys() - {"serve.lock"} == {"mine"}
    assert Trionat(folder=new.folder).user("alice")


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
def test_root_restores_for_the_user_of_a_service(file: Path, new: Trionat) -> None:
    new.folder.mkdir()
    os.chown(new.folder, 12345, 12346)
    assert new.fails(2, "restore", os.devnull).startswith(os.devnull)
    assert list(new.folder.iterdir()) == []  # no lock file of root's
    assert new("restore", str(file)).code == 0
    owners = {
        (path.stat().st_uid, path.stat().st_gid) for path in [new.folder, *new.folder.rglob("*")]
    }
    assert owners == {(12345, 12346)}


def test_an_empty_folder_is_taken(file: Path, new: Trionat, tmp_path: Path) -> None:
    new.folder.mkdir()
    (new.folder / "serve.lock").touch()
    assert new("restore", str(file)).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"state", "new", file.name}


def test_where_a_link_leads(file: Path, new: Trionat, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    new.folder.symlink_to(tmp_path / "private", target_is_directory=True)
    assert new("restore", str(file)).code == 0
    assert new.folder.is_symlink()
    assert (tmp_path / "private" / "ticket.key").exists()


def test_what_is_no_folder(file: Path, new: Trionat) -> None:
    new.folder.write_text("a file")
    assert "it is no folder" in new.fails(3, "restore", str(file), "--force")


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_there_is_a_folder_at_every_moment(
    file: Path, new: Trionat, monkeypatch: pytest.MonkeyPatch
) -> None:
    new.folder.mkdir()
    (new.folder / "mine").write_text("mine")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)  # after the names have changed
        assert new("restore", str(file), "--force").code == 130
    assert Trionat(folder=new.folder).user("alice")
    [old] = new.folder.parent.glob(".new.*.restore")
    assert (old / "mine").read_text() == "mine"  # nothing is removed


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_the_old_folder_stays_where_it_cannot_be_moved_on(
    file: Path, new: Trionat, monkeypatch: pytest.MonkeyPatch
) -> None:
    new.folder.mkdir()
    (new.folder / "mine").write_text("mine")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        outcome = new("restore", str(file), "--force")
    assert outcome.code == 0
    old = Path(outcome.out.splitlines()[-1].removeprefix("what was there is in "))
    assert (old / "mine").read_text() == "mine"


@pytest.mark.skipif(not is_root(), reason="others cannot do harm by it")
@pytest.mark.parametrize("below", ["state", "deeper/state"])
def test_root_does_not_restore_where_others_could_interfere(
    below: str, file: Path, tmp_path: Path
) -> None:
    """Nor further down, where a folder of root's could get another name, whether it is there or not."""
    home = tmp_path / "home"
    home.mkdir()
    there = Trionat(folder=home / below, command="state")
    home.chmod(0o777)
    reason = there.fails(3, "restore", str(file))
    assert reason == f"{home}: everybody may rename what is in it: run chmod o-w {home}"
    os.chown(home, 0, 12345)
    reason = there.fails(3, "restore", str(file))
    assert reason == f"{home}: everybody may rename what is in it: run chmod go-w {home}"
    home.chmod(0o2775)  # as Debian's /var/local
    reason = there.fails(3, "restore", str(file))
    assert reason == f"{home}: its group (12345) may rename what is in it: run chmod g-w {home}"
    os.chown(home, 12345, 12345)
    reason = there.fails(3, "restore", str(file))
    assert reason == f"{home}: it belongs to another user: run this as that user, and not as root"
    assert not list(home.iterdir())
    os.chown(home, 0, 12345)
    home.chmod(0o1777)  # as /tmp
    assert there("restore", str(file)).code == 0


@pytest.mark.skipif(not is_root(), reason="others cannot do harm by it")
def test_root_restores_where_only_its_own_group_could_interfere(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 0, 0)
    home.chmod(0o775)
    assert Trionat(folder=home / "state", command="state")("restore", str(file)).code == 0


def test_what_cannot_be_put_in_place_is_removed(
    file: Path, new: Trionat, monkeypatch: pytest.MonkeyPatch
) -> None:
    new.folder.mkdir()
    (new.folder / "mine").write_text("mine")

    def busy(*_: object) -> bool:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(restoration, "exchange", busy)
    reason = new.fails(3, "restore", str(file), "--force")
    assert "a mount point stays what it is" in reason
    assert contents(new.folder) == {"mine": b"mine"}
    assert not list(new.folder.parent.glob(".new.*"))


@pytest.mark.parametrize("fails", [False, True])
def test_where_two_names_cannot_change_at_once(
    file: Path, new: Trionat, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    new.folder.mkdir()
    (new.folder / "mine").write_text("mine")
    monkeypatch.setattr(restoration, "exchange", lambda *_: False)
    if not fails:
        assert new("restore", str(file), "--force").code == 0
        assert Trionat(folder=new.folder).user("alice")
        return
    rename = Path.rename

    def second_fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".restore"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    assert "Input/output error" in new.fails(3, "restore", str(file), "--force")
    assert contents(new.folder).keys() - {"serve.lock"} == {"mine"}


# --- folders of other people's making ---


@POSIX
@pytest.mark.parametrize("owner", [0, 12345] if is_root() else [-1])
def test_a_backup_waits_for_no_pipe(state: Trionat, tmp_path: Path, owner: int) -> None:
    os.chown(state.folder, owner, -1)
    (state.folder / "identity").unlink()
    os.mkfifo(state.folder / "identity")
    reason = state.fails(3, "backup", str(tmp_path / "backup.tar.gz"))
    assert reason == f"{state.folder / 'identity'}: it is no plain file: remove it"


@POSIX
def test_a_file_that_is_far_too_long_is_not_read(state: Trionat, tmp_path: Path) -> None:
    os.truncate(state.folder / "identity", 1 << 40)
    reason = state.fails(3, "backup", str(tmp_path / "backup.tar.gz"))
    assert f"it has {1 << 40} bytes, and a backup takes at most" in reason


@pytest.mark.skipif(not is_root(), reason="others read what they may read")
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["identity", "trionat.db", "audit.log.1", "certificates"])
def test_root_follows_no_link_to_what_the_owner_of_the_folder_may_not_read(
    state: Trionat, tmp_path: Path, name: str, *, hard: bool
) -> None:
    for path in (state.folder, *state.folder.rglob("*")):
        os.chown(path, 12345, 12345)
    assert state("backup", str(tmp_path / "good.tar.gz")).code == 0
    path, secret = state.folder / name, tmp_path / "secret"
    if path.exists():
        path.rename(secret)
    else:
        secret.write_bytes(b"secret")
    if hard and not secret.is_dir():
        path.hardlink_to(secret)
    else:
        path.symlink_to(secret)
    for each in (secret, *secret.rglob("*")):
        os.chown(each, 0, 0)
    reason = state.fails(3, "backup", str(tmp_path / "backup.tar.gz"))
    assert reason.startswith(str(path))
    assert "it is a link, in a folder of another user: run this as that user" in reason


@pytest.mark.skipif(not is_root(), reason="only root gives files away")
def test_roots_own_files_in_a_folder_of_somebody_else(state: Trionat, tmp_path: Path) -> None:
    """As in a container, whose volume belongs to whoever has made it."""
    os.chown(state.folder, 12345, 12345)
    assert state("backup", str(tmp_path / "backup.tar.gz")).code == 0


# --- backups of other people's making ---


def repacked(file: Path, changes: dict[str, bytes], *, honest: bool) -> Path:
    """Write a backup with other contents; `honest`: the manifest tells of them."""
    members: dict[str, bytes] = {}
    with tarfile.open(file) as tar:
        for member in tar:
            found = tar.extractfile(member)
            assert found is not None
            members[member.name] = found.read()
    members |= changes
    if honest:
        manifest = json.loads(members[NAME])
        for each in manifest["files"]:
            content = members[each["name"]]
            each |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        members[NAME] = json.dumps(manifest).encode()
    changed = file.with_name("changed.tar.gz")
    with tarfile.open(changed, "w:gz") as tar:
        for name, content in members.items():
            tar.addfile(plain(name, len(content)), io.BytesIO(content))
    return changed


def plain(name: str, size: int, **values: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    for key, value in values.items():
        setattr(member, key, value)
    return member


def manifest_of(*files: tuple[str, int], **values: Any) -> bytes:
    content = {
        "format": 1,
        "trionat": "0.1.0",
        "made": "now",
        "schema": None,
        "database": "",
        "dump": "",
        "files": [{"name": name, "bytes": size, "sha256": "0" * 64} for name, size in files],
    }
    return json.dumps(content | values).encode()


def packed(*members: tuple[tarfile.TarInfo, bytes], manifest: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(plain(NAME, len(manifest)), io.BytesIO(manifest))
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


IDENTITY = manifest_of(("identity", 3))
DAMAGED = "it is no backup of trionat, or was cut off or damaged"
MANIFEST = f"its {NAME} is damaged"
NOT_PLAIN = "identity is no plain file in it"


def identity(size: int, **values: Any) -> bytes:
    """Return a backup of an identity of that many bytes, where the manifest tells of three."""
    name = values.pop("name", "identity")
    return packed((plain(name, size, **values), b"abcdefgh"[:size]), manifest=IDENTITY)


HOSTILE = {
    "empty": (b"", DAMAGED),
    "no gzip": (b"no gzip at all", DAMAGED),
    "no tar": (gzip.compress(b"no tar at all" * 100), DAMAGED),
    "nothing in it": (gzip.compress(b""), DAMAGED),
    "no JSON": (packed(manifest=b"{"), MANIFEST),
    "deep": (packed(manifest=b"[" * 100_000), MANIFEST),
    "newer": (
        packed(manifest=manifest_of(("identity", 3), format=2)),
        "it was made by a newer trionat (this one is 0.1.0): update this one",
    ),
    "older than the first": (packed(manifest=manifest_of(("identity", 3), format=0)), MANIFEST),
    "no number": (packed(manifest=manifest_of(("identity", 3), format=True)), MANIFEST),
    "no files": (packed(manifest=manifest_of()), MANIFEST),
    "up": (packed(manifest=manifest_of(("../identity", 3))), MANIFEST),
    "absolute": (packed(manifest=manifest_of(("/etc/passwd", 3))), MANIFEST),
    "up below": (packed(manifest=manifest_of(("certificates/../certificate.pem", 3))), MANIFEST),
    "not kept": (packed(manifest=manifest_of(("audit.lock", 3))), MANIFEST),
    "huge": (packed(manifest=manifest_of(("identity", 1 << 40))), MANIFEST),
    "less than nothing": (packed(manifest=manifest_of(("identity", -1))), MANIFEST),
    "twice": (packed(manifest=manifest_of(("identity", 3), ("identity", 3))), MANIFEST),
    "many": (packed(manifest=manifest_of(*[("identity", 3)] * 20_001)), MANIFEST),
    "missing": (packed(manifest=IDENTITY), "identity is missing in it"),
    "changed": (identity(3), "identity is damaged in it: its SHA-256 is another one"),
    "longer": (identity(4), "identity is not as long as its manifest.json says"),
    "not in the manifest": (
        identity(3, name="../identity"),
        "'../identity' is not in its manifest.json, or there twice",
    ),
    "a long name": (
        identity(3, name="x" * 5000),
        "a value of 5000 characters is not in its manifest.json, or there twice",
    ),
    "a link": (identity(0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), NOT_PLAIN),
    "a hard link": (identity(0, type=tarfile.LNKTYPE, linkname=NAME), NOT_PLAIN),
    "a device": (identity(0, type=tarfile.CHRTYPE, devmajor=1, devminor=3), NOT_PLAIN),
    "a pipe": (identity(0, type=tarfile.FIFOTYPE), NOT_PLAIN),
    "a folder": (identity(0, type=tarfile.DIRTYPE), NOT_PLAIN),
    "with holes": (identity(3, type=tarfile.GNUTYPE_SPARSE), NOT_PLAIN),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_backup(kind: str, new: Trionat, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    file = tmp_path / "hostile.tar.gz"
    file.write_bytes(content)
    assert new.fails(2, "restore", str(file)) == f"{file}: {reason}"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_backup_that_is_cut_off_anywhere(file: Path, new: Trionat) -> None:
    whole = file.read_bytes()
    cut = file.with_name("cut.tar.gz")
    for size in {*range(0, 200, 20), *range(200, len(whole) - 50, 777)}:
        cut.write_bytes(whole[:size])
        assert new("restore", str(cut)).code == 2
        assert not new.folder.exists()


def test_a_byte_that_is_another_one(file: Path, new: Trionat) -> None:
    """Whatever it is in: the backup is refused, or what is restored is what was there."""
    packed_up = bytearray(zlib.decompress(file.read_bytes(), 31))
    changed = file.with_name("changed.tar.gz")
    for place in range(0, 12 * 1024, 97):
        packed_up[place] ^= 0x20
        changed.write_bytes(gzip.compress(packed_up, 1))
        packed_up[place] ^= 0x20
        outcome = new("restore", str(changed))
        assert outcome.code in (0, 2), outcome
        if outcome.code == 0:
            assert Trionat(folder=new.folder).user("alice")
            new.folder.rename(file.with_name(f"good-{place}"))


@pytest.mark.parametrize(
    "member",
    [
        plain("x", 1 << 32, type=tarfile.XHDTYPE),
        plain("x", 1 << 32, type=tarfile.XGLTYPE),
        plain("x", 1 << 32, type=tarfile.GNUTYPE_LONGNAME),
        plain("x", 1 << 32),
    ],
    ids=["pax", "global pax", "long name", "file"],
)
def test_a_header_that_claims_to_be_long(member: tarfile.TarInfo) -> None:
    """Nothing is read for it, however small that would be when it is packed."""
    header = io.BytesIO()
    with tarfile.open(fileobj=header, mode="w") as tar:
        tar.addfile(plain(NAME, len(IDENTITY)), io.BytesIO(IDENTITY))
        tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
    content = header.getvalue().rstrip(b"\0")
    read = Reads(gzip.compress(content + bytes(-len(content) % 512) + os.urandom(1 << 23)))
    with pytest.raises(BackupError):
        list(Archive.open(read).files())
    assert read.total < 1 << 22


def test_headers_without_an_end() -> None:
    header = plain("x", 0, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(BackupError, match="cut off or damaged"):
        Archive.open(io.BytesIO(gzip.compress(header * 40_000)))


@pytest.mark.parametrize("kind", ["holes", "holes that are cut off", "global pax"])
def test_headers_that_go_on_before_a_file(kind: str) -> None:
    """The manifest tells of a large file, and what would be kept in memory comes instead of it."""
    large = manifest_of(("trionat.db", 1 << 30))
    packed_up = io.BytesIO()
    with tarfile.open(fileobj=packed_up, mode="w") as tar:
        tar.addfile(plain(NAME, len(large)), io.BytesIO(large))
    if kind != "global pax":
        first = bytearray(plain("x", 0, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
        first[482] = 1  # another block of holes follows
        first[148:156] = b" " * 8
        first[148:156] = b"%06o\0 " % sum(first)
        more = bytearray(512)
        more[504] = 1
        endless = bytes(first) + bytes(more) * (20_000 if kind == "holes" else 3)
    else:
        record = b"1000000 trionat=".ljust(999_999, b"x") + b"\n"
        header = plain("x", len(record), type=tarfile.XGLTYPE).tobuf(tarfile.GNU_FORMAT)
        endless = (header + record + bytes(-len(record) % 512)) * 10
    content = packed_up.getvalue().rstrip(b"\0")
    archive = Archive.open(
        io.BytesIO(gzip.compress(content + bytes(-len(content) % 512) + endless, 1))
    )
    with pytest.raises(BackupError, match="cut off or damaged"):
        list(archive.files())
    assert archive._source.tell() < 64 * 1024  # of what was unpacked


class Reads(io.BytesIO):
    """A stream that counts what is read of it."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data


def test_there_is_no_room(file: Path, new: Trionat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "_SPARE_BYTES", 1 << 60)
    reason = new.fails(3, "restore", str(file))
    assert " bytes are needed here, and " in reason
    assert not new.folder.exists()


def test_a_database_of_somebody_else(file: Path, new: Trionat, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("create table t (a)")
    changed = repacked(file, {"trionat.db": other.read_bytes()}, honest=True)
    reason = new.fails(2, "restore", str(changed))
    assert reason == f"{changed}: trionat.db: it is no database of trionat"


def test_a_damaged_database(file: Path, new: Trionat, state: Trionat) -> None:
    with closing(open_file(database_file(state.folder))) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    content = bytearray(database_file(state.folder).read_bytes())
    content[4096:8192] = os.urandom(4096)
    changed = repacked(file, {"trionat.db": bytes(content)}, honest=True)
    assert "trionat.db: " in new.fails(2, "restore", str(changed))
    assert not new.folder.exists()


def test_a_key_that_is_not_of_the_certificate(file: Path, new: Trionat, tmp_path: Path) -> None:
    other = prepare_state(tmp_path / "other")
    changed = repacked(file, {"server.key": other.key_file.read_bytes()}, honest=True)
    reason = new.fails(2, "restore", str(changed))
    assert reason == f"{changed}: server.crt is damaged in it, or not of server.key"


def test_a_manifest_is_read_as_it_was_written(file: Path) -> None:
    with file.open("rb") as stream:
        manifest = Archive.open(stream).manifest
    again = Manifest.decode(manifest.encode())
    assert again == manifest
