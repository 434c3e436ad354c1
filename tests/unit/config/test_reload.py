"""What of a changed configuration counts now, and what waits."""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel

from trionat.config import reload
from trionat.config.key import Effect
from trionat.config.load import Configuration, load
from trionat.config.reload import Reloaded, Reloader, merge
from trionat.config.sections import KEYS
from trionat.errors import ConfigError, Problem, StartupError


def configuration(**fields: Any) -> Configuration:
    """The defaults, but for these fields of the server."""
    default = load("server", environ={})
    server = attrs.evolve(default.server, **fields)
    return attrs.evolve(default, server=server)


def test_each_key_is_sorted_by_its_effect() -> None:
    before = configuration()
    wanted = configuration(max_services=3, max_visitors=5, workers=2)
    after, changed, waiting = merge(before, wanted)
    assert [key.path for key in changed] == ["Server.MaxVisitors", "Server.MaxServices"]
    assert [key.effect for key in changed] == [Effect.NEW_SESSIONS, Effect.AT_ONCE]
    assert waiting == ("Server.Workers",)
    assert after.server == attrs.evolve(before.server, max_services=3, max_visitors=5)
    again, changed, waiting = merge(after, wanted)
    assert (again.server, changed, waiting) == (after.server, (), ("Server.Workers",))


def test_what_is_held_waits_and_so_does_what_goes_only_with_it() -> None:
    before, wanted = configuration(), configuration(plain_http=True, domain="d.example")
    after, changed, waiting = merge(before, wanted)
    assert after.server == before.server
    assert not changed
    assert set(waiting) == {"Server.Domain", "Server.PlainHttp"}
    after, _, waiting = merge(before, configuration(ban_after=3), {"Server.BanAfter"})
    assert (after.server, waiting) == (before.server, ("Server.BanAfter",))


def test_a_section_that_comes_waits() -> None:
    before = configuration()
    wanted = load(
        "server",
        environ={"TRIONAT_DATABASE_USERNAME": "u", "TRIONAT_DATABASE_DB_NAME": "d"}
        | {"TRIONAT_DATABASE_HOST": "h:1"},
    )
    assert merge(before, wanted)[2] == ("Database",)


@attrs.define(eq=False)
class Changing:
    """What changes, slowly; `refusal` is why it cannot."""

    refusal: str | None = None
    left_out: tuple[str, ...] = ()
    log: list[str] = attrs.field(factory=list)

    def needs_restart(self, before: Configuration, wanted: Configuration) -> tuple[str, ...]:
        return ()

    async def change(self, before: Configuration, after: Configuration) -> tuple[str, ...]:
        self.log.append("begins")
        await trio.lowlevel.checkpoint()
        self.log.append("ends")
        if self.refusal is not None:
            raise StartupError(self.refusal)
        return self.left_out


async def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on a disk that is gone holds up neither the next reload nor systemd, which waits until one is over."""

    class Hanging(Changing):
        async def change(self, before: Configuration, after: Configuration) -> tuple[str, ...]:
            if not self.log:
                self.log.append("hangs")
                await trio.sleep_forever()
            return ()

    monkeypatch.setattr(reload, "PATIENCE", 0.2)
    told: list[bool] = []
    reloader = Reloader(lambda: configuration(max_services=3), configuration(), tell=told.append)
    reloader.reloadable = Hanging()
    with trio.fail_after(5):
        reloaded = await reloader.reload()
        assert "within 0.2 s" in reloaded.problems[0]
        assert reloader.current.server.max_services != 3
        assert not (await reloader.reload()).problems
    assert told == [True, False, True, False]


async def test_reads_that_hang_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "PATIENCE", 0.02)
    over = threading.Event()

    def read() -> Configuration:
        over.wait(20)
        return configuration()

    reloader = Reloader(read, configuration())
    reloader.reloadable = Changing()
    try:
        for _ in range(10):
            assert "within 0.02 s" in (await reloader.reload()).problems[0]
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    finally:
        over.set()


async def test_one_reload_after_another_and_each_is_told() -> None:
    wanted = configuration(max_services=3)
    told: list[bool] = []
    reloader = Reloader(lambda: wanted, configuration(), tell=told.append)
    changing = reloader.reloadable = Changing()
    outcomes: list[Reloaded] = []

    async def reload_it() -> None:
        outcomes.append(await reloader.reload())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload_it)
        nursery.start_soon(reload_it)
    assert changing.log == ["begins", "ends"] * 2
    assert told == [True, False] * 2
    assert [each.changed for each in outcomes] == [("Server.MaxServices: 16 -> 3",), ()]


@pytest.mark.parametrize("where", ["read", "change", "not up"])
async def test_what_is_wrong_is_told_and_nothing_is_changed(where: str) -> None:
    before = configuration()

    def read() -> Configuration:
        if where == "read":
            raise ConfigError(Problem("f.yml", "one"), Problem("f.yml", "two"))
        return configuration(max_services=3)

    reloader = Reloader(read, before)
    if where != "not up":
        reloader.reloadable = Changing("three")
    expected = {
        "read": ("f.yml: one", "f.yml: two"),
        "change": ("three",),
        "not up": ("the configuration cannot be read again before the server is up",),
    }
    assert await reloader.reload() == Reloaded(problems=expected[where])
    assert reloader.current is before


async def test_what_was_left_out_is_told() -> None:
    reloader = Reloader(lambda: configuration(max_services=3), configuration())
    reloader.reloadable = Changing(left_out=("port 8080",))
    assert await reloader.reload() == Reloaded(
        changed=("Server.MaxServices: 16 -> 3",), warnings=("port 8080",)
    )


def test_a_server_of_another_version_tells_more_or_less() -> None:
    assert Reloaded.of({"changed": ["a"], "weather": "fine"}) == Reloaded(changed=("a",))


def test_no_secret_is_told() -> None:
    default = load("client", environ={})
    origins = MappingProxyType(dict.fromkeys(KEYS, "default"))
    before = attrs.evolve(default, origins=origins)
    auth = attrs.evolve(default.auth, username="u", password="hidden")
    _, changed, _ = merge(before, attrs.evolve(before, auth=auth))
    assert [(key.path, key.secret) for key in changed] == [
        ("Auth.Username", False),
        ("Auth.Password", True),
    ]
