"""The document of the API, and whether the API keeps to it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import trio

from tests.console.browsing import served
from trionat.server.admission import bans
from trionat.server.console.application import OPERATIONS
from trionat.server.console.openapi import document, with_document
from trionat.server.console.problem import Code


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
    """What schemathesis finds is wrong with the answers to what it thinks up in a minute."""
    monkeypatch.setattr(bans, "_LONGEST_DELAY", 0.0)  # it sends wrong tokens as well
    async with served(tmp_path, ban_after=0) as server:
        browser = await server.browser()
        made = await browser.post("/api/v1/tokens", {"name": "test", "scope": "manage"})
        command = [
            *("schemathesis", "run", f"http://127.0.0.1:{server.port}/api/v1/openapi.json"),
            *("-H", f"Authorization: Bearer {made.values['token']}"),
            # Streams do not end, and a server that is drained lets nobody in.
            *("--exclude-path", "/api/v1/live", "--exclude-path", "/api/v1/drain"),
            # It would revoke its own token.
            *("--exclude-path", "/api/v1/tokens/{id}", "--exclude-path", "/api/v1/users/{name}"),
            # That a month or a pattern of names is none, no schema tells.
            *("--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", "10", "--phases", "examples,coverage,fuzzing", "--seed", "1"),
            *("--max-time", "60", "--request-timeout", "10", "--no-color"),
        ]
        done = await trio.run_process(
            command, check=False, capture_stdout=True, stderr=subprocess.STDOUT, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout.decode()[-8000:]
