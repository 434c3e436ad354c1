"""The text at `/metrics`, and what is said of it: names, types and values; the page, the rules and the dashboard know the same metrics."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.unit.test_docs import rows
from trionat.config.server import ServerConfig
from trionat.server.admin.readings import Present, Readings
from trionat.server.admin.snapshot import (
    CertificateView,
    ClusterView,
    NodeView,
    ServerView,
    WorkerView,
)
from trionat.server.exposition.collector import ServerCollector
from trionat.server.exposition.exposition import Exposition
from trionat.server.refusals import Bound
from trionat.server.tally import MOST_SHOWN, OTHERS, Tally
from trionat.transport.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "examples/monitoring"
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")

SERVER = ServerView(
    name="Name",
    version="1.2.3",
    since="2026-11-23T12:00:00.000Z",
    seconds=5.0,
    control="0.0.0.0:8007",
    tunnel="0.0.0.0:8008",
    ports_free=3,
    ports_held=1,
    session_limit=4,
    queue_places=128,
    rate=0.0,
    stopping=False,
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def counted() -> Tally:
    """Return a tally in which everything has been counted."""
    tally = Tally()
    tally.begin_session(1)
    tally.end_session(1, "alice", 1000, 20)
    tally.handshakes.update({"done": 3, "failed": 2})
    tally.first_byte.note(0.007)
    tally.visitor_duration.note(61)
    tally.loop_lag.note(0.0004)
    tally.note_request("shop.example.org", 200, 0.03)
    tally.note_request(OTHERS, 404, 0.0)
    return tally


def readings(tally: Tally, **others: Any) -> Readings:
    """Return what is read of a server of which everything is known."""
    values: dict[str, Any] = {
        "server": SERVER,
        "present": Present(
            sessions=2, served=3, waiting=4, reserved=5, queued=6, idle=7, busy=8, handshakes=9
        ),
        "sessions": tally.sessions,
        "handshakes": dict(tally.handshakes),
        "refused": {"MaxVisitors": 12},
        "traffic": tally.traffic.figures,
        "requests": tally.requests.figures,
        "first_byte": tally.first_byte.figures,
        "visitor_duration": tally.visitor_duration.figures,
        "request_duration": tally.request_duration.figures,
        "loop_lag": tally.loop_lag.figures,
        "banned": 2,
        "has_names": True,
        "certificates": (
            CertificateView(
                name="shop.example.org", state="valid", ends="2027-01-01T00:00:00+00:00"
            ),
            CertificateView(name="new.example.org", state="missing"),
        ),
        "quotas": {"alice": (900, 1000), "bob": (0, 0)},
        "workers": (
            WorkerView(name="w1", state="up", pid=os.getpid(), sessions=2, restarts=1),
            WorkerView(name="w2", state="away", pid=None, sessions=0, restarts=4),
        ),
        "cluster": ClusterView(
            node="n1",
            away=None,
            claims=7,
            nodes=(
                NodeView(name="n1", address="a:1", silent=0.5, sessions=1, visitors=1),
                NodeView(name="n2", address="b:1", silent=99.0, sessions=1, visitors=1),
                NodeView(
                    name="n3", address="c:1", silent=None, sessions=1, visitors=1, drained=True
                ),
            ),
        ),
    }
    return Readings(**values | others)


def collector(**others: Any) -> ServerCollector:
    return ServerCollector(
        readings=readings(counted(), **others), store_is_up=True, certificate_ends=1.8e9
    )


def text_of(source: ServerCollector) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(source)
    return generate_latest(registry).decode()


def samples(families: Iterable[Metric]) -> dict[str, float]:
    """Return all values, each by its name and labels, as they stand in the text."""
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


def names_of(text: str) -> dict[str, str]:
    """Return the types of all metrics by their names, as they stand in the text."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))


def test_every_value_is_there_under_its_name() -> None:
    found = samples(read_text(text_of(collector())))
    expected = {
        'trionat_build_info{version="1.2.3"}': 1,
        "trionat_sessions": 2,
        "trionat_session_slots": 4,
        "trionat_sessions_started_total": 1,
        "trionat_queued_clients": 6,
        "trionat_queue_places": 128,
        "trionat_reserved_leases": 5,
        'trionat_visit_ports{state="free"}': 3,
        'trionat_visit_ports{state="held"}': 1,
        'trionat_tunnels{state="idle"}': 7,
        'trionat_tunnels{state="busy"}': 8,
        "trionat_handshakes_pending": 9,
        'trionat_handshakes_total{result="done"}': 3,
        'trionat_handshakes_total{result="failed"}': 2,
        "trionat_draining": 0,
        'trionat_visitors{state="served"}': 3,
        'trionat_visitors{state="waiting"}': 4,
        'trionat_time_to_first_byte_seconds_bucket{le="0.005"}': 0,
        'trionat_time_to_first_byte_seconds_bucket{le="0.01"}': 1,
        'trionat_time_to_first_byte_seconds_bucket{le="+Inf"}': 1,
        "trionat_time_to_first_byte_seconds_count": 1,
        "trionat_time_to_first_byte_seconds_sum": 0.007,
        'trionat_visitor_duration_seconds_bucket{le="60.0"}': 0,
        'trionat_visitor_duration_seconds_bucket{le="300.0"}': 1,
        "trionat_visitor_duration_seconds_sum": 61,
        'trionat_refusals_total{reason="MaxVisitors"}': 12,
        'trionat_refusals_total{reason="VisitorWait"}': 0,
        "trionat_banned_networks": 2,
        'trionat_relayed_bytes_total{direction="received"}': 1000,
        'trionat_relayed_bytes_total{direction="sent"}': 20,
        'trionat_user_relayed_bytes_total{direction="received",user="alice"}': 1000,
        'trionat_user_relayed_bytes_total{direction="sent",user="all others"}': 0,
        'trionat_user_quota_used_bytes{user="alice"}': 900,
        'trionat_user_quota_bytes{user="alice"}': 1000,
        'trionat_http_requests_total{name="shop.example.org",status="2xx"}': 1,
        'trionat_http_requests_total{name="all others",status="4xx"}': 1,
        "trionat_http_request_duration_seconds_count": 1,
        'trionat_certificates{state="valid"}': 1,
        'trionat_certificates{state="missing"}': 1,
        'trionat_certificates{state="expired"}': 0,
        'trionat_certificate_expiry_timestamp_seconds{name="shop.example.org"}': 1798761600,
        "trionat_store_up": 1,
        'trionat_event_loop_lag_seconds_bucket{le="0.001"}': 1,
        "trionat_server_certificate_expiry_timestamp_seconds": 1.8e9,
        "trionat_redis_up": 1,
        'trionat_cluster_nodes{state="up"}': 1,
        'trionat_cluster_nodes{state="silent"}': 1,
        'trionat_cluster_nodes{state="drained"}': 1,
        "trionat_cluster_claims": 7,
        'trionat_workers{state="up"}': 1,
        'trionat_workers{state="away"}': 1,
        'trionat_worker_restarts_total{worker="w2"}': 4,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert {key for key in found if "trionat_refusals" in key} == {
        f'trionat_refusals_total{{reason="{bound}"}}' for bound in Bound
    }
    if Path("/proc/self/stat").exists():
        assert found["process_open_fds"] > 2
        assert found['trionat_worker_resident_memory_bytes{worker="w1"}'] > 2**20
        assert found['trionat_worker_cpu_seconds_total{worker="w1"}'] > 0


def test_what_a_server_does_not_have_is_not_there() -> None:
    bare = readings(Tally(), has_names=False, workers=(), cluster=None, certificates=(), quotas={})
    text = text_of(ServerCollector(readings=bare, store_is_up=False))
    found = samples(read_text(text))
    assert found["trionat_store_up"] == 0
    words = ("worker", "cluster", "redis", "certificate", "http")
    assert [name for name in names_of(text) if any(word in name for word in words)] == []


def test_it_is_bounded_whoever_is_there() -> None:
    tally = Tally()
    for number in range(5000):
        tally.begin_session(number)
        tally.end_session(number, f"user{number}", number, number)
        tally.note_request(f"name{number}.example.org", 200, 0.1)
    many = readings(
        tally,
        quotas={f"user{number}": (number, 10_000) for number in range(5000)},
        certificates=tuple(
            CertificateView(
                name=f"name{number}.example.org",
                state="valid",
                ends=f"2027-01-{number % 28 + 1:02}T00:00:00+00:00",
            )
            for number in range(5000)
        ),
    )
    text = text_of(ServerCollector(readings=many, store_is_up=True))
    found = samples(read_text(text))
    assert len(found) < 1200
    assert len(text) < 150_000
    users = {key for key in found if key.startswith("trionat_user_relayed_bytes_total")}
    assert len(users) == 2 * (MOST_SHOWN + 1)
    assert 'trionat_user_quota_used_bytes{user="user4999"}' in found  # who is nearest to the end
    assert 'trionat_certificate_expiry_timestamp_seconds{name="name0.example.org"}' in found
    assert found['trionat_certificates{state="valid"}'] == 5000


def test_what_users_are_called_breaks_nothing() -> None:
    tally = Tally()
    evil = ['a"b', "a\\b", "a\nb", '"}\nevil 1', "<script>", "\u202eabc", "ü", OTHERS]
    for number, user in enumerate(evil):
        tally.begin_session(number)
        tally.end_session(number, user, 1, 1)
    text = text_of(ServerCollector(readings=readings(tally), store_is_up=True))
    found = {
        sample.labels["user"]
        for family in read_text(text)
        for sample in family.samples
        if sample.name == "trionat_user_relayed_bytes_total"
    }
    assert found == set(evil)
    assert "evil 1\n" not in text.replace('\\nevil 1"', "")


# --- who asks ---


@attrs.define
class Asked:
    """The commands of a server, and its store; counts how often it is asked."""

    reads: int = 0
    store_is_there: bool = True

    async def readings(self) -> Readings:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        tally = counted()
        tally.sessions = self.reads
        return readings(tally)

    async def store_answers(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.store_is_there


def exposition(asked: Asked) -> Exposition:
    return Exposition(commands=asked, store_answers=asked.store_answers)  # type: ignore[arg-type]


async def test_both_formats() -> None:
    shown = exposition(Asked())
    content_type, body = await shown.render("text/html, */*;q=0.1")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    plain = samples(read_text(body.decode()))
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    content_type, body = await shown.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    shared = samples(open_metrics.text_string_to_metric_families(body.decode()))  # type: ignore[no-untyped-call]
    changing = re.compile("process|cpu|resident|fds|sessions_started")
    kept = [key for key in plain if not changing.search(key)]
    assert {key: plain[key] for key in kept} == {key: shared[key] for key in kept}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=a.b",
        "application/openmetrics-text;version=1.0.0;escaping=\u2028evil",
        "text/plain;version=99999999999999999999",
        ";;,,;=;",
    ],
)
async def test_nonsense_is_not_said_back(accept: str) -> None:
    content_type, _ = await exposition(Asked()).render(accept)
    assert "evil" not in content_type
    assert "9999" not in content_type


async def test_a_crowd_costs_one_look_a_second() -> None:
    asked = Asked()
    shown = exposition(asked)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(shown.render)
    assert asked.reads == 1
    await trio.sleep(1.05)
    _, body = await shown.render()
    assert (asked.reads, b"trionat_sessions_started_total 2.0\n" in body) == (2, True)


async def test_a_store_that_is_away() -> None:
    _, body = await exposition(Asked(store_is_there=False)).render()
    assert b"\ntrionat_store_up 0.0\n" in body


async def test_the_certificate_of_the_control_port(tmp_path: Path) -> None:
    key, certificate = make_certificate(["localhost"])
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "certificate.pem").write_bytes(certificate)
    config = ServerConfig(
        certificate=tmp_path / "certificate.pem", certificate_key=tmp_path / "key.pem"
    )
    asked: Any = Asked()
    opened = await Exposition.open(config, asked, asked.store_answers)
    assert opened.certificate_ends == 253402300799  # those of our own have no end
    assert (
        await Exposition.open(ServerConfig(), asked, asked.store_answers)
    ).certificate_ends is None


# --- what is said of it ---


@needs_promtool
def test_promtool_finds_nothing_to_say_against_the_names() -> None:
    result = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text_of(collector()),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_page_has_every_metric_with_its_type() -> None:
    documented = {row[0]: row[1] for row in rows(PAGE, "## All metrics") if row[0] != "metric"}
    assert documented == names_of(text_of(collector()))


def test_the_page_says_when_a_metric_is_absent() -> None:
    absent = {row[0]: row[4] for row in rows(PAGE, "## All metrics") if row[0] != "metric"}
    everything = set(names_of(text_of(collector())))
    for words, others in (
        ("without `Server.Domain", {"has_names": False}),
        ("outside of a cluster", {"cluster": None}),
        ("with one process", {"workers": ()}),
    ):
        missing = everything - set(names_of(text_of(collector(**others))))
        assert missing == {name for name, when in absent.items() if words in when}
    bare = ServerCollector(readings=readings(Tally()), store_is_up=True, certificate_ends=None)
    missing = everything - set(names_of(text_of(bare)))
    assert missing == {
        name for name, when in absent.items() if "without `Server.Certificate" in when
    }


def expressions() -> list[str]:
    """Return every expression of the rules and the dashboard, with the dashboard's variables filled in."""
    rules = re.findall(
        r"^        expr: (?:>-\n((?:          .+\n)+)|(.+)\n)",
        (MONITORING / "rules.yml").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    dashboard = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    panels = [target["expr"] for each in dashboard["panels"] for target in each.get("targets", ())]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"][1:]]
    filled = [
        text.replace("$instance", ".*").replace("$__rate_interval", "1m")
        for text in panels + variables
    ]
    assert len(rules) > 10
    assert len(panels) > 30
    return [long or short for long, short in rules] + filled


def test_rules_and_dashboard_know_no_other_metrics() -> None:
    types = names_of(text_of(collector()))
    known = {"up"} | set(types)
    for name, kind in types.items():
        if kind == "histogram":
            known |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    mentioned = {
        name
        for text in expressions()
        for name in re.findall(r"\b(?:trionat_\w+|process_\w+|up(?=\{))", text)
    }
    assert mentioned - known == set()
    assert len(mentioned) > 25


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((MONITORING / "grafana.json").read_text(encoding="utf-8"))
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not places & mine, panel["title"]
        places |= mine
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_takes_the_examples(command: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (tmp_path / "monitoring/trionat.token").touch()
    result = subprocess.run(
        ["promtool", *command],
        cwd=tmp_path / "monitoring",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout


RULES = sorted(re.findall(r"- alert: (\w+)", (MONITORING / "rules.yml").read_text("utf-8")))
"""rules.test.yml tries all of them, and so fails where one of them never fires."""


@needs_promtool
@pytest.mark.parametrize("alert", RULES)
def test_a_rule_that_never_fires_is_found(alert: str, tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    rules = tmp_path / "monitoring/rules.yml"
    before, rest = rules.read_text(encoding="utf-8").split(f"- alert: {alert}\n")
    rest = re.sub(r"expr: [\s\S]+?\n( +(?:for|labels):)", r"expr: vector(0) > 1\n\1", rest, count=1)
    rules.write_text(f"{before}- alert: {alert}\n{rest}", encoding="utf-8")
    result = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yml"],
        cwd=tmp_path / "monitoring",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1, result.stdout
    assert f"alertname: {alert}" in result.stdout + result.stderr
