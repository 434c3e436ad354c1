"""docs/events.md says what is so, and its programs run."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trionat.config.load import load
from trionat.server.events.event import KINDS
from trionat.server.events.template import sign

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = (Path(__file__).parents[2] / "docs/events.md").read_text(encoding="utf-8")
SECRET = "a 'secret' with $(blanks) and \"quotes\""
BODY = b'{"number":1,"client":"\\u202e"}'


def test_all_types_and_fields() -> None:
    rows = re.findall(r"^\| `([a-z.]+)` \| (`.+?`) \|", PAGE, flags=re.MULTILINE)
    told = {type_: re.findall(r"`(\w+)`", fields) for type_, fields in rows}
    assert told == {
        type_: list(inspect.signature(make).parameters) for type_, make in KINDS.items()
    }


def test_the_files_load(tmp_path: Path) -> None:
    files = re.findall(r"```yaml\n(.+?)```", PAGE, flags=re.DOTALL)
    assert len(files) == 3
    for text in files:
        (tmp_path / "server.yml").write_text(text)
        loaded = load("server", file=tmp_path / "server.yml", environ={})
        assert len(loaded.events.webhooks) == 1
        assert loaded.warnings == ()


def verify_in_python(secret: str, signature: str, body: bytes) -> bool:
    [program] = re.findall(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Callable[..., bool]] = {}
    exec(program, names)
    return names["is_authentic"](secret, signature, body)


def verify_in_a_shell(secret: str, signature: str, body: bytes, tmp_path: Path) -> bool:
    [program] = re.findall(r"```sh\n(.+?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "body").write_bytes(body)
    values = {"SECRET": secret, "SIGNATURE": signature, "BODY": str(tmp_path / "body")}
    return (
        subprocess.run(["sh", "-c", program], check=False, env={**os.environ, **values}).returncode
        == 0
    )


@pytest.mark.parametrize("secret", [SECRET, "x", "名"])
def test_signatures(tmp_path: Path, secret: str) -> None:
    now = int(time.time())
    good = sign(secret, BODY, now)
    assert verify_in_python(secret, good, BODY)
    assert verify_in_a_shell(secret, good, BODY, tmp_path)
    assert not verify_in_python(secret, sign(secret, BODY, now - 400), BODY)
    for signature, body in (
        (good, BODY + b" "),
        (sign("other", BODY, now), BODY),
        (good.replace(f"t={now}", f"t={now + 1}"), BODY),
    ):
        assert not verify_in_python(secret, signature, body)
        assert not verify_in_a_shell(secret, signature, body, tmp_path)
