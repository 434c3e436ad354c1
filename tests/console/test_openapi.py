"""The document of the API, and whether the API keeps to it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import trio

from tests.console.browsing import Browser, Served, ask, served
from trionat.server import console
from trionat.server.admission import bans
from trionat.server.console.application import OPERATIONS
from trionat.server.console.openapi import document, with_document
from trionat.server.console.principal import Permission
from trionat.server.console.problem import Code
from trionat.server.console.trail import _ACTIONS

PAGES = Path(console.__file__).parent / "pages"
API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_operation_is_in_it_once() -> None:
    operations = with_document(OPERATIONS)
    told = document(operations)
    assert told["openapi"].startswith("3.1")
    names = [each["operationId"] for path in told["paths"].values() for each in path.values()]
    assert sorted(names) == sorted({operation.name for operation in operations})
    for path, methods in told["paths"].items():
        for each in methods.values():
            in_path = {p["name"] for p in each["parameters"] if p["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path))
    text = json.dumps(told)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(
        told["components"]["schemas"]
    )
    assert all("description" in told or each for each in told["components"]["schemas"].values())


def test_the_page_shows_an_account_as_it_is_told() -> None:
    [line] = [each for each in API.splitlines() if each.startswith('{"name":"alice"')]
    told = json.loads(line.replace(",…}", "}"))
    schemas = document(with_document(OPERATIONS))["components"]["schemas"]
    assert list(told) == list(schemas["UserRow"]["properties"])


@pytest.mark.parametrize("code", ["en", "zh"])
def test_the_pages_have_words_for_each_change(code: str) -> None:
    changes = [each.name for each in OPERATIONS if each.permission is Permission.MANAGE]
    text = (PAGES / "languages" / f"{code}.js").read_text(encoding="utf-8")
    for name in changes:
        assert f'"action.{_ACTIONS.get(name, name)}"' in text


async def keeps_to_it(server: Served, folder: Path, *options: str) -> None:
    """Have schemathesis try a server by a token that may everything, with the configuration in `folder`: nothing is wrong with what it is answered."""
    browser = await server.browser()
    made = await browser.post("/api/v1/tokens", {"name": "test", "scope": "manage"})
    header = f"Bearer {made.values['token']}"
    command = [
        *("schemathesis", "run", f"http://127.0.0.1:{server.port}/api/v1/openapi.json"),
        *("-H", f"Authorization: {header}"),
        # That a month or a pattern of names is none, no schema tells.
        *("--exclude-checks", "positive_data_acceptance"),
        *("--max-examples", "10", "--phases", "examples,coverage,fuzzing", "--seed", "1"),
        *("--request-timeout", "10", "--no-color"),
        *options,
    ]
    done = await trio.run_process(
        command, check=False, capture_stdout=True, stderr=subprocess.STDOUT, cwd=folder
    )
    assert done.returncode == 0, done.stdout.decode()[-8000:]
    still = await ask(server.port, "GET", "/api/v1/me", headers={"Authorization": header})
    assert still.status == 200, "it has revoked its own token, and tried nothing after that"


async def prepare(browser: Browser) -> str:
    """Make two accounts with a token each, one of them to be removed; return a configuration by which schemathesis asks for those alone, or it would revoke its own token."""
    ids: dict[str, str] = {}
    for name in ("kept", "removed"):
        body = {"name": name, "password": "a-password"}
        assert (await browser.post("/api/v1/users", body)).status == 201
        made = await browser.post("/api/v1/tokens", {"name": f"of-{name}"})
        ids[name] = made.values["id"]
    return f"""
        [phases.fuzzing.extra-data-sources]
        responses = false
        [[operations]]
        include-operation-id = "get_token"
        parameters = {{ "path.id" = "{ids["kept"]}" }}
        [[operations]]
        include-operation-id = "revoke_token"
        parameters = {{ "path.id" = "{ids["removed"]}" }}
        [[operations]]
        include-path-regex = "^/api/v1/users/.name."
        exclude-operation-id = "remove_user"
        parameters = {{ "path.name" = "kept" }}
        [[operations]]
        include-operation-id = "remove_user"
        parameters = {{ "path.name" = "removed" }}
    """


def test_every_operation_and_every_code_is_on_the_page_for_people() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    for operation in with_document(OPERATIONS):
        path = re.sub(r"\{(\w+)(:path)?\}", lambda part: part[1].upper(), operation.path)
        assert f"`{operation.method} {path.removeprefix('/')}`" in page or operation.is_outside
    for code in Code:
        assert f"| {code.status.value} | `{code.word}` |" in page


@pytest.mark.slow
@pytest.mark.limit(110)
async def test_the_server_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What schemathesis finds is wrong with the answers to what it thinks up in a minute: of all operations, but for a stream of events, which does not end."""
    monkeypatch.setattr(bans, "_LONGEST_DELAY", 0.0)  # it sends wrong tokens as well
    async with served(tmp_path / "state", ban_after=0) as server:
        config = await prepare(await server.browser())
        await trio.Path(tmp_path / "schemathesis.toml").write_text(config)
        left_out = ("--exclude-path", "/api/v1/live", "--exclude-path", "/api/v1/drain")
        await keeps_to_it(server, tmp_path, *left_out, "--max-time", "60")


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_a_server_that_is_drained_keeps_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drain is tried at a server of its own, which lets nobody in from then on."""
    monkeypatch.setattr(bans, "_LONGEST_DELAY", 0.0)
    async with served(tmp_path / "state", ban_after=0) as server:
        await keeps_to_it(server, tmp_path, "--include-path", "/api/v1/drain", "--max-time", "10")
