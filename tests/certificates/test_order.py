"""Orders at a real authority, pebble, by a real helper process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.certificates.conftest import listening
from tests.certificates.made import DAY
from tests.certificates.pebble import BLOCKED, running_pebble
from tests.mariadb import HOST
from trionat.config.acme import AcmeConfig
from trionat.errors import StartupError
from trionat.server.certificates import order as order_module
from trionat.server.certificates.challenges import ALPN01, HTTP01, Challenges
from trionat.server.certificates.order import (
    OrderError,
    _command,
    ask_windows,
    order,
    require_library,
)

if TYPE_CHECKING:
    from tests.certificates.pebble import Pebble

pytestmark = pytest.mark.usefixtures("nothing_left")


def at(pebble: Pebble) -> AcmeConfig:
    return AcmeConfig(directory=pebble.directory, ca_file=pebble.authority, email="me@example.org")


@pytest.mark.limit(40)
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("shop.example.org", HTTP01),
        ("tls.example.org", ALPN01),
        (HOST, HTTP01),
        (HOST, ALPN01),
    ],
)
async def test_a_certificate_is_ordered(
    tmp_path: Path, pebble: Pebble, name: str, method: str
) -> None:
    challenges = Challenges()
    async with listening(pebble, challenges) as asked:
        issued = await order(
            at(pebble), [name], folder=tmp_path, challenges=challenges, method=method
        )
        assert issued.certificate.names == {name}
        assert len(asked) == 3, "pebble looks from three places"
        assert [challenges.http01_answer(path) for path in asked] == [None] * 3
        assert challenges.alpn01_context(name) is None
        begins, life = issued.certificate.begins, issued.certificate.life
        if name == HOST:
            assert life == pytest.approx(6 * DAY, abs=60), "the profile for addresses"
        assert issued.window.renew is not None
        assert begins + life / 2 < issued.window.renew < begins + life
        (window,) = await ask_windows(at(pebble), [issued.certificate], folder=tmp_path)
        assert window.renew is not None
        assert begins + life / 2 < window.renew < begins + life
    assert (tmp_path / "account.key").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("challenge.pem"))  # noqa: ASYNC240 - four files


@pytest.mark.limit(40)
async def test_several_names_and_the_same_account(tmp_path: Path, pebble: Pebble) -> None:
    challenges = Challenges()
    async with listening(pebble, challenges) as asked:
        issued = await order(
            at(pebble),
            ["a.example.org", "b.example.org"],
            folder=tmp_path,
            challenges=challenges,
        )
    assert issued.certificate.names == {"a.example.org", "b.example.org"}
    assert len(asked) == 6


@pytest.mark.limit(40)
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        (BLOCKED, "rejectedIdentifier", "it gives no certificate for that name"),
        ("away.example.org", "connection", "ports 80 and 443 have to be open"),
        ("*.example.org", "name", "cannot be ordered here"),
        ("localhost", "name", "no name of the public DNS"),
        ("Shop.example.org", "name", "no name of the public DNS in lower case"),
        ("a..example.org", "name", "no name"),
        ("a.example.org\n", "name", "no name"),
        ("2001:DB8::1", "name", "write this address as 2001:db8::1"),
    ],
)
async def test_what_the_authority_does_not_give(
    tmp_path: Path, pebble: Pebble, name: str, code: str, words: str
) -> None:
    """Nobody listens, so it reaches nobody."""
    with pytest.raises(OrderError, match=words) as caught:
        await order(at(pebble), [name], folder=tmp_path, challenges=Challenges())
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert name.strip() in str(caught.value)


@pytest.mark.limit(40)
async def test_an_answer_of_somebody_else(tmp_path: Path, pebble: Pebble) -> None:
    async with listening(pebble, Challenges()):
        with pytest.raises(OrderError, match="what answers under that name is not this server"):
            await order(at(pebble), ["a.example.org"], folder=tmp_path, challenges=Challenges())


@pytest.mark.limit(40)
async def test_authorizations_that_are_still_valid_need_no_answer(tmp_path: Path) -> None:
    with running_pebble(PEBBLE_AUTHZREUSE="100", PEBBLE_WFE_NONCEREJECT="0") as pebble:
        challenges = Challenges()
        async with listening(pebble, challenges) as asked:
            for _ in range(2):
                await order(at(pebble), ["a.example.org"], folder=tmp_path, challenges=challenges)
        assert len(asked) == 3


@pytest.mark.limit(40)
async def test_terms_that_are_not_agreed_to(tmp_path: Path, pebble: Pebble) -> None:
    config = AcmeConfig(directory=pebble.directory, ca_file=pebble.authority, agree_terms=False)
    with pytest.raises(
        OrderError, match=r"its terms have to be agreed to first \(Acme.AgreeTerms\): data:"
    ):
        await order(config, ["a.example.org"], folder=tmp_path, challenges=Challenges())


@pytest.mark.limit(40)
async def test_an_authority_that_cannot_be_trusted_or_reached(
    tmp_path: Path, pebble: Pebble
) -> None:
    for config, words in (
        (AcmeConfig(directory=pebble.directory), "certificate verify failed"),
        (AcmeConfig(directory=f"https://{HOST}:1/dir"), "Connection refused"),
        (AcmeConfig(directory=pebble.directory, ca_file=tmp_path / "none.pem"), "none.pem"),
    ):
        with pytest.raises(OrderError, match=words) as caught:
            await order(config, ["a.example.org"], folder=tmp_path, challenges=Challenges())
        assert len(str(caught.value)) < 400


async def test_a_damaged_account_is_not_replaced(tmp_path: Path, pebble: Pebble) -> None:
    (tmp_path / "account.key").write_bytes(b"damaged")
    (tmp_path / "account.key").chmod(0o600)
    with pytest.raises(StartupError, match=r"account\.key: .*delete it for a new account"):
        await order(at(pebble), ["a.example.org"], folder=tmp_path, challenges=Challenges())
    assert (tmp_path / "account.key").read_bytes() == b"damaged"


def helpers() -> list[int]:
    """Return the helper processes of this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid() and b"acme_client.py" in command:
            found.append(int(folder.name))
    return found


async def hang(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", ["deadline", "cancelled", "killed"])
async def test_an_authority_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, end: str
) -> None:
    listeners = await nursery.start(trio.serve_tcp, hang, 0)
    port = listeners[0].socket.getsockname()[1]
    config = AcmeConfig(directory=f"https://{HOST}:{port}/dir")
    monkeypatch.setattr(order_module, "ORDER_TIMEOUT", 1.5 if end == "deadline" else 60.0)

    async def end_it() -> None:
        while not helpers():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.02)
        if end == "killed":
            os.kill(helpers()[0], signal.SIGKILL)
        if end == "cancelled":
            scope.cancel()

    nursery.start_soon(end_it)
    words = {"deadline": "not come to an end within 1.5 s", "killed": "killed by signal 9"}
    with trio.CancelScope() as scope:
        if end == "cancelled":
            await order(config, ["a.example.org"], folder=tmp_path, challenges=Challenges())
        with pytest.raises(OrderError, match=words[end]):
            await order(config, ["a.example.org"], folder=tmp_path, challenges=Challenges())
    assert scope.cancelled_caught == (end == "cancelled")
    assert not helpers()
    nursery.cancel_scope.cancel()


def test_a_helper_ends_with_its_server() -> None:
    process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        assert process.wait(20) == 1
        assert process.stdout.read() == b""
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def test_the_library_is_in_the_helper_alone() -> None:
    program = (
        "import sys, trionat.server.certificates.renewal, trionat.server.certificates.order as o;"
        "o.require_library(); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    modules = set(done.stdout.split())
    assert "trionat.server.certificates.order" in modules
    assert not modules & {"acme", "josepy", "requests", "urllib3", "OpenSSL"}


def test_a_server_without_names_imports_none_of_it() -> None:
    program = "import sys, trionat.cli, trionat.server.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    modules = done.stdout.split()
    assert "trionat.server.app" in modules
    left = ("trionat.server.certificates", "acme", "josepy", "cryptography.x509")
    assert not [name for name in modules if name.startswith(left)]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StartupError, match=r"run pip install '\.\[names\]'"):
        require_library()
