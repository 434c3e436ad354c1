"""`trionat status`, `tasks` and `kick` as a person sees them, at a server that answers what the test wants."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from typer.testing import CliRunner

from tests.unit.commands import Trionat
from trionat.cli import app
from trionat.cli.status import over
from trionat.cli.table import Table
from trionat.config.reload import Reloaded
from trionat.server.admin.messages import (
    AskStatus,
    AskTasks,
    AskWhere,
    Drained,
    Holding,
    Kicked,
    KickSession,
    KickUser,
    KickVisitor,
    Lifted,
    Request,
    Whereabouts,
    decode_request,
    encode_answer,
    encode_error,
)
from trionat.server.admin.snapshot import (
    BannedView,
    CertificateView,
    ClusterView,
    NodeView,
    QueuedView,
    ReservedView,
    ServerView,
    ServiceView,
    SessionView,
    Snapshot,
    VisitorView,
    WorkerView,
)
from trionat.server.admin.socket import open_admin_socket
from trionat.server.admin.task_tree import Branch
from trionat.server.upgrade.upgrade import Upgraded

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no Unix sockets in Python")

OPERATING = Path(__file__).parents[2] / "docs/operating.md"
WHEN = "2026-11-23T12:00:00.000Z"


def make_visitors(served: int, waiting: int) -> tuple[VisitorView, ...]:
    return tuple(
        VisitorView(
            number=4711 + number,
            address=f"198.51.100.9:{5000 + number}",
            port=60000,
            since=WHEN,
            seconds=7,
            received=1200,
            sent=0,
            waiting=number >= served,
        )
        for number in range(served + waiting)
    )


ALICE = SessionView(
    uid=1,
    user="alice",
    client="Client-NAT",
    dialect="native",
    address="203.0.113.7:49116",
    since=WHEN,
    seconds=26.9 * 3600,
    round_trip=0.0234,
    services=(
        ServiceView(name="web", local="127.0.0.1:8080", port=60000),
        ServiceView(name="ssh", local="127.0.0.1:22", port=60003),
    ),
    visitors=make_visitors(3, 2),
    tunnels_idle=5,
    tunnels_busy=3,
    received=300_000_000,
    sent=40_000_000,
    rate=1_234_567.8,
)
BOB = attrs.evolve(
    ALICE,
    uid=12,
    user="bob",
    address="198.51.100.23:1",
    seconds=90,
    round_trip=0.048,
    services=(ServiceView(name="web", local="127.0.0.1:8080", port=60001),),
    visitors=(),
    tunnels_idle=2,
    tunnels_busy=0,
    received=12_000,
    sent=0,
    rate=0.0,
)
SERVER = ServerView(
    name="Server-NAT",
    version="0.1.0",
    since=WHEN,
    seconds=3.5 * 86400,
    control="0.0.0.0:8007",
    tunnel="0.0.0.0:8008",
    ports_free=0,
    ports_held=4,
    session_limit=4,
    queue_places=128,
    rate=1_234_567.8,
    stopping=False,
)
SNAPSHOT = Snapshot(
    server=SERVER,
    sessions=(ALICE, BOB),
    queue=(
        QueuedView(
            position=1,
            user="carol",
            client="Client-NAT",
            address="203.0.113.80:49116",
            since=WHEN,
            seconds=12.3,
        ),
    ),
    reserved=(
        ReservedView(
            user="dave",
            ports=(60002,),
            since=WHEN,
            seconds=8.7,
            remaining=21.3,
            waiting=1,
            visitors=(attrs.evolve(make_visitors(0, 1)[0], number=4801, port=60002),),
        ),
    ),
    refused={"VisitorRate": 12, "MaxVisitors": 3976},
    banned=(BannedView(network="192.0.2.7", remaining=17.0),),
)
NOBODY = Snapshot(server=SERVER, sessions=(), queue=(), reserved=(), refused={}, banned=())


# -- the table --------------------------------------------------------------------------------------------------------


def draw(snapshot: Snapshot, width: int | None = 80, *, visitors: bool = False) -> list[str]:
    return Table(width).draw(snapshot, visitors=visitors)


def test_the_documentation_shows_it_as_it_is() -> None:
    [sample] = re.findall(r"\$ trionat status\n(.+?)```", OPERATING.read_text(), re.DOTALL)
    assert sample == "\n".join([*draw(SNAPSHOT), ""])


def test_workers() -> None:
    workers = (
        WorkerView(name="w1", state="up", pid=11, sessions=3, restarts=0),
        WorkerView(name="w2", state="up", pid=12, sessions=2, restarts=1),
    )
    lines = draw(attrs.evolve(SNAPSHOT, workers=workers))
    (line,) = [line for line in lines if "w1" in line]
    assert f"\n{line}\n" in OPERATING.read_text()
    away = WorkerView(name="w3", state="away", pid=None, sessions=0, restarts=7)
    lines = draw(attrs.evolve(NOBODY, workers=(away,)))
    assert "  workers    w3 away" in lines
    values = attrs.asdict(attrs.evolve(NOBODY, workers=(away,)))
    assert Snapshot.of(values).workers == (away,)
    del values["workers"]  # of a server before there were any
    assert Snapshot.of(values) == NOBODY


def test_groups() -> None:
    def member(uid: int, group: str = "web", *, down: bool = False) -> SessionView:
        service = ServiceView(name="", local="", port=60000, down=down)
        return attrs.evolve(ALICE, uid=uid, group=group, services=(service,))

    sessions = (member(1), ALICE, member(4, down=True), member(7), member(9, "a\nb"))
    snapshot = attrs.evolve(SNAPSHOT, sessions=sessions)
    lines = draw(snapshot)
    limit = snapshot.server.session_limit
    assert any(line.startswith(f"  sessions   3 of {limit} (5 clients), ") for line in lines)
    at = lines.index("Groups:")
    assert lines[at - 1] == lines[at + 3] == ""
    assert lines[at + 1] == "  web of alice at 60000: uid 1, 4 (service down), 7"
    assert f"Groups:\n{lines[at + 1]}\n" in OPERATING.read_text()
    assert "\n" not in lines[at + 2]
    assert Snapshot.of(attrs.asdict(snapshot)) == snapshot
    reserved = (attrs.evolve(SNAPSHOT.reserved[0], group="web"),)
    lines = draw(attrs.evolve(NOBODY, reserved=reserved))
    assert "  60002  dave in the group web, for 21s more, visitors waiting: 1" in lines


def test_certificates() -> None:
    retry, name = "2026-11-23T12:04:00+00:00", "tunnel.example.com"
    certificates = (
        CertificateView(name=f"api.{name}", state="own", ends="2027-05-01T00:00:00+00:00"),
        CertificateView(
            name=f"blog.{name}", state="missing", reason="no such record\n", retry=retry
        ),
        CertificateView(name=f"shop.{name}", state="valid", ends="2027-02-20T00:00:00+00:00"),
        CertificateView(
            name="late", state="late", ends="2026-11-29T00:00:00+00:00", reason="x", retry=retry
        ),
        CertificateView(name="new", state="ordering"),
    )
    lines = draw(attrs.evolve(NOBODY, certificates=certificates), None)
    at = lines.index("Certificates:")
    assert lines[at + 1 :] == [
        f"  api.{name}  of your own, good until 2027-05-01",
        f"  blog.{name}  none yet; no such record\\n; tried again at 2026-11-23 12:04 UTC",
        f"  shop.{name}  good until 2027-02-20",
        "  late  NOT RENEWED IN TIME, good until 2026-11-29; x; tried again at 2026-11-23 12:04 UTC",
        "  new  is being ordered",
    ]
    assert f"Certificates:\n{lines[at + 3]}\n" in OPERATING.read_text()
    values = attrs.asdict(attrs.evolve(NOBODY, certificates=certificates))
    assert Snapshot.of(values).certificates == certificates
    del values["certificates"]  # of a server before there were any
    assert Snapshot.of(values) == NOBODY


def test_nobody() -> None:
    lines = draw(NOBODY)
    assert lines[-1] == "No client is connected."
    assert "is stopping" not in lines[0]
    stopping = attrs.evolve(NOBODY, server=attrs.evolve(SERVER, stopping=True))
    assert draw(stopping)[0] == "Server-NAT, trionat 0.1.0, up 3d, is stopping"


def test_500_sessions_at_80_columns() -> None:
    """The longest of everything: texts are cut off, numbers never, and every line still begins with its uid."""
    sessions = tuple(
        attrs.evolve(
            ALICE,
            uid=10_000 + number,
            user="a user with a long name" * 10,
            address="[2001:db8:1234:5678:9abc:def0:1234:5678]:65535",
            services=tuple(
                ServiceView(name="", local="", port=port)
                for port in range(60000, 60020, 1 + number % 2)
            ),
            seconds=99 * 86400,
            received=999_900_000_000_000,
            rate=999_900_000_000.0,
        )
        for number in range(500)
    )
    lines = draw(attrs.evolve(SNAPSHOT, sessions=sessions))
    assert max(map(len, lines)) == 80
    rows = [line for line in lines if line.startswith("10")]
    assert len(rows) == 500
    for row in rows:
        assert re.search(r"3\+2 +3/8 +999\.9G +999\.9T +23ms +99d", row)
    wide = draw(attrs.evolve(SNAPSHOT, sessions=sessions), None)
    assert any("2001:db8:1234:5678:9abc:def0:1234:5678" in line for line in wide)
    narrow = draw(attrs.evolve(SNAPSHOT, sessions=sessions), 20)
    assert max(map(len, narrow)) == 20


def test_visitors() -> None:
    lines = draw(attrs.evolve(SNAPSHOT, sessions=(BOB, ALICE)), visitors=True)
    at = next(number for number, line in enumerate(lines) if line.startswith("  1 alice"))
    assert lines[at + 1] == "    v4711 served 7s 198.51.100.9:5000 at 60000, 1.2k in, 0 out"
    assert (
        lines[at + 5] == "    v4715 waiting, here for 7s 198.51.100.9:5004 at 60000, 1.2k in, 0 out"
    )
    assert lines[at + 6] == ""
    at = next(number for number, line in enumerate(lines) if line.startswith("  60002  dave"))
    assert (
        lines[at + 1] == "    v4801 waiting, here for 7s 198.51.100.9:5000 at 60002, 1.2k in, 0 out"
    )


def test_a_narrowed_ticket_is_shown_with_what_it_is_for() -> None:
    restrictions = ("only names=shop ports=60001", "until 2026-11-29T12:00:00Z")
    alice = attrs.evolve(ALICE, restrictions=restrictions)
    lines = draw(attrs.evolve(SNAPSHOT, sessions=(BOB, alice)))
    at = next(number for number, line in enumerate(lines) if line.startswith("  1 alice"))
    assert lines[at + 1] == (
        "    narrowed ticket: only names=shop ports=60001; until 2026-11-29T12:00:00Z"
    )
    assert sum("narrowed" in line for line in lines) == 1
    snapshot = attrs.evolve(NOBODY, sessions=(alice,))
    values = attrs.asdict(snapshot)
    assert Snapshot.of(values) == snapshot
    del values["sessions"][0]["restrictions"]  # of a server before there were any
    assert Snapshot.of(values).sessions == (ALICE,)


def test_names_cannot_forge_lines() -> None:
    evil = "a\n\x1b[2Jb"
    snapshot = attrs.evolve(
        SNAPSHOT,
        server=attrs.evolve(SERVER, name=evil),
        sessions=(attrs.evolve(ALICE, user=evil),),
        queue=(attrs.evolve(SNAPSHOT.queue[0], user=evil),),
        reserved=(attrs.evolve(SNAPSHOT.reserved[0], user=evil),),
    )
    text = "".join(draw(snapshot, None, visitors=True))
    assert text.isprintable()
    assert text.count("a\\n") == 4


@pytest.mark.parametrize(
    ("seconds", "round_trip", "shown"),
    [
        (0.0, None, "- 0s"),
        (119.9, 0.0004, "0ms 119s"),
        (120, 0.9994, "999ms 2m"),
        (7199, 0.9996, "1.0s 119m"),
        (7200, 2.34, "2.3s 2h"),
        (172_799, 0.1, "100ms 47h"),
        (172_800, 0.1, "100ms 2d"),
    ],
)
def test_times(seconds: float, round_trip: float | None, shown: str) -> None:
    session = attrs.evolve(ALICE, seconds=seconds, round_trip=round_trip)
    [row] = [
        line
        for line in draw(attrs.evolve(NOBODY, sessions=(session,)))
        if line.startswith("  1 alice")
    ]
    assert re.sub(" +", " ", row).endswith(f" {shown} 203.0.113.7")


# -- the commands -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(folder: Path, *answers: bytes) -> Iterator[list[Request]]:
    """A server that gives these answers, one after another, whatever is asked; yields what was asked."""
    folder.mkdir(exist_ok=True)
    asked: list[Request] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(decode_request(connection.recv(10_000)))
                connection.sendall(answer)

    with open_admin_socket(folder) as listener:
        assert listener is not None
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        yield asked
        thread.join(10)
        assert not thread.is_alive(), "it was asked less often"


@pytest.fixture
def status(nothing_configured: None, tmp_path: Path) -> Trionat:
    return Trionat(folder=tmp_path / "state", command="status")


@pytest.fixture
def kick(nothing_configured: None, tmp_path: Path) -> Trionat:
    return Trionat(folder=tmp_path / "state", command="kick")


@posix
def test_status(status: Trionat) -> None:
    with answering(status.folder, encode_answer(SNAPSHOT), encode_answer(SNAPSHOT)) as asked:
        assert status().out.splitlines() == draw(SNAPSHOT, None)
        assert status("--visitors").out.splitlines() == draw(SNAPSHOT, None, visitors=True)
    assert asked == [AskStatus(), AskStatus()]


@posix
def test_status_for_scripts(status: Trionat) -> None:
    with answering(status.folder, encode_answer(SNAPSHOT), b'{"answer":{"of":"tomorrow"}}\n'):
        [line] = status("--json").out.splitlines()
        values = json.loads(line)
        assert isinstance(values["sessions"], list)
        assert isinstance(values["queue"], list)
        assert Snapshot.of(values) == SNAPSHOT
        assert json.loads(status("--json").out) == {"of": "tomorrow"}


@posix
@pytest.mark.parametrize(
    "values",
    [
        {},
        attrs.asdict(SNAPSHOT) | {"server": {}},
        attrs.asdict(SNAPSHOT) | {"queue": [{"new": 1}]},
    ],
    ids=["nothing", "less", "more"],
)
def test_a_server_of_another_version(status: Trionat, values: dict[str, Any]) -> None:
    with answering(status.folder, json.dumps({"answer": values}).encode() + b"\n"):
        assert "another version" in status.fails(3)


@posix
def test_a_server_that_does_not_know_the_request(status: Trionat) -> None:
    with answering(status.folder, encode_error("this server knows no request 'status'")):
        assert status.fails(3) == "this server knows no request 'status'"


UPGRADED = Upgraded(
    pid=2, version="0.2", old_pid=1, old_version="0.1", clients=1, visitors=1, seconds=0.1
)

HALF_EDITED = """\
Server:
  StateDir: {}
  Nonsense: 1
  VisitPort: many
Cluster:
  Node: "?"
Database:
  Hots: x
Sesame: open
"""


@posix
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("status", encode_answer(SNAPSHOT)),
        ("tasks", encode_answer(Branch("main", ()))),
        ("kick alice", encode_answer(Kicked(sessions=(1,)))),
        ("unban 203.0.113.7", encode_answer(Lifted(is_lifted=True))),
        ("drain", encode_answer(Drained(sessions=0))),
        ("reload", encode_answer(Reloaded())),
        ("upgrade", encode_answer(UPGRADED)),
        (
            "cluster where alice",
            encode_answer(Whereabouts(node="n1", holdings=(Holding(node="n1", points=()),))),
        ),
    ],
)
def test_a_half_edited_file_is_not_in_the_way_of_a_running_server(
    nothing_configured: None, tmp_path: Path, words: str, answer: bytes
) -> None:
    folder = tmp_path / "state"
    Path("server.yml").write_text(HALF_EDITED.format(folder))
    with answering(folder, answer):
        result = CliRunner().invoke(app, words.split(), catch_exceptions=False)
        assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("events test", 2, "server.yml:6: Cluster.Node: "),  # what it calls the server
        ("cluster init", 2, "server.yml:6: Cluster.Node: "),
        ("cluster status", 2, "server.yml:6: Cluster.Node: "),
    ],
)
def test_a_half_edited_file_stops_by_what_is_needed_alone(
    nothing_configured: None, tmp_path: Path, words: str, code: int, told: str
) -> None:
    Path("server.yml").write_text(HALF_EDITED.format(tmp_path / "state"))
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == code
    assert result.stderr.startswith(f"trionat: {told}")
    assert "VisitPort" not in result.stderr


@posix
def test_a_reload_and_an_upgrade_by_a_half_edited_file_say_what_the_server_says(
    nothing_configured: None, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    Path("server.yml").write_text(HALF_EDITED.format(folder))
    problems = Reloaded(problems=("server.yml:3: it says",))
    with answering(folder, encode_answer(problems), encode_error("server.yml:3: it says")):
        reloaded = CliRunner().invoke(app, ["reload"])
        assert (reloaded.exit_code, reloaded.stderr.splitlines()) == (
            2,
            ["trionat: server.yml:3: it says", "trionat: nothing has changed"],
        )
        assert CliRunner().invoke(app, ["upgrade"]).exit_code == 3


@posix
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Server: [", "server.yml:1: this is not YAML: "),
        ("Server:\n  StatDir: x\n", "server.yml:2: Server.StatDir: unknown key: did you mean"),
        ("Sever:\n  StateDir: x\n", "server.yml:1: Sever: unknown section: did you mean Server?"),
        ("Server:\n  StateDir: [x]\n", "server.yml:2: Server.StateDir: has to be a single value"),
        ("Server: x\n", "server.yml:1: Server: is a section: "),
    ],
)
def test_a_file_that_does_not_say_which_folder_is_told_unless_the_folder_is_named(
    status: Trionat, text: str, told: str
) -> None:
    Path("server.yml").write_text(text)
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"trionat: {told}")
    with answering(status.folder, encode_answer(SNAPSHOT)):
        assert status().code == 0


@posix
def test_watching(status: Trionat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second, until Ctrl-C, which is how it is meant to end."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with answering(status.folder, *3 * [encode_answer(SNAPSHOT)]):
        outcome = status("--watch", "--json")
    assert outcome.code == 0
    assert slept == [1.0, 1.0, 1.0]
    assert [Snapshot.of(json.loads(line)) for line in outcome.out.splitlines()] == 3 * [SNAPSHOT]

    slept.clear()
    with answering(status.folder, *3 * [encode_answer(SNAPSHOT)]):
        text = status("--watch").out
    assert "\x1b" not in text  # no terminal
    assert text == "\n\n".join(3 * ["\n".join(draw(SNAPSHOT, None))]) + "\n"


def test_nothing_is_cleared_behind_a_line_that_may_be_full() -> None:
    """The cursor of many a terminal is still on its last cell."""
    assert over(["a" * 80, "b"]) == f"\x1b[H\x1b[K{'a' * 80}\n\x1b[Kb\n\x1b[J"


@posix
def test_tasks(nothing_configured: None, tmp_path: Path) -> None:
    tree = Branch(
        "main",
        (
            Branch("a", (Branch("a1", ()), Branch("a2\x1b", ()))),
            Branch("b", (Branch("b1", ()),)),
        ),
    )
    tasks = Trionat(folder=tmp_path / "state", command="tasks")
    with answering(tasks.folder, encode_answer(tree)) as asked:
        assert tasks().out.splitlines() == [
            "main",
            "├─ a",
            "│  ├─ a1",
            "│  └─ a2\\x1b",
            "└─ b",
            "   └─ b1",
        ]
    assert asked == [AskTasks()]


@posix
@pytest.mark.parametrize(
    ("words", "request_"),
    [
        ("42", KickSession(42)),
        ("v42", KickVisitor(42)),
        ("alice", KickUser("alice")),
        ("--user 42", KickUser("42")),
        ("--user v42", KickUser("v42")),
        ("--session 42", KickSession(42)),
        ("--visitor 42", KickVisitor(42)),
        ("--visitor v42", KickVisitor(42)),
        ("42 --user", KickUser("42")),
        ("v42x", KickUser("v42x")),
        ("٤٢", KickUser("٤٢")),
    ],
)
def test_who_is_meant(kick: Trionat, words: str, request_: Request) -> None:
    with answering(kick.folder, encode_answer(Kicked(sessions=(1,)))) as asked:
        assert kick(*words.split()).code == 0
    assert asked == [request_]


@posix
def test_who_was_kicked(kick: Trionat) -> None:
    kicked = Kicked(sessions=(1, 12), queued=1, reserved=(60003, 60002))
    with answering(
        kick.folder, encode_answer(kicked), encode_answer(Kicked(visitors=(42,), queued=2))
    ):
        assert kick("alice").out.splitlines() == [
            "session 1 is ended",
            "session 12 is ended",
            "1 client is sent away from the queue",
            "visit ports 60002-60003 are not reserved any more",
        ]
        assert kick("v42").out.splitlines() == [
            "2 clients are sent away from the queue",
            "visitor v42 is reset",
        ]


@posix
def test_a_kick_in_a_cluster(kick: Trionat) -> None:
    """Who was mistyped must not pass for somebody who was sent away."""
    answers = [
        Kicked(told=2, elsewhere=0),
        Kicked(told=1, elsewhere=1),
        Kicked(sessions=(7,), told=2, elsewhere=3),
    ]
    with answering(kick.folder, *map(encode_answer, answers)):
        assert kick("alcie").out.splitlines() == [
            "there is no client of a user 'alcie' here",
            "2 other nodes told to do the same: no session of that user is known there; is the name right?",
        ]
        assert kick("alice").out.splitlines() == [
            "there is no client of a user 'alice' here",
            "1 other node told to do the same: 1 session of that user is known there",
        ]
        assert kick("alice").out.splitlines() == [
            "session 7 is ended",
            "2 other nodes told to do the same: 3 sessions of that user are known there",
        ]


@posix
def test_nobody_is_there_to_kick(kick: Trionat) -> None:
    nobody = encode_answer(Kicked())
    with answering(kick.folder, nobody, nobody, nobody):
        assert "no session 42 (a user whose name" in kick.fails(2, "42")
        assert "no visitor v42" in kick.fails(2, "v42")
        assert "no client of a user 'alice'" in kick.fails(2, "alice")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("0", "'0' is not a valid uid"),
        ("v0", "'v0' is not a valid visitor"),
        ("--session alice", "'alice' is not a valid uid"),
        ("--visitor alice", "'alice' is not a valid visitor"),
        ("--user --session 1", "only one of"),
    ],
)
def test_who_cannot_be_meant(kick: Trionat, words: str, reason: str) -> None:
    assert reason in kick.fails(2, *words.split())


@posix
@pytest.mark.parametrize("words", ["status", "status --json --watch", "tasks", "kick 42"])
def test_no_server(nothing_configured: None, tmp_path: Path, words: str) -> None:
    command, *arguments = words.split()
    trionat = Trionat(folder=tmp_path / "state", command=command)
    assert trionat.fails(3, *arguments) == (
        f"{trionat.folder}: no server is up on this state folder: start it, or name another one (--state-dir)"
    )
    assert not trionat.folder.exists()


CLUSTER = ClusterView(
    node="n1",
    away=None,
    claims=3,
    nodes=(
        NodeView(name="n1", address="10.0.0.11:8009", silent=0.5, sessions=2, visitors=7),
        NodeView(
            name="n2", address="10.0.0.12:8009", silent=1, sessions=0, visitors=0, drained=True
        ),
    ),
)


def test_nodes_of_the_cluster() -> None:
    lines = Table(None).draw(attrs.evolve(SNAPSHOT, cluster=CLUSTER), visitors=False, cluster=True)
    assert lines[-3:] == [
        "Nodes of the cluster:",
        "  n1  10.0.0.11:8009  beat 0.5 s ago, sessions: 2, visitors: 7",
        "  n2  10.0.0.12:8009  beat 1 s ago, sessions: 0, visitors: 0, is drained",
    ]


def test_a_server_that_is_no_node_says_so() -> None:
    lines = Table(None).draw(SNAPSHOT, visitors=False, cluster=True)
    assert lines[-1].startswith("This server is no node of a cluster: ")
    assert lines[:-2] == Table(None).draw(SNAPSHOT, visitors=False)


@posix
def test_where_a_user_is(nothing_configured: None, tmp_path: Path) -> None:
    cluster = Trionat(folder=tmp_path / "state", command="cluster")
    held = (
        Holding(node="n1", points=(60001, 60000, "shop.example.com")),
        Holding(node="n2", points=(60007,), is_group=True),
        Holding(node="n2", points=()),
    )
    answers = [
        Whereabouts(node="n1", holdings=held),
        Whereabouts(node="n1", holdings=held[:1], more=4000, away="no route\x1b"),
        Whereabouts(node="n1"),
        Whereabouts(node=None),
    ]
    with answering(cluster.folder, *map(encode_answer, answers)) as asked:
        assert cluster("where", "alice").out.splitlines() == [
            "n1  60000-60001, shop.example.com",
            "n2  60007 (a group)",
            "n2  a client of a group",
        ]
        assert cluster("where", "alice").out.splitlines() == [
            r"n1 may know old things only: Redis is away: no route\x1b",
            "n1  60000-60001, shop.example.com",
            "… and 4000 more",
        ]
        assert "no client of a user 'alice' is known" in cluster.fails(2, "where", "alice")
        assert "this server is no node of a cluster" in cluster.fails(3, "where", "alice")
    assert asked == [AskWhere("alice")] * 4
