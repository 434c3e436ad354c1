"""The workflow files, which only their host can run: what can be said of them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_may_do_more_than_it_has_to(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["permissions"] == {}
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 30
        allowed = job["permissions"]
        assert allowed.items() <= {"contents": "read", "id-token": "write"}.items(), name
        assert ("id-token" in allowed) == (name == "publish")
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_address_and_no_secret(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"https?://|secrets\.|password:|pull_request_target", text)


def test_what_is_published_is_what_was_tried() -> None:
    release = jobs(ROOT / ".github/workflows/release.yml")
    assert release["publish"]["needs"] == "build"
    assert release["publish"]["environment"] == "pypi"
    assert not [step for step in release["publish"]["steps"] if "run" in step]


def test_the_fast_tests_are_there() -> None:
    fast = jobs(ROOT / ".github/workflows/tests.yml")["fast"]
    systems = {name.partition("-")[0] for name in fast["strategy"]["matrix"]["system"]}
    assert systems == {"ubuntu", "macos", "windows"}
    [tests] = [step["run"] for step in fast["steps"] if step.get("run", "").startswith("pytest")]
    for word in tests.split():
        assert not word.startswith("tests/") or (ROOT / word).exists(), word
