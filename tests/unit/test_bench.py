"""The parts of the benchmark suite that figures depend on and that no figure shows: the path, the comparison, the page."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
from array import array
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from bench import path, scenarios
from bench.chain import Chain, Ends, Ports, open_site
from bench.link import Link
from bench.outage import Download, Outage, serve_download
from bench.product import ENCRYPTED
from bench.program import FailedError, MissingError, free_port, wait_listening
from bench.report import Report
from bench.results import Measure, Results, Summary
from bench.rivals import (
    BORE,
    CHISEL,
    DIRECT,
    FRP,
    FRP_PLAIN,
    NAT,
    NGINX,
    NGINX_ENCRYPTED,
    RATHOLE,
    stream_module,
    visit_port,
)
from bench.suite import run_suite
from bench.targets import Target
from trionat.config.load import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
ROUND_TRIP = 0.04

RATE = Measure(key="rate", title="rate", unit="things/s", more_is_better=True)
TIME = Measure(key="time", title="time", unit="ms", digits=1)


# --- the path ---


@contextmanager
def open_path() -> Iterator[tuple[int, socket.socket]]:
    """Run a path; yield the port where it begins and the listener where it ends."""
    port = free_port()
    with socket.create_server((HOST, 0)) as listener:
        words = [HOST, port, listener.getsockname()[1], ROUND_TRIP]
        process = subprocess.Popen([sys.executable, path.__file__, *map(str, words)])
        try:
            deadline = time.monotonic() + 10
            while not is_open(port):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            listener.accept()[0].close()
            yield port, listener
        finally:
            process.kill()
            process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def answer(listener: socket.socket) -> None:
    """Be a service for one connection: send back what comes, and say bye."""
    server, _ = listener.accept()
    with server:
        while data := server.recv(100):
            server.sendall(data)
        server.sendall(b"bye")


def round_trips(client: socket.socket, began: float) -> float:
    """Ask, and return how long the answer took."""
    client.sendall(b"?")
    assert client.recv(100) == b"?"
    return (time.perf_counter() - began) / ROUND_TRIP


def test_the_path_takes_its_time() -> None:
    """It is never early, and as late as a busy machine makes it. TCP's handshake takes one round trip more."""
    with open_path() as (port, listener):
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        began = time.perf_counter()
        with socket.create_connection((HOST, port), 10) as client:
            assert round_trips(client, began) >= 2.0
            later = [round_trips(client, time.perf_counter()) for _ in range(10)]
            assert 1.0 <= min(later) < 2.0
            began = time.perf_counter()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"bye"
            assert time.perf_counter() - began >= ROUND_TRIP
            assert client.recv(100) == b""
        thread.join()


def test_nobody_at_the_end_of_the_path() -> None:
    """One who connects then is sent away; the path stays for the next one."""
    with open_path() as (port, listener):
        address = listener.getsockname()
        listener.close()
        with socket.create_connection((HOST, port), 10) as client:
            client.sendall(b"?")
            assert client.recv(100) == b""
        with socket.create_server(address) as again:
            thread = threading.Thread(target=answer, args=(again,))
            thread.start()
            with socket.create_connection((HOST, port), 10) as client:
                assert round_trips(client, time.perf_counter()) >= 1.0
            thread.join()


# --- the link ---


async def say_back(stream: trio.SocketStream) -> None:
    """Be Redis, as far as ECHO goes."""
    asked = b""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            *lines, asked = (asked + data).split(b"\r\n")
            for line in lines:
                word = line.removeprefix(b"ECHO ")
                await stream.send_all(b"$%d\r\n%b\r\n" % (len(word), word))


async def serve(
    nursery: trio.Nursery, handle: Callable[[trio.SocketStream], Awaitable[None]]
) -> int:
    """Serve connections; return the port."""
    [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HOST))
    port: int = listener.socket.getsockname()[1]
    return port


async def ask(stream: trio.SocketStream, word: bytes) -> bytes:
    await stream.send_all(b"ECHO " + word + b"\r\n")
    return await stream.receive_some()


@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut(reset: bool) -> None:
    """Who is there is told or not, who comes meanwhile waits as on a network that is away, and who comes later is served."""
    async with trio.open_nursery() as nursery:
        entrance = free_port()
        link = Link(nursery)
        link.open((HOST, entrance), await serve(nursery, say_back))
        async with await trio.open_tcp_stream(HOST, entrance) as there:
            assert await ask(there, b"one") == b"$3\r\none\r\n"
            began = trio.current_time()
            nursery.start_soon(partial(link.cut, 0.5, reset=reset))
            await trio.sleep(0.1)
            if reset:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await ask(there, b"two")
                assert isinstance(caught.value.__cause__, ConnectionResetError)
            async with await trio.open_tcp_stream(HOST, entrance) as newcomer:
                assert trio.current_time() - began >= 0.5
                assert await ask(newcomer, b"three") == b"$5\r\nthree\r\n"
            if not reset:
                with trio.move_on_after(0.3) as waited:
                    await ask(there, b"four")
                assert waited.cancelled_caught
        nursery.cancel_scope.cancel("seen")


async def test_a_connection_that_ends_crosses_the_link() -> None:
    async def answer_the_end(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        await stream.send_all(b"bye")

    async with trio.open_nursery() as nursery:
        entrance = free_port()
        Link(nursery).open((HOST, entrance), await serve(nursery, answer_the_end))
        async with await trio.open_tcp_stream(HOST, entrance) as visitor:
            await visitor.send_eof()
            assert await visitor.receive_some() == b"bye"
            assert await visitor.receive_some() == b""
        nursery.cancel_scope.cancel("seen")


@asynccontextmanager
async def linked(
    *, crossing: bool, program: str = "import time; time.sleep(60)"
) -> AsyncGenerator[Ends]:
    """Yield the ends of a chain whose visitors cross the link or go past it, and a program at either end."""
    async with open_site(cuttable=True) as site:
        assert site.link is not None
        ports = [await serve(site.nursery, handle) for handle in (serve_download, say_back)]
        if crossing:
            entrances = [free_port(), free_port()]
            for entrance, port in zip(entrances, ports, strict=True):
                site.link.open((HOST, entrance), port)
            ports = entrances
        public = await site.run("public", sys.executable, "-c", "import time; time.sleep(60)")
        private = await site.run("private", sys.executable, "-c", program)
        yield Ends(public=(public,), private=(private,), visit=Ports(*ports), link=site.link)


@pytest.mark.parametrize("reset", [True, False])
async def test_streams_that_are_lost_in_a_cut(reset: bool) -> None:
    outage = Outage(seconds=0.5, patience=3, reset=reset)
    async with linked(crossing=True) as ends:
        await outage.happen(ends)
    assert (outage.download, outage.typing) == (math.inf, math.inf)
    assert 0.5 <= outage.newcomer < 3


NUMBER_BYTES = 8


class Resuming:
    """A tunnel for streams that outlive their connections, in its simplest form: each end keeps all that it has ever sent.

    A connection over the link begins with the stream's number, and each end then says how much it has got of the other's.
    """

    def __init__(self, nursery: trio.Nursery, dialled: int, service: int) -> None:
        self.nursery = nursery
        self.dialled = dialled
        self.service = service
        self.private: dict[int, Half] = {}

    async def visit(self, visitor: trio.SocketStream) -> None:
        """Be the public end for a visitor."""
        number = id(visitor)
        async with trio.open_nursery() as nursery:
            half = Half(visitor)

            async def read() -> None:
                await half.read()
                nursery.cancel_scope.cancel("the visitor is gone")

            nursery.start_soon(read)
            while True:
                with suppress(OSError, trio.BrokenResourceError):
                    async with await trio.open_tcp_stream(HOST, self.dialled) as tunnel:
                        await tunnel.send_all(number.to_bytes(NUMBER_BYTES, "big"))
                        await half.carry(tunnel)
                await trio.sleep(0.05)

    async def serve(self, tunnel: trio.SocketStream) -> None:
        """Be the private end of a connection over the link."""
        with suppress(trio.BrokenResourceError):
            number = int.from_bytes(await exactly(tunnel, NUMBER_BYTES), "big")
            if number not in self.private:
                half = self.private[number] = Half(await trio.open_tcp_stream(HOST, self.service))
                self.nursery.start_soon(half.read)
            await self.private[number].carry(tunnel)


class Half:
    """One end of a stream: its plain connection, what came from there, and how much went there."""

    def __init__(self, plain: trio.SocketStream) -> None:
        self.plain = plain
        self.sent = bytearray()
        self.written = 0
        self.more = trio.Event()

    async def read(self) -> None:
        async with self.plain:
            with suppress(trio.BrokenResourceError):
                async for data in self.plain:
                    self.sent += data
                    self.more.set()
                    self.more = trio.Event()

    async def carry(self, tunnel: trio.SocketStream) -> None:
        """Go on over a connection until it is lost."""
        await tunnel.send_all(self.written.to_bytes(NUMBER_BYTES, "big"))
        known = int.from_bytes(await exactly(tunnel, NUMBER_BYTES), "big")

        async def send() -> None:
            at = known
            while True:
                while at < len(self.sent):
                    piece = bytes(self.sent[at : at + 65_536])
                    at += len(piece)
                    await tunnel.send_all(piece)
                await self.more.wait()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                async for data in tunnel:
                    self.written += len(data)
                    with trio.CancelScope(shield=True):  # it counts as written
                        await self.plain.send_all(data)
                nursery.cancel_scope.cancel("it has ended")
        except* trio.BrokenResourceError:
            pass


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := await stream.receive_some(size - len(data))):
            raise trio.BrokenResourceError
        data += more
    return data


async def test_streams_that_are_resumed_after_a_cut() -> None:
    """They go on over another connection, byte for byte."""
    outage = Outage(seconds=0.5, patience=5, reset=True)
    async with linked(crossing=False) as ends, trio.open_nursery() as nursery:
        assert ends.link is not None
        visit: list[int] = []
        for service in (ends.visit.bulk, ends.visit.requests):
            entrance = free_port()
            tunnel = Resuming(nursery, entrance, service)
            ends.link.open((HOST, entrance), await serve(nursery, tunnel.serve))
            visit.append(await serve(nursery, tunnel.visit))
        await outage.happen(attrs.evolve(ends, visit=Ports(*visit)))
        nursery.cancel_scope.cancel("seen")
    assert 0.5 <= outage.download < 4
    assert 0.5 <= outage.typing < 4
    assert 0.5 <= outage.newcomer < 4


async def test_streams_that_go_on_after_a_cut() -> None:
    outage = Outage(seconds=0.5, patience=5, reset=True)
    async with linked(crossing=False) as ends:
        await outage.happen(ends)
    assert 0.5 <= outage.download < 3
    assert 0.5 <= outage.typing < 3
    assert 0.5 <= outage.newcomer < 3


async def test_newcomers_who_reach_the_other_service() -> None:
    """They are not served, and nothing is wrong with the measurement."""
    outage = Outage(seconds=0.1, patience=1, reset=True)
    async with linked(crossing=False) as ends:
        async with trio.open_nursery() as nursery:
            exchanged = False

            async def handle(stream: trio.SocketStream) -> None:
                nonlocal exchanged
                if exchanged:
                    await serve_download(stream)
                exchanged = True
                await say_back(stream)

            visit = Ports(ends.visit.bulk, await serve(nursery, handle))
            await outage.happen(attrs.evolve(ends, visit=visit))
            nursery.cancel_scope.cancel("seen")
    assert outage.newcomer == math.inf


async def test_nobody_waits_for_an_end_that_is_gone() -> None:
    """It ends by itself during the cut, as OpenSSH's client does, and nothing is expected any more."""
    outage = Outage(seconds=1.5, patience=60, reset=False)
    program = "import time; time.sleep(1.5)"
    async with linked(crossing=True, program=program) as ends:
        await outage.happen(ends)
    assert (outage.download, outage.typing) == (math.inf, math.inf)


@pytest.mark.parametrize("offset", [0, 65_535, 65_536, 100_000])
def test_a_wrong_byte_of_a_download(offset: int) -> None:
    sent = array("Q", range(16_384)).tobytes()
    wrong = bytearray(sent)
    wrong[offset] ^= 1
    download = Download()
    for start in range(0, len(sent), 30_000):
        download.take(sent[start : start + 30_000])
    assert download.received == len(sent)
    download = Download()
    with pytest.raises(FailedError, match=f"at offset {offset}$"):
        for start in range(0, len(sent), 30_000):
            download.take(bytes(wrong[start : start + 30_000]))
    download = Download()
    with pytest.raises(FailedError, match="wrong byte"):  # some are missing
        download.take(sent[:80_000] + sent[80_008:])


# --- chains ---


async def test_a_program_that_ends_ends_the_measurement() -> None:
    with pytest.RaisesGroup(FailedError, flatten_subgroups=True) as caught:
        async with open_site() as site:
            await site.run("short", sys.executable, "-c", "print('no more'); raise SystemExit(3)")
            await trio.sleep(5)
    assert "short ended with 3: no more" in str(caught.value.exceptions)


async def test_processor_and_memory_of_a_program_and_its_children() -> None:
    child = "sum(range(10**7)); import time; print('done', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    async with open_site() as site:
        program = await site.run("family", sys.executable, "-c", parent)
        await program.wait_words("done")
        assert 0.05 < program.processor_seconds < 5
        assert 10 * 2**20 < program.resident_bytes < 100 * 2**20


# --- rivals ---


def put_program(folder: Path, name: str, script: str) -> None:
    """Write a program that is found before any other of its name."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("built", "file", "told"),
    [
        ("--with-stream=dynamic --modules-path={0}", False, "libnginx-mod-stream"),
        ("--with-stream=dynamic --modules-path={0}", True, "load_module {0}/ngx_stream_module.so;"),
        ("--with-stream --modules-path={0}", False, ""),
        ("--with-http_ssl_module --with-stream", False, ""),
    ],
)
async def test_what_nginx_needs_for_streams(
    built: str, file: bool, told: str, tmp_path: Path
) -> None:
    """Without its module it would only say that it does not know the word `stream`."""
    if file:
        (tmp_path / "ngx_stream_module.so").touch()
    put_program(tmp_path, "nginx", f"echo 'configure arguments: {built.format(tmp_path)}' >&2")
    try:
        line = await stream_module(tmp_path / "nginx")
    except MissingError as error:
        line = str(error)
    assert told.format(tmp_path) in line
    assert bool(line) == bool(told)


@pytest.mark.parametrize(
    ("chain", "missing"),
    [(FRP, "frps"), (FRP_PLAIN, "frps"), (CHISEL, "chisel"), (NAT, "nat-server")],
)
async def test_a_rival_that_is_not_here_is_told_in_a_line(
    chain: Chain, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.RaisesGroup(MissingError, flatten_subgroups=True) as caught:
        async with open_site() as site:
            await chain.build(site, Ports(free_port(), free_port()))
    [error] = caught.value.exceptions
    assert re.fullmatch(rf"{missing} is not installed \(.+ on the PATH\)", str(error))


async def test_what_is_missing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    results = Results()
    await run_suite([NAT], scenarios.SCENARIOS, scenarios.QUICK, results)
    assert results.left_out.keys() == {NAT.name}
    assert "not installed" in results.left_out[NAT.name]
    assert not results.failures


STAND_INS = {
    "frps": """
import tomllib
told = tomllib.load(open(sys.argv[2], "rb"))
listen(told["bindAddr"], told["bindPort"])
""",
    "frpc": """
import tomllib
told = tomllib.load(open(sys.argv[2], "rb"))
socket.create_connection((told["serverAddr"], told["serverPort"]))
for proxy in told["proxies"]:
    listen("127.0.0.1", proxy["remotePort"])
""",
    "chisel": """
words = sys.argv[2:]
if sys.argv[1] == "server":
    assert "--reverse" in words
    listen(words[words.index("--host") + 1], int(words[words.index("--port") + 1]))
else:
    host, port = words[0].removeprefix("http://").split(":")
    socket.create_connection((host, int(port)))
    for word in words[1:]:
        letter, host, port, *home = word.split(":")
        assert letter == "R"
        listen(host, int(port))
""",
    "nat-server": """
import yaml
told = yaml.safe_load(open("server.yml"))["Server"]
for key in ("ControllerAddr", "TunnelAddr"):
    host, port = told[key].split(":")
    listen(host, int(port))
for port in told["VisitPort"]:
    listen("::", port)
""",
    "nat-client": """
import pathlib, yaml
told = yaml.safe_load(open("client.yml"))["Client"]
for key in ("ControllerAddr", "TunnelServerAddr"):
    host, port = told[key].split(":")
    socket.create_connection((host, int(port)))
taken = len(list(pathlib.Path().glob("nat-client-*.out"))) - 1  # ports are handed out in turn
visit = yaml.safe_load(open("server.yml"))["Server"]["VisitPort"][taken]
print("2026/11/28 14:35:02 \\x1b[32m[VisitAddress]", told["PublicServerAddr"] + f":{visit}\\x1b[0m", flush=True)
""",
}
"""What a rival's programs read and where they listen, for a machine that has not got them: they carry nothing."""

LISTENING = """
import socket, sys, time
kept = []
def listen(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kept.append(socket.create_server((host, port), family=family))
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins before all other programs."""
    for name, script in STAND_INS.items():
        file = tmp_path / f"{name}.py"
        file.write_text(f"{LISTENING}{script}time.sleep(60)\n")
        put_program(tmp_path, name, f'exec {sys.executable} {file} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("round_trip", [0, ROUND_TRIP])
@pytest.mark.parametrize("chain", [FRP, FRP_PLAIN, CHISEL, NAT], ids=lambda chain: chain.name)
async def test_the_ends_of_a_rival_are_told_the_same(chain: Chain, round_trip: float) -> None:
    """They find each other, over a path as well, and listen where visitors will connect."""
    async with open_site(round_trip) as site:
        home = Ports(free_port(), free_port())
        ends = await chain.build(site, home)
        await wait_listening(ends.visit.bulk, ends.visit.requests)
        assert ends.visit.bulk != ends.visit.requests
        if chain in (FRP, FRP_PLAIN):
            server, client = (
                tomllib.loads((site.folder / f"{name}.toml").read_text())
                for name in ("frps", "frpc")
            )
            local = {proxy["remotePort"]: proxy["localPort"] for proxy in client["proxies"]}
            assert local == {ends.visit.bulk: home.bulk, ends.visit.requests: home.requests}
            plain = {"tls": {"enable": False}, "tcpMux": False}
            assert client.get("transport") == (plain if chain is FRP_PLAIN else None)
            assert server.get("transport") == ({"tcpMux": False} if chain is FRP_PLAIN else None)
        if chain is NAT:  # trionat reads the files of NAT as they are
            loaded = load("server", file=site.folder / "server.yml", environ={}).server
            assert set(loaded.visit_port) == {ends.visit.bulk, ends.visit.requests}
            assert loaded.max_tcp_conn_num == 2
            load("client", file=site.folder / "client.yml", environ={})


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("[VisitAddress] example.com:20001\n", 20001),
        ("12:00:01 \x1b[32m[VisitAddress]\x1b[0m  127.0.0.1:20001 \x1b[0m\n", 20001),
        ("12:00:01 [VisitAddress] none\n", None),
    ],
)
def test_where_the_visitors_of_nat_connect(line: str, port: int | None) -> None:
    if port is None:
        with pytest.raises(FailedError, match="no port"):
            visit_port(line)
    else:
        assert visit_port(line) == port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
async def test_listening_on_all_addresses_counts(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        with trio.fail_after(5):
            await wait_listening(port)
    monkeypatch.setattr("bench.program.START_TIMEOUT", 0.1)
    with pytest.raises(FailedError, match=str(port)):
        await wait_listening(port)


# --- comparing ---


def results(**figures: dict[str, list[float]]) -> Results:
    """Return results with these figures of each round, by measure and chain."""
    made = Results()
    measures = {measure.key: measure for measure in (RATE, TIME)}
    for key, chains in figures.items():
        for chain, rounds in chains.items():
            for number, figure in enumerate(rounds):
                made.add(chain, number, {measures[key]: figure})
    return made


def test_rounds_are_compared_with_themselves() -> None:
    made = results(rate={"trionat": [10, 100, 50], "nginx twice": [10, 50, 100]})
    assert made.summary(RATE, "trionat") == Summary(50, 10, 100)
    assert made.ratio(RATE, "trionat", "nginx twice") == Summary(1.0, 0.5, 2.0)
    assert made.ratio(RATE, "trionat", "bore") is None


@pytest.mark.parametrize(
    ("measure", "bound", "other", "reached"),
    [
        (RATE, 0.9, NGINX, True),
        (RATE, 1.1, NGINX, False),
        (TIME, 4.0, None, True),
        (TIME, 3.9, None, False),
        (TIME, 0.5, NGINX, True),
        (TIME, 0.4, NGINX, False),
        (TIME, 0.4, NGINX_ENCRYPTED, None),
    ],
)
def test_targets(measure: Measure, bound: float, other: Chain | None, reached: bool | None) -> None:
    made = results(
        rate={"trionat": [100.0], "nginx twice": [100.0]},
        time={"trionat": [4.0], "nginx twice": [8.0]},
    )
    target = Target(chain=ENCRYPTED, measure=measure, bound=bound, other=other)
    assert target.reached(made) is reached


# --- the page ---


async def nothing(_ends: object, _effort: object) -> dict[Measure, float]:
    return {}


THINGS = scenarios.Scenario(
    name="things",
    title="Things",
    text="Done {visits} times in {cut_seconds:g} s.",
    measures=(RATE, TIME),
    run=nothing,
)


def report_of(made: Results, *chains: Chain, targets: tuple[Target, ...] = ()) -> Report:
    return Report(
        date="2026-11-23",
        effort=scenarios.Effort(),
        facts={"processor": "some", "load before": "3.00"},
        versions={"nginx": "1.22"},
        chains=chains,
        scenarios=(THINGS,),
        targets=targets,
        results=made,
    )


def test_what_is_best_is_bold() -> None:
    """Those that encrypt are compared with each other, and so are those that do not; without a relay nothing is compared."""
    made = results(
        rate={
            "no relay": [9.0],
            "nginx twice": [5.0, 7.0, 6.0],
            "bore": [5.6],
            "rathole": [6.4],
            "nginx twice, TLS": [2.0],
            "trionat": [1.0, 3.0, 1.5],
        },
        time={
            "no relay": [0.1],
            "nginx twice": [4.01],
            "bore": [3.99],
            "rathole": [9.0],
            "nginx twice, TLS": [8.0],
        },
    )
    made.left_out["frp"] = "not here"
    chains = (DIRECT, NGINX, BORE, RATHOLE, NGINX_ENCRYPTED, FRP, ENCRYPTED)
    page = report_of(made, *chains).as_markdown()
    lines = page.splitlines()
    assert "| no relay | 9 | 0.1 |" in lines
    assert "| nginx twice | **6** (5-7) | **4.0** |" in lines
    assert "| bore | **6** | **4.0** |" in lines
    assert "| rathole | **6** | 9.0 |" in lines
    assert "| nginx twice, TLS | **2** | 8.0 |" in lines
    assert "| trionat | **2** (1-3) |  |" in lines
    assert (
        "These encrypt: nginx twice, TLS; trionat. These do not: nginx twice; bore; rathole."
        in page
    )
    assert "Done 20 times in 10 s." in lines


def test_what_does_not_happen_has_a_word(tmp_path: Path) -> None:
    never = math.inf
    made = Results()
    for chain, rounds in {
        "nginx twice": [never, never, never],
        "bore": [11.0, never, never],
        "rathole": [10.1, 12.0, never],
    }.items():
        for number, figure in enumerate(rounds):
            made.add(chain, number, {scenarios.CUT.download: figure})
            made.add(chain, number, {scenarios.CUT.typing: never})
    scenario = attrs.evolve(THINGS, measures=scenarios.CUT.measures)
    chains = (NGINX, BORE, RATHOLE)
    target = Target(chain=BORE, measure=scenarios.CUT.download, bound=11)
    report = attrs.evolve(report_of(made, *chains), scenarios=(scenario,), targets=(target,))
    report.write(tmp_path)
    lines = (tmp_path / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    assert "| nginx twice | lost | lost |  |" in lines
    assert "| bore | lost (11.0-lost) | lost |  |" in lines
    assert "| rathole | **12.0** (10.1-lost) | lost |  |" in lines
    row = (
        "| bore | Things: a download goes on after |  | lost (11.00-lost) | at most 11 s | **no** |"
    )
    assert row in lines
    told = json.loads((tmp_path / "benchmarks/results.json").read_text())
    figures = told["figures"]["cut_download"]["chains"]["bore"]
    assert figures == {"median": None, "least": 11.0, "most": None, "rounds": [11.0, None, None]}
    if find_spec("matplotlib"):
        plots = import_module("bench.plots")
        plots.draw(report, tmp_path)
        assert (tmp_path / "benchmarks/things.png").read_bytes().startswith(b"\x89PNG")


def test_the_texts_of_the_scenarios_name_what_is_done() -> None:
    for effort in (scenarios.Effort(), scenarios.QUICK):
        texts = [s.text.format_map(attrs.asdict(effort)) for s in scenarios.SCENARIOS]
        assert any(f"with {effort.idle:,} visitors" in text for text in texts)
        assert sum(f"for {effort.cut_seconds:g} s" in text for text in texts) == 2


def test_the_page(tmp_path: Path) -> None:
    made = results(
        rate={"trionat": [1000.0, 1500.0, 1100.0], "nginx twice": [2000.0, 2000.0, 2000.0]}
    )
    made.left_out["bore"] = "no cargo"
    made.failures.append("round 2, things, trionat: it broke")

    targets = (
        Target(chain=ENCRYPTED, measure=RATE, bound=0.9, other=NGINX),
        Target(chain=ENCRYPTED, measure=TIME, bound=5),
    )
    report = report_of(made, NGINX, ENCRYPTED, targets=targets)
    report.write(tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    assert "| trionat | 1,100 (1,000-1,500) |  |" in lines
    assert "| nginx twice | 2,000 |  |" in lines
    compared = (
        "| trionat | Things: rate | x nginx twice | 0.55 (0.50-0.75) | at least 0.9 | **no** |"
    )
    assert compared in lines
    assert "| trionat | Things: time |  |  | at most 5 ms | not measured |" in lines
    assert {"- bore: no cargo", "- round 2, things, trionat: it broke"} <= set(lines)
    assert "busy" in page
    assert re.findall(r"\]\(([^)]+)\)", page) == ["benchmarks/things.png"]
    written = json.loads((tmp_path / "benchmarks/results.json").read_text())
    assert written["figures"]["rate"]["chains"]["trionat"]["rounds"] == [1000.0, 1500.0, 1100.0]
    assert [target["reached"] for target in written["targets"]] == [False, None]
