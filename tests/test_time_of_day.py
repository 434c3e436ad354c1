"""No deadline, interval or order in trionat goes by the time of day, so a clock that is set breaks nothing."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import trionat

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(trionat.__file__).parent

TIME_OF_DAY = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.localtime",
    "time.gmtime",
}

WHERE_IT_BELONGS = {
    "backup/collection.py": "when a backup was made",
    "backup/restoration.py": "the name of a folder that is moved aside",
    "cli/diagnostics.py": "whether a certificate has run out",
    "cli/screen/client_page.py": "when it is tried again, for people",
    "cli/ticket.py": "until when a ticket is good",
    "cli/token.py": "until when a token is good",
    "cli/traffic.py": "the month to show",
    "cli/user.py": "when an account was made, and whether it has expired",
    "client/inspector/recorder.py": "when a visitor came, for people",
    "doctor/certificates.py": "whether a certificate has run out",
    "doctor/database.py": "how far the clock is from the database's",
    "doctor/login.py": "how far the clock is from the server's",
    "doctor/redis.py": "how far the clock is from that of Redis",
    "log/record.py": "when something was logged, as the clock on the wall has it",
    "server/accounts/accounts.py": "whether an account has expired",
    "server/certificates/acme_client.py": "from when on a certificate is valid, and until when an authority wants to be left alone",
    "server/certificates/order.py": "whether a certificate has run out",
    "server/certificates/renewal.py": "when to renew a certificate, which has to survive a restart",
    "server/console/authentication.py": "whether an account has expired",
    "server/console/directory.py": "whether an account or a token has expired",
    "server/console/sampler.py": "when a point of the plots was, for people",
    "server/admin/metrics.py": "since when a session has been up, for people",
    "server/accounts/name_owners.py": "how long ago a name was used, which has to survive a restart",
    "server/sessions/examination.py": "what a client compares its clock with",
    "server/events/audit.py": "when somebody has changed something",
    "server/names/access_log.py": "when a request came, as the clock on the wall has it",
    "server/accounts/first_user.py": "when the first account was made",
    "server/accounts/traffic.py": "the month to which traffic belongs",
    "server/console/tokens.py": "whether a token or its account has expired",
    "server/console/api/users.py": "when an account was made, and whether it has expired",
    "server/console/api/tickets.py": "until when a ticket is good",
    "server/console/api/tokens.py": "when a token was made, and whether it has expired",
    "server/console/api/traffic.py": "the month and the days to show",
    "server/console/api/names.py": "how long ago a name was used",
    "server/cluster/identity.py": "the name under which keys are kept that the cluster's replace",
    "server/cluster/node.py": "how old a kick of another node is, so that none can be told again",
    "store/mysql/accounts.py": "when an account was made",
    "store/mysql/store.py": "whether an administrator is left that may log in",
    "store/private_file.py": "how old a temporary file is that a killed process has left",
    "store/sqlite.py": "when an account was made, and whether an administrator is left that may log in",
    "transport/certificate.py": "from when on a certificate is valid",
}
"""Who may ask for the time of day, and what for. All of it is data; `trio.current_time` and `time.monotonic` are for waiting."""


def calls(tree: ast.AST) -> Iterator[str]:
    """Return what is called in a module, as `object.method`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            match node.func.value:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    yield f"{name}.{node.func.attr}"


def test_who_asks_for_the_time_of_day() -> None:
    asking: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if call in TIME_OF_DAY:
                asking[path.relative_to(SOURCE).as_posix()] += 1
    assert set(asking) == set(WHERE_IT_BELONGS)


def test_no_module_takes_such_a_function_by_its_bare_name() -> None:
    """Or the test above would not see it."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {f"time.{alias.name}" for alias in node.names} & TIME_OF_DAY, path
