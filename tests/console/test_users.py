"""Accounts, their tickets, traffic and names, by the API of a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from tests.console.serving import Api, serving
from trionat.protocol.ticket import Ticket
from trionat.server.accounts.tickets import verify_ticket
from trionat.server.state_folder import prepare_state
from trionat.store.base import Flush, Limits
from trionat.store.passwords import verify_password

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.mariadb import MariaDB

pytestmark = pytest.mark.limit(90)

NO_LIMITS = dict.fromkeys(attrs.fields_dict(Limits))


@pytest.fixture(params=["sqlite", "mariadb"])
def opener(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[], AbstractAsyncContextManager[Api]]:
    """Serves on an embedded store, or on a database."""
    if request.param == "sqlite":
        return lambda: serving(tmp_path)
    mariadb: MariaDB = request.getfixturevalue("mariadb")
    database = mariadb.new_database()
    return lambda: serving(tmp_path, database)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as api:
        yield api


async def test_an_account_from_its_beginning_to_its_end(
    opener: Callable[[], AbstractAsyncContextManager[Api]],
) -> None:
    async with opener() as api:
        wish: dict[str, Any] | None = {
            "name": "zoé",
            "password": "correct horse",
            "expires_at": "2099-01-31",
            "limits": {"sessions": 2, "visit_ports": [60002, 60000, 60002], "names": ["Shop"]},
        }
        answer = await api.ask("POST", "/users", wish)
        assert answer.status == 201, answer.text
        path = answer.headers["location"].removeprefix("/api/v1")
        assert path == "/users/zo%C3%A9"
        made = answer.values
        assert await api.get(path) == made
        assert datetime.fromisoformat(made.pop("created_at")).tzinfo == UTC
        limits = {**NO_LIMITS, "sessions": 2, "visit_ports": [60000, 60002], "names": ["shop"]}
        assert made == {
            "name": "zoé",
            "admin": False,
            "disabled": False,
            "has_password": True,
            "expires_at": "2099-02-01T00:00:00+00:00",
            "expired": False,
            "limits": limits,
            "damage": None,
            "used_this_month": 0,
        }
        found = await api.store.find_user("zoé")
        assert found is not None
        assert await verify_password(found.password, "correct horse")
        assert "correct horse" not in answer.text
        assert found.password not in answer.text

        change = {"limits": {"sessions": None, "bandwidth": 1000}, "expires_at": None}
        changed: dict[str, Any] = {}
        for _ in range(2):
            changed = (await api.ask("PATCH", path, change)).values
            assert changed["expires_at"] is None
            assert changed["limits"] == {**limits, "sessions": None, "bandwidth": 1000}
        for name in ("admin", "disabled"):
            for value in (True, True, False):
                changed = (await api.ask("PATCH", path, {name: value})).values
                assert changed[name] is value
        assert (await api.ask("PATCH", path, {})).values == changed

        for _ in range(2):
            body = {"password": "another one"}
            assert (await api.ask("PUT", f"{path}/password", body)).status == 204
        later = await api.store.find_user("zoé")
        assert later is not None
        assert await verify_password(later.password, "another one")
        assert later.ticket_salt != found.ticket_salt

        assert (await api.ask("DELETE", path)).status == 204
        for method, wish in (("DELETE", None), ("GET", None), ("PATCH", {"admin": True})):
            assert (await api.ask(method, path, wish)).fails(404, "not_found") == (
                "there is no user 'zoé'"
            )
        (await api.ask("PUT", f"{path}/password", {"password": "long enough"})).fails(
            404, "not_found"
        )
        (await api.ask("DELETE", f"{path}/tickets")).fails(404, "not_found")
        (await api.ask("POST", f"{path}/tickets", {})).fails(404, "not_found")


async def test_of_many_who_make_the_same_account_one_does(
    opener: Callable[[], AbstractAsyncContextManager[Api]],
) -> None:
    answers: list[tuple[int, str]] = []

    async def make(api: Api, number: int) -> None:
        body = {"name": "zoe", "password": f"password {number}"}
        answer = await api.ask("POST", "/users", body)
        answers.append((answer.status, body["password"]))

    async with opener() as api:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(make, api, number)
        assert sorted(status for status, _ in answers) == [201, 409, 409, 409]
        ((_, password),) = [each for each in answers if each[0] == 201]
        found = await api.store.find_user("zoe")
        assert found is not None
        assert await verify_password(found.password, password)


async def test_accounts_are_listed_in_pages(api: Api) -> None:
    for number in range(5):
        await api.add(f"user {number}".replace(" ", "-"))
    names: list[str] = []
    after = ""
    while True:
        page = await api.get(f"/users?limit=2{after}")
        assert len(page["items"]) <= 2
        names += [user["name"] for user in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert names == ["trionat", *(f"user-{number}" for number in range(5))]
    for wrong in ("limit=0", "limit=1001", "limit=x", "colour=red"):
        field = wrong.partition("=")[0]
        (await api.ask("GET", f"/users?{wrong}")).fails(422, "invalid", field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "password"),
        ({"name": "", "password": "long enough"}, "name"),
        ({"name": "a b", "password": "long enough"}, "name"),
        ({"name": "a/b", "password": "long enough"}, "name"),
        ({"name": "..", "password": "long enough"}, "name"),
        ({"name": "x" * 65, "password": "long enough"}, "name"),
        ({"name": 7, "password": "long enough"}, "name"),
        ({"name": "x", "password": " long enough"}, "password"),
        ({"name": "x", "password": "too-few"}, "password"),
        ({"name": "x", "password": "€" * 1000}, "password"),
        ({"name": "x", "password": "long enough", "admin": "yes"}, "admin"),
        ({"name": "x", "password": "long enough", "expires_at": "soon"}, "expires_at"),
        ({"name": "x", "password": "long enough", "limits": {"sessions": 0}}, "limits.sessions"),
        ({"name": "x", "password": "long enough", "limits": {"sessions": True}}, "limits.sessions"),
        ({"name": "x", "password": "long enough", "limits": {"bandwidth": 0}}, "limits.bandwidth"),
        ({"name": "x", "password": "long enough", "limits": {"monthly_quota": 2**63}}, "limits.monthly_quota"),
        ({"name": "x", "password": "long enough", "limits": {"visit_ports": []}}, "limits.visit_ports"),
        ({"name": "x", "password": "long enough", "limits": {"visit_ports": [0]}}, "limits.visit_ports[0]"),
        ({"name": "x", "password": "long enough", "limits": {"names": ["*.*"]}}, "limits.names"),
        ({"name": "x", "password": "long enough", "limits": {"allow_visitors": ["x"]}}, "limits.allow_visitors"),
        ({"name": "x", "password": "long enough", "limits": {"deny_visitors": "192.0.2.7"}}, "limits.deny_visitors"),
        ({"name": "x", "password": "long enough", "limits": {"colour": "red"}}, "limits.colour"),
        ({"name": "x", "password": "long enough", "colour": "red"}, "colour"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named_and_nothing_is_made(
    api: Api, body: dict[str, object], field: str
) -> None:
    (await api.ask("POST", "/users", body)).fails(422, "invalid", field)
    assert [user["name"] for user in await api.items("/users")] == ["trionat"]
    if "limits" in body:
        change = {"limits": body["limits"]}
        (await api.ask("PATCH", "/users/trionat", change)).fails(422, "invalid", field)
        assert (await api.get("/users/trionat"))["limits"] == NO_LIMITS


async def test_what_is_wrong_in_part_changes_nothing(api: Api) -> None:
    await api.add("alice")
    before = await api.get("/users/alice")
    for wrong, field in (
        ({"expires_at": "soon"}, "expires_at"),
        ({"limits": {"sessions": 1, "names": []}}, "limits.names"),
        ({"colour": "red"}, "colour"),
    ):
        body = {"admin": True, "disabled": True, "limits": {"sessions": 1}, **wrong}
        (await api.ask("PATCH", "/users/alice", body)).fails(422, "invalid", field)
        assert await api.get("/users/alice") == before


async def test_an_ordinary_account_sees_and_changes_only_what_is_its_own(api: Api) -> None:
    alice, _ = await api.add("alice"), await api.add("bob")
    assert [user["name"] for user in await alice.items("/users")] == ["alice"]
    assert (await alice.get("/users/alice"))["name"] == "alice"
    for other in ("bob", "trionat", "nobody"):
        for method, path, body in (
            ("GET", f"/users/{other}", None),
            ("PUT", f"/users/{other}/password", {"password": "long enough"}),
            ("POST", f"/users/{other}/tickets", {}),
            ("DELETE", f"/users/{other}/tickets", None),
            ("POST", f"/users/{other}/kick", None),
            ("GET", f"/traffic?user={other}", None),
            ("GET", f"/traffic/days?user={other}", None),
        ):
            (await alice.ask(method, path, body)).fails(404, "not_found")
    forbidden: list[tuple[str, str, Any]] = [
        ("POST", "/users", {"name": "x", "password": "long enough"}),
        ("PATCH", "/users/alice", {"admin": True}),
        ("PATCH", "/users/alice", {"limits": {"sessions": None}}),
        ("PATCH", "/users/bob", {"admin": True}),
        ("DELETE", "/users/alice", None),
        ("DELETE", "/users/bob", None),
        ("DELETE", "/names/shop.example.org", None),
    ]
    for method, path, body in forbidden:
        (await alice.ask(method, path, body)).fails(403, "forbidden")
    users = {user.name: user for user in await api.store.list_users()}
    assert set(users) == {"alice", "bob", "trionat"}
    assert [name for name, user in users.items() if user.admin] == ["trionat"]
    assert (await alice.ask("DELETE", "/users/alice/tickets")).status == 204


async def test_an_administrator_cannot_take_the_last_way_in_from_itself(api: Api) -> None:
    path = "/users/trionat"
    for body in ({"admin": False}, {"disabled": True}):
        assert "another one has to" in (await api.ask("PATCH", path, body)).fails(409, "conflict")
    (await api.ask("PATCH", path, {"expires_at": "2020-01-01"})).fails(422, "invalid", "expires_at")
    assert "another one has to" in (await api.ask("DELETE", path)).fails(409, "conflict")
    assert (await api.ask("PATCH", path, {"admin": True, "disabled": False})).status == 200
    other = await api.add("alice", admin=True)
    assert (await other.ask("PATCH", path, {"admin": False})).status == 200
    (await api.ask("PATCH", path, {"admin": True})).fails(403, "forbidden")


async def test_who_sets_his_own_password_has_to_know_the_old_one(tmp_path: Path) -> None:
    async with serving(tmp_path, ban_after=4) as api:
        alice = await api.add("alice", "old")
        path = "/users/alice/password"
        (await alice.ask("PUT", path, {"password": "a new one"})).fails(
            422, "invalid", "old_password"
        )
        wrong = {"password": "a new one", "old_password": "wrong"}
        (await alice.ask("PUT", path, wrong)).fails(403, "forbidden", "old_password")
        right = {"password": "a new one", "old_password": "old"}
        assert (await alice.ask("PUT", path, right)).status == 204
        (await alice.ask("PUT", path, right)).fails(403, "forbidden", "old_password")
        found = await api.store.find_user("alice")
        assert found is not None
        assert await verify_password(found.password, "a new one")
        for _ in range(2):
            await alice.ask("PUT", path, wrong)
        right = {"password": "and again", "old_password": "a new one"}
        (await alice.ask("PUT", path, right)).fails(429, "rate_limited")


async def test_tickets_are_made_narrowed_and_revoked(api: Api, tmp_path: Path) -> None:
    alice = await api.add("alice")
    state = prepare_state(tmp_path)

    async def is_good(text: str) -> bool:
        ticket, user = Ticket.decode(text), await api.store.find_user("alice")
        assert user is not None
        return verify_ticket(state, user, ticket.token, ticket.caveats)

    whole = (await alice.ask("POST", "/users/alice/tickets", {})).values
    assert whole["restrictions"] == []
    assert Ticket.decode(whole["ticket"]).fingerprint == state.fingerprint
    assert (await api.ask("POST", "/users/alice/tickets", {})).values == whole
    wish = {"only_ports": [60003, 60001], "only_names": ["Shop"], "expires": "2099-01-31"}
    narrow = (await alice.ask("POST", "/users/alice/tickets", wish)).values
    assert narrow["restrictions"] == [
        "only names=shop ports=60001,60003",
        "until 2099-02-01T00:00:00Z",
    ]
    assert await is_good(whole["ticket"])
    assert await is_good(narrow["ticket"])
    for _ in range(2):
        assert (await alice.ask("DELETE", "/users/alice/tickets")).status == 204
        assert not await is_good(whole["ticket"])
        assert not await is_good(narrow["ticket"])
    for body, field in (
        ({"only_ports": []}, "only_ports"),
        ({"only_ports": [70000]}, "only_ports[0]"),
        ({"only_names": ["*.*"]}, "only_names"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"expires": "soon"}, "expires"),
    ):
        (await alice.ask("POST", "/users/alice/tickets", body)).fails(422, "invalid", field)
    await api.store.change_user(
        "alice", lambda each: attrs.evolve(each, limits=Limits(visit_ports=(60009,)), damage="")
    )
    useless = await alice.ask("POST", "/users/alice/tickets", {"only_ports": [60001]})
    assert "good for nothing" in useless.fails(422, "invalid", "only_ports")


async def test_an_account_that_the_go_program_made_gets_a_salt_with_its_first_ticket(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    database = mariadb.new_database()
    mariadb.sql(
        "insert into userInfo_userinfo (username, password) values ('bob', 'secret')",
        database.db_name,
    )
    async with serving(tmp_path, database) as api:
        first = (await api.ask("POST", "/users/bob/tickets", {})).values
        assert (await api.ask("POST", "/users/bob/tickets", {})).values == first


async def test_nobody_is_kicked_where_nobody_is(api: Api) -> None:
    await api.add("alice")
    assert "no client" in (await api.ask("POST", "/users/alice/kick")).fails(404, "not_found")


async def test_damaged_limits_are_told_and_set_anew(api: Api) -> None:
    await api.add("alice", limits=Limits(sessions=-1))
    assert "damaged" in (await api.get("/users/alice"))["damage"]
    path = "/users/alice"
    (await api.ask("PATCH", path, {"limits": {"sessions": 1}})).fails(409, "conflict")
    assert (await api.ask("PATCH", path, {"disabled": True})).status == 200
    every = {**NO_LIMITS, "sessions": 1}
    assert (await api.ask("PATCH", path, {"limits": every})).values["damage"] is None
    assert (await api.get(path))["limits"] == every


async def test_traffic_by_month_and_by_day(
    opener: Callable[[], AbstractAsyncContextManager[Api]],
) -> None:
    today = datetime.now(UTC)
    month, day = f"{today:%Y-%m}", f"{today:%Y-%m-%d}"
    async with opener() as api:
        alice = await api.add("alice", limits=Limits(monthly_quota=1000))
        for number, (when, amounts) in enumerate(
            [(day, {"alice": 10, "gone": 5}), ("2026-01-31", {"alice": 7})], 1
        ):
            flush = Flush(server="0" * 32, number=number, month=when[:7], amounts=amounts)
            await api.store.add_traffic(flush, when)
        rows = await api.items("/traffic")
        assert rows == [
            {"user": "alice", "bytes": 17, "month": month, "month_bytes": 10, "monthly_quota": 1000, "waiting": 0, "refused": False},
            {"user": "gone", "bytes": 5, "month": month, "month_bytes": 5, "monthly_quota": None, "waiting": 0, "refused": False},
        ]  # fmt: skip
        assert await alice.items("/traffic") == rows[:1]
        assert await api.items("/traffic?user=gone") == rows[1:]
        (old,) = await alice.items("/traffic?month=2026-01")
        assert old["month_bytes"] == 7
        assert (await api.get("/users/alice"))["used_this_month"] == 10
        days = [
            {"day": day, "user": "alice", "bytes": 10},
            {"day": day, "user": "gone", "bytes": 5},
        ]
        assert await api.items("/traffic/days") == days
        assert await alice.items("/traffic/days") == days[:1]
        january = await api.items("/traffic/days?first=2026-01-01&last=2026-01-31")
        assert january == [{"day": "2026-01-31", "user": "alice", "bytes": 7}]
        page = await api.get("/traffic/days?first=2026-01-01&limit=2")
        assert page["items"] == january + days[:1]
        rest = await api.get(
            f"/traffic/days?first=2026-01-01&limit=2&after={page['next'].replace(' ', '%20')}"
        )
        assert rest == {"items": days[1:], "next": None}
        for query, field in (
            ("/traffic?month=2026-13", "month"),
            ("/traffic/days?first=2026-02-30", "first"),
            ("/traffic/days?last=yesterday", "last"),
            ("/traffic/days?after=x", "after"),
        ):
            (await api.ask("GET", query)).fails(422, "invalid", field)


async def test_names_that_are_kept_are_listed_and_released(api: Api) -> None:
    alice, now = await api.add("alice"), datetime.now(UTC)
    await api.add("bob")
    for name, names in (("alice", ["blog.example.org"]), ("bob", ["shop.example.org"])):
        user = await api.store.find_user(name)
        assert user is not None
        await api.store.reserve_names(name, user.account_id, names, now, timedelta(days=30))
    listed = await api.items("/names")
    assert [(each["name"], each["user"]) for each in listed] == [
        ("blog.example.org", "alice"),
        ("shop.example.org", "bob"),
    ]
    assert datetime.fromisoformat(listed[0]["kept_until"]) == now + timedelta(days=30)
    assert await alice.items("/names") == listed[:1]
    assert await api.items("/names?user=bob") == listed[1:]
    assert await alice.items("/names?user=bob") == []
    assert (await api.ask("DELETE", "/names/shop.example.org")).status == 204
    (await api.ask("DELETE", "/names/shop.example.org")).fails(404, "not_found")


async def test_a_store_that_is_away_is_told(mariadb: MariaDB, tmp_path: Path) -> None:
    database = mariadb.new_database()
    async with serving(tmp_path, database) as api:
        mariadb.sql("rename table userInfo_userinfo to away", database.db_name)
        (await api.ask("GET", "/users")).fails(503, "store_unavailable")
        mariadb.sql("rename table away to userInfo_userinfo", database.db_name)
        assert (await api.ask("GET", "/users")).status == 200


async def test_the_first_days_of_all(
    tmp_path: Path, expected_errors: list[logging.LogRecord]
) -> None:
    async with serving(tmp_path) as api:
        answer = await api.ask("GET", "/traffic/days?last=0001-01-01")
        assert answer.status in (200, 422)
        assert not expected_errors


async def test_two_changes_of_limits_at_once_are_both_done(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.add("alice")
        for number in range(1, 21):
            async with trio.open_nursery() as nursery:
                for name in ("sessions", "visitors"):
                    change = {"limits": {name: number}}
                    nursery.start_soon(api.ask, "PATCH", "/users/alice", change)
            limits = (await api.get("/users/alice"))["limits"]
            assert (limits["sessions"], limits["visitors"]) == (number, number)


async def test_an_account_without_a_password(api: Api) -> None:
    """Nobody logs in as it; its ticket is made as ever."""
    answer = await api.ask("POST", "/users", {"name": "cam", "password": None})
    assert answer.status == 201, answer.text
    assert answer.values["has_password"] is False
    user = await api.store.find_user("cam")
    assert user is not None
    for password in ("", "cam", user.password):
        assert not await verify_password(user.password, password)
    assert (await api.ask("POST", "/users/cam/tickets", {})).status in (200, 201)
    missing = await api.ask("POST", "/users", {"name": "dam"})
    assert (missing.status, missing.values["field"]) == (422, "password")
    assert (await api.ask("PUT", "/users/cam/password", {"password": "a new one"})).status == 204
    assert (await api.get("/users/cam"))["has_password"] is True


async def test_an_administrator_without_a_password_is_not_enough(api: Api) -> None:
    wish = {"name": "cam", "password": None, "admin": True}
    assert (await api.ask("POST", "/users", wish)).status == 201
    user = await api.store.find_user("cam")
    assert user is not None
    assert not user.may_administer(datetime.now(UTC))
