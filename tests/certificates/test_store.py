"""Certificates on the disk: taken when they are whole, and replaced without a cut."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import stat
import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.made import DAY, Maker, key_pem, make_key, with_version
from trionat.errors import StartupError
from trionat.server.certificates import store as store_module
from trionat.server.certificates.store import CertificateFiles, CertificateStore

if TYPE_CHECKING:
    from pathlib import Path

    from trionat.server.certificates.store import Entry

MAKER = Maker()
NOW = int(time.time())


def shown(context: ssl.SSLContext | None, name: str = "x", protocol: str = "http/1.1") -> float:
    """Return until when the certificate is valid that a server with this context shows, by a handshake in memory."""
    assert context is not None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=MAKER.pem.decode())
    client.set_alpn_protocols([protocol])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = context.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (here, there, here, there):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert here.selected_alpn_protocol() == protocol
    found = here.getpeercert()
    assert found is not None
    return ssl.cert_time_to_seconds(str(found["notAfter"]))


def write(folder: Path, key: bytes, chain: bytes, name: str = "a") -> CertificateFiles:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.key").write_bytes(key)
    (folder / f"{name}.crt").write_bytes(chain)
    return CertificateFiles(folder / f"{name}.key", folder / f"{name}.crt")


def open_to_others(folder: Path) -> list[Path]:
    """Return what is in a folder and not its owner's alone; something has to be there."""
    found = list(folder.rglob("*"))
    assert len(found) > 3
    return [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]


def soon(days: float) -> int:
    return int(NOW + days * DAY)


async def test_the_operator_is_told_what_is_served_and_what_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    own = tmp_path / "own"
    key, chain = MAKER.chain("a.example.org", ends=soon(9))
    write(own, key, chain)
    (own / "b.crt").write_bytes(chain)
    (own / "c.key").write_bytes(key)
    (own / "notes.txt").write_text("mine")
    deep = own / "live" / "d.example.org"
    deep.mkdir(parents=True)
    (deep / "privkey.pem").write_bytes(key)
    (deep / "fullchain.pem").write_bytes(chain)
    whole = own / "e.example.org"
    shutil.copytree(deep, whole)
    await CertificateStore(tmp_path / "certificates", own_folder=own).load()
    told = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    served = {each["file"]: each["names"] for each in told if "names" in each}
    assert served == {
        str(own / "a.crt"): "a.example.org",
        str(whole / "fullchain.pem"): "a.example.org",
    }
    over = {each["file"]: each["reason"] for each in told if "reason" in each}
    assert over == {
        str(own / "b.crt"): "there is no b.key beside it",
        str(own / "c.key"): "there is no c.crt or c.pem beside it",
        str(deep): f"it is too deep: CertificatesDir has to be {own / 'live'}",
    }


async def test_what_was_ordered_is_there_after_a_restart(tmp_path: Path) -> None:
    store = CertificateStore(tmp_path / "certificates")
    await store.load()
    for name in ("shop.example.org", "2001:db8::1"):
        await store.put(name, *MAKER.chain(name, ends=soon(9)))
    again = CertificateStore(tmp_path / "certificates")
    await again.load()
    for one in (store, again):
        for name in ("shop.example.org", "2001:db8::1", "SHOP.example.org"):
            entry = one.find(name)
            assert entry is not None
            assert shown(entry.context) == soon(9)
            assert not one.has_own(name)
        assert one.find("example.org") is None
        assert one.find_ordered("shop.example.org") is one.find("shop.example.org")
    assert not open_to_others(tmp_path)


async def test_many_are_sorted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, sorted_by = 30, store_module._preference
    store = CertificateStore(tmp_path)
    for number in range(count):
        await store.put(f"n{number}.example.org", *MAKER.chain(f"n{number}.example.org"))
    compared: list[Entry] = []

    def note(entry: Entry) -> tuple[bool, float]:
        compared.append(entry)
        return sorted_by(entry)

    monkeypatch.setattr(store_module, "_preference", note)
    for read in (CertificateStore.load, CertificateStore.refresh):
        compared.clear()
        again = CertificateStore(tmp_path)
        await read(again)
        assert len(again.all_ordered()) == len(compared) == count


async def test_one_that_is_removed_is_gone(tmp_path: Path) -> None:
    store = CertificateStore(tmp_path / "certificates")
    await store.load()
    for name in ("a.example.org", "b.example.org"):
        await store.put(name, *MAKER.chain(name))
    await store.remove("a.example.org")
    await store.refresh()
    assert store.find("a.example.org") is None
    assert set(store.all_ordered()) == {"b.example.org"}
    assert [path.name for path in (tmp_path / "certificates").iterdir()] == ["b.example.org"]
    await store.remove("b.example.org")
    assert not store.all_ordered()


async def test_a_new_one_is_served_and_connections_keep_the_old(tmp_path: Path) -> None:
    store = CertificateStore(tmp_path)
    old = await store.put("a.example.org", *MAKER.chain("a.example.org", ends=soon(9)))
    http2 = await store.http2_context(old)
    assert await store.http2_context(old) is http2
    new = await store.put("a.example.org", *MAKER.chain("a.example.org", ends=soon(20)))
    assert store.find("a.example.org") is new
    assert shown(new.context) == soon(20)
    assert shown(await store.http2_context(new), protocol="h2") == soon(20)
    assert shown(old.context) == soon(9), "who has begun with it goes on"
    assert shown(http2, protocol="h2") == soon(9)


async def test_a_connection_that_is_up_is_not_cut(tmp_path: Path) -> None:
    store = CertificateStore(tmp_path)
    old = await store.put("a.example.org", *MAKER.chain("a.example.org", ends=soon(9)))
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async for data in stream:
            await stream.send_all(data)

    client = ssl.create_default_context(cadata=MAKER.pem.decode())
    client.verify_flags &= ~ssl.VERIFY_X509_STRICT
    async with trio.open_nursery() as nursery:
        ours = [trio.SSLListener(one, old.context) for one in listeners]
        await nursery.start(trio.serve_listeners, echo, ours)
        port = listeners[0].socket.getsockname()[1]
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.SSLStream(plain, client, server_hostname="a.example.org") as stream:
            for days in (9, 20, 30):
                await store.put("a.example.org", *MAKER.chain("a.example.org", ends=soon(days)))
                await store.refresh()
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
        nursery.cancel_scope.cancel()


async def test_it_watches_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WATCH_INTERVAL", 0.02)
    store = CertificateStore(tmp_path / "certificates", own_folder=tmp_path / "own")
    await store.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch)
        for days in (9, 20):
            write(tmp_path / "own", *MAKER.chain("a.example.org", ends=soon(days)))
            while (entry := store.find("a.example.org")) is None or (
                entry.certificate.ends != soon(days)
            ):
                await store.changed.wait()
        nursery.cancel_scope.cancel()


async def test_the_operator_comes_before_us_and_the_exact_name_before_a_wildcard(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    files = write(own, *MAKER.chain("*.example.org", "both.example.org", ends=soon(30)))
    store = CertificateStore(tmp_path / "certificates", own_files=(files,))
    await store.load()
    for name in ("exact.example.org", "both.example.org"):
        await store.put(name, *MAKER.chain(name, ends=soon(40)))
    days = {"exact": 30, "both": 30, "other": 30}
    for label, count in days.items():
        entry = store.find(f"{label}.example.org")
        assert entry is not None
        assert shown(entry.context) == soon(count)
        assert store.has_own(f"{label}.example.org")
    assert store.find("a.b.example.org") is None
    assert not store.has_own("example.org")


async def test_files_that_are_replaced_are_served(tmp_path: Path) -> None:
    files = write(tmp_path / "own", *MAKER.chain("a.example.org", ends=soon(9)))
    store = CertificateStore(tmp_path / "certificates", own_files=(files,))
    await store.load()
    first = store.find("a.example.org")
    await store.refresh()
    assert store.find("a.example.org") is first, "nothing has changed"
    write(tmp_path / "own", *MAKER.chain("a.example.org", "b.example.org", ends=soon(20)))
    await store.refresh()
    for name in ("a.example.org", "b.example.org"):
        entry = store.find(name)
        assert entry is not None
        assert shown(entry.context) == soon(20)
    write(tmp_path / "own", *MAKER.chain("b.example.org", ends=soon(20)))
    await store.refresh()
    assert store.find("a.example.org") is None, "it is for another name now"


async def test_half_a_pair_is_not_taken_and_told_once_where_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    files = write(tmp_path / "own", *MAKER.chain("a.example.org", ends=soon(9)))
    store = CertificateStore(tmp_path / "certificates", own_files=(files,))
    await store.load()
    before = store.find("a.example.org")
    key, chain = MAKER.chain("a.example.org", ends=soon(20))
    files.chain.write_bytes(chain)
    await store.refresh()
    assert store.find("a.example.org") is before
    assert not caplog.records, "the other half may come in a moment"
    for _ in range(3):
        await store.refresh()
    (record,) = caplog.records
    assert "the key is not the one of the certificate" in str(record.msg)
    files.key.write_bytes(key)
    await store.refresh()
    entry = store.find("a.example.org")
    assert entry is not None
    assert shown(entry.context) == soon(20)
    assert len(caplog.records) == 1


async def test_one_that_the_operator_takes_away_is_not_served_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    own = tmp_path / "own"
    files = write(own, *MAKER.chain("shop.example.org", "own.example.org"))
    store = CertificateStore(tmp_path / "certificates", own_folder=own)
    await store.load()
    entry = await store.put("shop.example.org", *MAKER.chain("shop.example.org"))
    served = store.find("shop.example.org")
    assert served is not None
    context = await store.http2_context(served)
    content = files.key.read_bytes(), files.chain.read_bytes()
    files.key.unlink()
    await store.refresh()
    assert store.has_own("own.example.org"), "it may be about to be replaced"
    write(own, *content)
    await store.refresh()
    files.key.unlink()
    await store.refresh()
    assert store.has_own("own.example.org"), "the looks have to be one after the other"
    files.chain.unlink()
    await store.refresh()
    assert store.find("own.example.org") is None
    assert store.find("shop.example.org") is entry, "the one that was ordered comes into its own"
    first, gone = (str(record.msg) for record in caplog.records)
    assert "a certificate of yours is served" in first
    assert "a certificate is gone" in gone
    assert "a.crt" in gone
    write(own, *content)
    await store.refresh()
    again = store.find("own.example.org")
    assert again is not None
    assert await store.http2_context(again) is not context


async def test_what_another_process_removes_is_not_served_here(tmp_path: Path) -> None:
    here, there = CertificateStore(tmp_path), CertificateStore(tmp_path)
    for name in ("a.example.org", "b.example.org"):
        await there.put(name, *MAKER.chain(name))
    await here.load()
    await there.remove("a.example.org")
    for _ in range(2):
        await here.refresh()
    assert set(here.all_ordered()) == {"b.example.org"}


async def test_a_broken_pair_that_is_gone_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    own = tmp_path / "own"
    store = CertificateStore(tmp_path / "certificates", own_folder=own)
    for looks in (1, 3):
        write(own, b"", b"")
        for _ in range(looks):
            await store.refresh()
        shutil.rmtree(own)
        for _ in range(2):
            await store.refresh()
        assert not store._stamps
        assert not store._doubtful
    assert len(caplog.records) == 1


async def test_a_pair_that_was_named_goes_on_being_served_where_its_files_vanish(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    files = write(tmp_path / "own", *MAKER.chain("a.example.org", ends=soon(9)))
    store = CertificateStore(tmp_path / "certificates", own_files=(files,))
    await store.load()
    shutil.rmtree(tmp_path / "own")
    for _ in range(4):
        await store.refresh()
    entry = store.find("a.example.org")
    assert entry is not None
    assert shown(entry.context) == soon(9)
    assert len(caplog.records) == 1
    write(tmp_path / "own", *MAKER.chain("a.example.org", ends=soon(20)))
    await store.refresh()
    entry = store.find("a.example.org")
    assert entry is not None
    assert shown(entry.context) == soon(20)


async def test_a_folder_of_the_operator(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    own = tmp_path / "own"
    write(own, *MAKER.chain("a.example.org"))
    for folder, key_name, chain_name in (
        ("b.example.org", "privkey.pem", "fullchain.pem"),
        ("secret", "tls.key", "tls.crt"),
    ):
        (own / folder).mkdir()
        key, chain = MAKER.chain(f"{folder[0]}.example.org")
        (own / folder / key_name).write_bytes(key)
        (own / folder / chain_name).write_bytes(chain)
    write(own, b"", b"", "broken")
    (own / "alone.key").write_bytes(b"")
    (own / "README").write_bytes(b"")
    store = CertificateStore(tmp_path / "certificates", own_folder=own)
    await store.load()
    for name in ("a.example.org", "b.example.org", "s.example.org"):
        assert store.has_own(name)
    broken, alone = (str(record.msg) for record in caplog.records)
    assert "broken.crt" in broken
    assert "alone.key" in alone
    write(own, *MAKER.chain("new.example.org"), "new")
    await store.refresh()
    assert store.has_own("new.example.org")


async def test_whatever_is_in_the_folders_is_passed_over_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trionat")
    own, ordered = tmp_path / "own", tmp_path / "certificates"
    good, odd = MAKER.chain("good.example.org"), MAKER.chain("odd.example.org")
    write(own, *good, "good")
    store = CertificateStore(ordered, own_folder=own)
    await store.load()
    ordered.mkdir()
    write(own, odd[0], with_version(MAKER.pem, 7), "version")
    write(own, *odd, "pipe").key.unlink()
    os.mkfifo(own / "pipe.key")
    write(own, *odd, "loop").chain.unlink()
    (own / "loop.crt").symlink_to("loop.crt")
    # As root nothing is closed; the system refuses to look behind these just as well.
    for folder, names in (
        (own, ("privkey.pem", "fullchain.pem", "tls.key", "tls.crt")),
        (ordered, ("certificate.pem",)),
    ):
        (folder / "closed").mkdir()
        for name in names:
            (folder / "closed" / name).symlink_to("x" * 300)
    expected = {
        str(own / "version.crt"): "there is no certificate in it",
        str(own / "pipe.crt"): "pipe.key is no file",
        str(own / "loop.crt"): "symbolic links",
        str(own / "closed" / "fullchain.pem"): "name too long",
        str(ordered / "closed" / "certificate.pem"): "name too long",
    }
    for _ in range(4):
        await store.refresh()
    told = [str(record.msg) for record in caplog.records]
    for file, words in expected.items():
        (line,) = (one for one in told if file in one)
        assert words in line
    assert len(told) == len(expected)
    assert store.has_own("good.example.org")
    caplog.clear()
    await CertificateStore(ordered, own_folder=own).load()
    assert len(caplog.records) == len(expected), "the same at a start"


@pytest.mark.parametrize("fault", ["missing", "encrypted", "other key", "folder", "pipe"])
async def test_files_that_were_named_have_to_be_there_at_the_start(
    tmp_path: Path, fault: str
) -> None:
    key, chain = MAKER.chain("a.example.org")
    files = write(tmp_path / "own", key, chain)
    match fault:
        case "missing":
            files.key.unlink()
        case "encrypted":
            files.key.write_bytes(key_pem(make_key(), b"secret"))
        case "other key":
            files.key.write_bytes(key_pem(make_key()))
        case "folder":
            files.key.unlink()
            files.key.mkdir()
        case _:
            files.key.unlink()
            os.mkfifo(files.key)
    store = CertificateStore(tmp_path / "certificates", own_files=(files,))
    with pytest.raises(StartupError, match=r"a\.crt: ") as caught:
        await store.load()
    assert "PRIVATE KEY" not in str(caught.value)


async def test_a_damaged_file_of_ours_is_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CertificateStore(tmp_path)
    await store.put("a.example.org", *MAKER.chain("a.example.org"))
    (tmp_path / "a.example.org" / "certificate.pem").write_bytes(b"damaged")
    again = CertificateStore(tmp_path)
    await again.load()
    assert again.find("a.example.org") is None
    assert len(caplog.records) == 1
    await again.put("a.example.org", *MAKER.chain("a.example.org"))
    assert again.find("a.example.org") is not None


async def test_another_process_has_ordered(tmp_path: Path) -> None:
    here, there = CertificateStore(tmp_path), CertificateStore(tmp_path)
    await here.load()
    await there.put("a.example.org", *MAKER.chain("a.example.org", ends=soon(20)))
    await here.refresh()
    entry = here.find_ordered("a.example.org")
    assert entry is not None
    assert shown(entry.context) == soon(20)


async def test_a_folder_that_cannot_be_written_to_costs_nothing(tmp_path: Path) -> None:
    store = CertificateStore(tmp_path / "certificates")
    before = await store.put("a.example.org", *MAKER.chain("a.example.org"))
    (tmp_path / "certificates" / "b.example.org").write_bytes(b"in the way")
    with pytest.raises(StartupError, match=r"b\.example\.org"):
        await store.put("b.example.org", *MAKER.chain("b.example.org"))
    assert store.find("a.example.org") is before
    assert store.find("b.example.org") is None
