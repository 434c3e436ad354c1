"""The file for a bug report: what helps is in it, and no secret, wherever one was put."""

from __future__ import annotations

import base64
import stat
import zipfile
from typing import TYPE_CHECKING

import pytest
import trio

from tests.e2e import running, services
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.limit(60)

SECRETS = {
    "database password": "DbPass-7731",
    "redis password": "RedisPass-7732",
    "user password": "UserPass-7733",
    "visitor password": "VisitorPass-7734",
    "webhook path": "HookPath7735",
    "webhook secret": "HookSecret-7736",
    "environment": "EnvPass-7737",
    "bearer": "BearerTok-7738",
    "api token": "trn_" + "a7c3" * 13,
    "page key": "PageKey7739",
}


async def test_no_secret_is_in_it(tmp_path: Path) -> None:
    """Some are configured, some stand in files, and all of them in the log, although trionat writes none there."""
    async with running.server(tmp_path / "s") as server:
        state = server.state
        ticket = server.ticket
    ticket_key = (state / "ticket.key").read_bytes()
    private = (state / "server.key").read_text()
    redis_file = tmp_path / "redis-password"
    redis_file.write_text(f"{SECRETS['redis password']}\n")
    log = tmp_path / "server.log"
    told = [
        *SECRETS.values(),
        ticket,
        Ticket.decode(ticket).token.hex(),
        ticket_key.hex(),
        base64.b64encode(ticket_key).decode(),
        private,
        f"Authorization: Bearer {SECRETS['bearer']}",
        f"http://127.0.0.1:4040/?key={SECRETS['page key']}",
        f"redis://u:{SECRETS['redis password']}@h:1/0",
    ]
    told[told.index(SECRETS["bearer"])] = f'{{"token": "{SECRETS["bearer"]}"}}'
    told[told.index(SECRETS["page key"])] = f"https://h/x#{SECRETS['page key']}"
    log.write_text("a line that helps\n" + "".join(f"event {each} end\n" for each in told))
    for name, text in {
        "server.yml": f"""
Server: {{LogFilename: {log}, Domain: tunnel.test, VisitPort: [20001]}}
Database: {{Username: u, Password: {SECRETS["database password"]}, Host: '127.0.0.1:1', DBName: d}}
Cluster: {{Redis: 'redis://127.0.0.1:1', RedisPasswordFile: {redis_file}, Node: n1, NodeAddr: '127.0.0.1:9', KeyFile: {tmp_path}/k}}
Events:
  - {{Url: 'https://hooks.test/{SECRETS["webhook path"]}', Secret: {SECRETS["webhook secret"]}}}
""",
        "client.yml": f"""
Auth: {{Username: ann, Password: {SECRETS["user password"]}}}
Client:
  Ticket: {ticket}
  Services: [{{Local: 127.0.0.1:1, Http: shop, BasicAuth: ['ann:{SECRETS["visitor password"]}']}}]
""",
    }.items():
        (tmp_path / name).write_text(text)
    bundle = tmp_path / "report.zip"
    done = await services.run_trionat(
        *("doctor", "--bundle", bundle, "--state-dir", state),
        cwd=tmp_path,
        TRIONAT_AUTH_PASSWORD=SECRETS["environment"],
    )
    assert done.returncode == 6, done.stderr
    assert b"Traceback" not in done.stderr
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    with zipfile.ZipFile(bundle) as opened:
        texts = {name: opened.read(name).decode() for name in opened.namelist()}
    secrets = {
        **SECRETS,
        "ticket": ticket[12:40],
        "token": Ticket.decode(ticket).token.hex(),
        "ticket key": ticket_key.hex(),
        "ticket key in base64": base64.b64encode(ticket_key).decode()[:40],
        **{f"line {n} of the key": line for n, line in enumerate(private.splitlines()[1:-1])},
    }
    for text in (*texts.values(), done.stdout.decode(), done.stderr.decode()):
        assert [name for name, secret in secrets.items() if secret in text] == []
    assert "a line that helps" in texts["log.txt"]
    assert texts["log.txt"].count("event ") >= len(told)
    assert "Server.Domain\ttunnel.test" in texts["configuration.txt"]
    assert "wrong    database" in texts["doctor.txt"]
    assert '"check": "database"' in texts["doctor.jsonl"]
    assert "trionat 0." in texts["versions.txt"]
    assert "TRIONAT_AUTH_PASSWORD" in texts["machine.txt"]
    assert "README.txt" in texts


async def test_one_that_is_there_stays(tmp_path: Path) -> None:
    """It is told before all the rest is looked at."""
    bundle = tmp_path / "report.zip"
    await trio.Path(bundle).write_bytes(b"mine")
    done = await services.run_trionat(
        *("doctor", "-c", "127.0.0.1:1", "--bundle", bundle), cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"name another one" in done.stderr
    assert await trio.Path(bundle).read_bytes() == b"mine"
