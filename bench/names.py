"""A service by its name beside the same through a port, and beside nginx as a proxy twice: `python -m bench.names`.

What a name costs is TLS at the server, a look at each head, and a second copy of small bodies. So it is compared with what does the same: nginx that ends TLS, before
another nginx in the place of the client, before the service. All of it runs on one machine, with the load; so only the proportions say something.
"""

from __future__ import annotations

import argparse
import json
import re
import ssl
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import attrs
import trio

from bench.chain import open_site
from bench.product import TRIONAT
from bench.program import HOST, MissingError, Program, find, free_port, output_of, wait_listening
from tests.certificates.made import Maker
from trionat.protocol.http.head import Origin, parse_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bench.chain import Site

_NAME: Final = "shop.tunnel.test"
_READY: Final = '"event": "ready"'
_CONNECTED: Final = '"event": "connected"'
_GIB: Final = 2**30
_HEAD: Final = (
    b"GET /products/42?colour=blue&size=m HTTP/1.1\r\nHost: shop.tunnel.test\r\nConnection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="130", "Not?A_Brand";v="99"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: "Linux"\r\n'
    b"Upgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: session=0123456789abcdef; theme=dark\r\n\r\n"
)
"""Of a browser."""


@attrs.frozen
class Target:
    """What is measured: a name by trionat, with TLS or without, a visit port, or nginx. `server` is the program in the middle of it."""

    title: str
    url: str
    server: Program


async def _run(arguments: argparse.Namespace) -> None:
    seconds: int = arguments.seconds
    parsing, writing = _time_head()
    print(f"the head of a browser's request: parsing {parsing:.1f} us, writing {writing:.1f} us")
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(open_site(0))
        targets = await _build(site, arguments.mebibytes)
        found: dict[str, list[list[float]]] = {target.title: [] for target in targets}
        for _ in range(arguments.rounds):
            for target in targets:
                found[target.title].append(await _measure(target, seconds))
        titles = ("requests/s", "us of the server", "new connections/s", "first byte, ms", "MiB/s")
        print(f"\n| median of {arguments.rounds} | {' | '.join(titles)} |")
        print("| --- " * (len(titles) + 1) + "|")
        for title, rounds in found.items():
            medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
            cells = " | ".join(
                f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in medians
            )
            print(f"| {title} | {cells} |")
        by_name = targets[0]
        idle = await _idle_memory(by_name, arguments.idle)
        print(
            f"\nmemory of the server for an idle keep-alive visitor of a name: {idle / 1024:.1f} KiB"
        )


def _time_head() -> tuple[float, float]:
    """Return how long the head of a browser takes to be read, and to be written anew, in microseconds: the best of several rounds."""
    origin, request = Origin("192.0.2.7", "https"), parse_request(_HEAD)

    def best_of(job: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(1000):
                job()
            best = min(best, (time.perf_counter() - began) / 1000)
        return best * 1e6

    return best_of(lambda: parse_request(_HEAD)), best_of(lambda: request.encode(origin))


async def _build(site: Site, mebibytes: int) -> Sequence[Target]:
    folder = site.folder
    maker = Maker()
    key, chain = maker.chain("*.tunnel.test", HOST)
    own = trio.Path(folder / "own")
    await own.mkdir()
    await (own / "wild.key").write_bytes(key)
    await (own / "wild.crt").write_bytes(chain)
    web = trio.Path(folder / "web")
    await web.mkdir()
    await (web / "small").write_text("x" * 100)
    await (web / "large").write_bytes(bytes(mebibytes * 2**20))
    service, inner, outer, outer_plain = (free_port() for _ in range(4))
    nginx = find("nginx", package="nginx-light")
    await site.run(
        "service",
        nginx,
        "-e",
        "stderr",
        "-c",
        _nginx(folder, "service", f"listen {HOST}:{service}; root {web};"),
    )
    proxied = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;"
    upstream = "upstream {0} {{ server " + HOST + ":{1}; keepalive 64; }}"
    inner_conf = _nginx(
        folder,
        "inner",
        f"listen {HOST}:{inner}; location / {{ proxy_pass http://next; {proxied} }}",
        upstream.format("next", service),
    )
    outer_conf = _nginx(
        folder,
        "outer",
        f"listen {HOST}:{outer} ssl; listen {HOST}:{outer_plain}; ssl_certificate {own}/wild.crt; ssl_certificate_key {own}/wild.key;"
        f" ssl_protocols TLSv1.3; location / {{ proxy_pass http://next; {proxied} }}",
        upstream.format("next", inner),
    )
    await site.run("inner", nginx, "-e", "stderr", "-c", inner_conf)
    between = await site.run("outer", nginx, "-e", "stderr", "-c", outer_conf)
    state, http, https = folder / "state", free_port(), free_port()
    file = folder / "server.yml"
    await trio.Path(file).write_text(f"Server: {{CertificatesDir: {own}, PlainHttp: true}}\n")
    serve: list[object] = [
        *TRIONAT,
        "serve",
        "--json",
        "--controller-addr",
        f"{HOST}:0",
        "--config",
        file,
    ]
    serve += [
        "--tunnel-addr",
        f"{HOST}:0",
        "--expose-port",
        "0",
        "--state-dir",
        state,
        "--domain",
        "tunnel.test",
    ]
    serve += ["--http-addr", f"{HOST}:{http}", "--https-addr", f"{HOST}:{https}"]
    server = await site.run("serve", *serve)
    ticket = json.loads(await server.wait_words(_READY))["ticket"]
    command = [
        *TRIONAT,
        "connect",
        "--json",
        "--state-dir",
        folder / "client",
        f"http:{service}@shop",
        service,
    ]
    client = await site.run("connect", *command, TRIONAT_TICKET=ticket)
    connected = json.loads(await client.wait_words(_CONNECTED))
    port = connected["services"][1]["public"].rpartition(":")[2]
    await wait_listening(service, inner, outer, http, https)
    await trio.sleep(1)
    return [
        Target("trionat, a name, TLS", f"https://{_NAME}:{https}", server),
        Target("nginx twice, TLS", f"https://{_NAME}:{outer}", between),
        Target("trionat, a name", f"http://{_NAME}:{http}", server),
        Target("trionat, a port", f"http://{_NAME}:{port}", server),
        Target("nginx twice", f"http://{_NAME}:{outer_plain}", between),
    ]


def _nginx(folder: Path, name: str, server: str, more: str = "") -> Path:
    """Write the configuration of an nginx with one process."""
    temporary = " ".join(
        f"{each}_temp_path {folder}/{name}-{each};"
        for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / f"{name}.conf"
    file.write_text(
        f"daemon off; master_process off; pid {folder}/{name}.pid; error_log stderr; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 100000000; {temporary} {more} server {{ {server} }} }}\n"
    )
    return file


async def _measure(target: Target, seconds: int) -> list[float]:
    before = target.server.processor_seconds
    requests = await _wrk(target, seconds, 16, "/small")
    spent = (target.server.processor_seconds - before) / (requests * seconds) * 1e6
    new = await _wrk(target, seconds, 16, "/small", "--header", "Connection: close")
    resolve = _resolve(target)
    times = []
    for _ in range(10):
        output = await output_of(
            [
                *_CURL,
                *resolve,
                "--output",
                "/dev/null",
                "--write-out",
                "%{time_starttransfer}",
                f"{target.url}/small",
            ],
            within=20,
        )
        times.append(float(output) * 1000)
    output = await output_of(
        [
            *_CURL,
            *resolve,
            "--output",
            "/dev/null",
            "--write-out",
            "%{speed_download}",
            f"{target.url}/large",
        ],
        within=120,
    )
    return [requests, spent, new, statistics.median(times), float(output) / 2**20]


_CURL: Final = ("curl", "--silent", "--show-error", "--insecure", "--http1.1")


def _resolve(target: Target) -> list[str]:
    port = target.url.rpartition(":")[2]
    return ["--resolve", f"{_NAME}:{port}:{HOST}"]


async def _wrk(target: Target, seconds: int, connections: int, path: str, *more: str) -> float:
    """Return how many requests a second wrk has got an answer to."""
    scheme, _, rest = target.url.partition("://")
    port = rest.rpartition(":")[2]
    output = await output_of(
        [
            *(find("wrk", package="wrk"), "--threads", "1", "--connections", connections),
            *(
                "--duration",
                f"{seconds}s",
                "--header",
                f"Host: {_NAME}",
                *more,
                f"{scheme}://{HOST}:{port}{path}",
            ),
        ],
        within=seconds + 20,
    )
    if "Non-2xx" in output:
        raise SystemExit(f"{target.title}: {output}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", output)
    assert found, output
    return float(found[1])


async def _idle_memory(target: Target, visitors: int) -> float:
    """Return what the server holds for each visitor that has had an answer and waits, in bytes."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = int(target.url.rpartition(":")[2])
    request = f"GET /small HTTP/1.1\r\nHost: {_NAME}\r\n\r\n".encode()
    streams: list[trio.SSLStream[trio.SocketStream]] = []
    before = target.server.resident_bytes
    for _ in range(visitors):
        stream = trio.SSLStream(
            await trio.open_tcp_stream(HOST, port),
            context,
            server_hostname=_NAME,
            https_compatible=True,
        )
        await stream.send_all(request)
        await stream.receive_some()
        streams.append(stream)
    held = target.server.resident_bytes - before
    for stream in streams:
        await trio.aclose_forcefully(stream)
    return held / visitors


def main() -> int:
    """Measure and print. Exit with 1 where something is not installed."""
    parser = argparse.ArgumentParser(prog="python -m bench.names", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mebibytes", type=int, default=1024, help="of the download")
    parser.add_argument("--idle", type=int, default=200, help="visitors that wait")
    try:
        trio.run(_run, parser.parse_args())
    except MissingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
