"""What happens at a real server, as those hear of it whom its file names."""

from __future__ import annotations

import json
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.e2e import running, services
from tests.e2e.running import wait_until
from tests.events.receiver import Received, Receiver, receiving, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = "a s3cret that no log may have"


def write_config(folder: Path, *receivers: Receiver, **more: Any) -> Path:
    entries = [
        {"Url": f"{each.url}?key=hidden", "Secret": SECRET, "AllowPrivate": True, **more}
        for each in receivers
    ]
    file = folder / "server.yml"
    file.write_text(json.dumps({"Events": entries}))
    return file


@asynccontextmanager
async def served(folder: Path, *receivers: Receiver, **more: Any) -> AsyncIterator[running.Server]:
    flags = more.pop("flags", ())
    visit = more.pop("visit", "0")
    config = write_config(folder, *receivers, **more)
    async with running.server(folder, "--config", config, *flags, visit=visit) as server:
        yield server
    server.check_log(SECRET, "key=hidden")


async def trionat(folder: Path, *arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run a command to its end."""
    process = await trio.run_process(
        services.trionat_command(*arguments),
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=folder,
        env=services.trionat_environ(),
    )
    return process.returncode, (process.stdout + process.stderr).decode()


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_a_client_that_comes_is_lost_comes_back_and_leaves(tmp_path: Path) -> None:
    async with receiving() as receiver, served(tmp_path, receiver) as server:
        up = await receiver.wait_type("server.up")
        assert up["number"] == 1
        assert up["data"]["control"] == server.ready["control"]
        async with running.client(tmp_path / "client", server.ticket, 9) as client:
            session = (await receiver.wait_type("session.up"))["data"]
            assert session["points"] == [client.port()]
            assert session["address"].startswith("127.0.0.1:")
            client.kill()
            lost = (await receiver.wait_type("session.lost"))["data"]
            assert {name: lost[name] for name in session} == session
        async with running.client(tmp_path / "client", server.ticket, 9) as client:
            back = (await receiver.wait_type("session.back"))["data"]
            assert back["points"] == session["points"]
            assert back["uid"] != session["uid"]
        ended = (await receiver.wait_type("session.ended"))["data"]
        assert ended["uid"] == back["uid"]
        server.terminate()
        assert await server.wait() == 0
        await receiver.wait_type("server.stopping")
    assert receiver.numbers == list(range(1, len(receiver.got) + 1))


@pytest.mark.limit(90)
async def test_one_that_does_not_come_back_has_ended(tmp_path: Path) -> None:
    async with (
        receiving() as receiver,
        served(tmp_path, receiver, flags=("--port-reservation", "1")) as server,
    ):
        async with running.client(tmp_path / "client", server.ticket, 9) as client:
            client.kill()
        lost = await receiver.wait_type("session.lost")
        ended = await receiver.wait_type("session.ended")
        assert (ended["data"]["uid"], ended["data"]["code"]) == (lost["data"]["uid"], "gone")


@pytest.mark.slow
@pytest.mark.limit(120)
async def test_nothing_is_lost_or_out_of_order_when_the_server_is_killed(tmp_path: Path) -> None:
    """Between the journal and the receiver: it takes nothing while the first server lives, and breaks off in the middle at the second."""
    async with receiving(status(500)) as receiver:
        async with served(tmp_path, receiver) as server:
            for _ in range(3):
                async with running.client(tmp_path / "client", server.ticket, 9) as client:
                    client.terminate()
                    assert await client.wait() == 0
            await written(tmp_path, "session.ended", 3)
            server.kill()
        before = [event["number"] for event in await listed(tmp_path)]
        assert set(receiver.numbers) == {1}
        receiver.got.clear()
        taken = 0

        async def take_three(stream: trio.abc.Stream, received: Received) -> None:
            nonlocal taken
            taken += 1
            if taken > 3:
                await trio.sleep_forever()
            await status(200)(stream, received)

        receiver.answer = take_three
        async with served(tmp_path, receiver) as server:
            await receiver.wait(4)
            server.kill()
        assert receiver.numbers == [1, 2, 3, 4]
        receiver.got.clear()
        receiver.answer = status(200)
        async with served(tmp_path, receiver) as server:
            await receiver.wait_type("session.ended")
            after = [event["number"] for event in await listed(tmp_path)]
            await receiver.wait(len(after) - 3)
    assert after[: len(before)] == before
    assert after == list(range(1, len(after) + 1))
    # The third was taken; that the server knew it when it was killed, nothing promises.
    assert receiver.numbers[: len(after) - 3] in (after[3:], after[2:-1], after[2:])
    assert {3, *receiver.numbers} >= set(after[2:])


async def listed(folder: Path) -> list[dict[str, Any]]:
    code, text = await trionat(
        folder, "events", "list", "--json", "--limit", "1000", "--state-dir", "state"
    )
    assert code == 0, text
    return [json.loads(line) for line in text.splitlines()]


async def written(folder: Path, type_: str, count: int) -> None:
    with trio.fail_after(20):
        while sum(event["type"] == type_ for event in await listed(folder)) < count:  # noqa: ASYNC110
            await trio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_events_of_workers_come_to_the_same_journal(tmp_path: Path) -> None:
    async with (
        receiving() as receiver,
        served(tmp_path, receiver, flags=("--workers", "2")) as server,
    ):
        async with running.client(tmp_path / "client", server.ticket, 9):
            up = await receiver.wait_type("session.up")
            code, text = await trionat(tmp_path, "status", "--json", "--state-dir", "state")
            assert code == 0
            [worker] = [each for each in json.loads(text)["workers"] if each["sessions"]]
            os.kill(worker["pid"], signal.SIGKILL)
            lost = await receiver.wait_type("session.lost")
            assert (lost["data"]["uid"], lost["data"]["code"]) == (up["data"]["uid"], "worker")
            await receiver.wait_type("session.back")
        await receiver.wait_type("session.ended")
    assert receiver.numbers == list(range(1, len(receiver.got) + 1))


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_those_of_a_worker_that_was_killed_have_ended_when_they_do_not_come_back(
    tmp_path: Path,
) -> None:
    """One that was lost before, and one that was lost with its worker."""
    flags = ("--workers", "2", "--port-reservation", "2")
    async with (
        receiving() as receiver,
        served(tmp_path, receiver, flags=flags, visit="0,0") as server,
    ):
        async with (
            running.client(tmp_path / "a", server.ticket, 9) as first,
            running.client(tmp_path / "b", server.ticket, 9) as second,
        ):
            second.process.process.send_signal(signal.SIGSTOP)
            first.kill()
            before = await receiver.wait_type("session.lost")
            _, text = await trionat(tmp_path, "status", "--json", "--state-dir", "state")
            for worker in json.loads(text)["workers"]:
                os.kill(worker["pid"], signal.SIGKILL)
            await wait_until(
                lambda: sum(each["type"] == "session.ended" for each in receiver.events) == 2,
                within=30,
            )
            second.kill()
        ended = [each for each in receiver.events if each["type"] == "session.ended"]
        assert [each["data"]["code"] for each in ended] == ["gone", "gone"]
        uids = {each["data"]["uid"] for each in ended}
        assert before["data"]["uid"] in uids
        assert len(uids) == 2
    types = [each["type"] for each in receiver.events]
    assert (types.count("session.lost"), types.count("session.ended")) == (2, 2)
    assert "session.back" not in types


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_accounts_and_quotas(tmp_path: Path) -> None:
    async with (
        receiving() as receiver,
        services.echo() as echo,
        served(tmp_path, receiver),
    ):
        state = ("--state-dir", "state")
        code, text = await trionat(
            tmp_path, "user", "add", "ann", *state, stdin=b"correct horse 1\n"
        )
        assert code == 0, text
        added = await receiver.wait_type("account.added")
        assert added["data"]["user"] == "ann"
        assert added["data"]["by"].endswith("(command line)")
        assert (await trionat(tmp_path, "user", "limit", "ann", "--quota", "100k", *state))[0] == 0
        assert (await receiver.wait_type("account.changed"))["data"]["what"] == "limits"
        ticket = (await trionat(tmp_path, "user", "ticket", "ann", *state))[1].split()[0]
        async with running.client(tmp_path / "client", ticket, echo.port) as client:
            async with await client.visit() as stream:
                await running.ask(stream, bytes(41_000))
                warning = await receiver.wait_type("quota.warning")
                assert warning["data"]["user"] == "ann"
                assert warning["data"]["quota"] == 100_000
                assert 80_000 <= warning["data"]["used"] < 100_000
                with trio.move_on_after(10):
                    await running.ask(stream, bytes(20_000))
                await receiver.wait_type("quota.reached")
            client.ended = True
            client.process.process.kill()
        ended = await receiver.wait_type("session.ended")
        assert ended["data"]["code"] == "quota-exceeded"
        assert (await trionat(tmp_path, "user", "expire", "ann", "2020-01-01", *state))[0] == 0
        async with running.client_process(tmp_path / "late", ticket, "9", "--once") as late:
            assert await late.wait() != 0
        assert (await receiver.wait_type("account.expired"))["data"]["user"] == "ann"
        assert (await trionat(tmp_path, "user", "remove", "ann", *state))[0] == 0
        await receiver.wait_type("account.removed")
    types = [event["type"] for event in receiver.events]
    for once in (
        "quota.warning",
        "quota.reached",
        "account.expired",
        "account.added",
    ):
        assert types.count(once) == 1, once
    assert receiver.numbers == list(range(1, len(receiver.got) + 1))
    audit = [
        json.loads(line) for line in (tmp_path / "state" / "audit.log").read_text().splitlines()
    ]
    assert [each["action"] for each in audit] == [
        "account.added",
        "account.changed",
        "account.changed",
        "account.removed",
    ]
    assert "correct horse" not in (tmp_path / "state" / "audit.log").read_text()


@pytest.mark.limit(60)
async def test_kick_and_drain_are_in_the_audit(tmp_path: Path) -> None:
    async with running.server(tmp_path) as server:
        async with running.client_process(tmp_path / "client", server.ticket, "9") as client:
            await client.wait_connected()
            assert (await trionat(tmp_path, "kick", "1", "--state-dir", "state"))[0] == 0
            assert await client.wait() == 4
        assert (await trionat(tmp_path, "drain", "--state-dir", "state"))[0] == 0
    audit = [
        json.loads(line) for line in (tmp_path / "state" / "audit.log").read_text().splitlines()
    ]
    assert [(each["action"], each["target"]) for each in audit] == [
        ("kick", "session 1"),
        ("drain", "server"),
    ]
    assert not (tmp_path / "state" / "events").exists()


@pytest.mark.limit(60)
async def test_the_test_command_says_what_came_back(tmp_path: Path) -> None:
    async with receiving() as receiver, receiving(status(403, body=b"invalid_token")) as other:
        file = write_config(tmp_path, receiver)
        code, text = await trionat(tmp_path, "events", "test", "--config", str(file))
        assert (code, text) == (0, f"http://127.0.0.1:{receiver.port}/…  taken (status 204)\n")
        file = write_config(tmp_path, receiver, other)
        code, text = await trionat(tmp_path, "events", "test", "--config", str(file), "--json")
        assert code == 6
        told = [json.loads(line) for line in text.splitlines()]
        assert [(each["taken"], each["status"], each["reason"]) for each in told] == [
            (True, 204, None),
            (False, 403, "status 403: invalid_token"),
        ]
        assert "hidden" not in text
    assert [event["type"] for event in receiver.events] == ["test", "test"]
    (tmp_path / "server.yml").write_text("")
    code, text = await trionat(tmp_path, "events", "test")
    assert (code, "no webhook" in text) == (3, True)
