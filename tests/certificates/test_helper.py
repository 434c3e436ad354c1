"""A helper process that has a bug, or is not what it should be: what it says is checked before anything is made of it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.certificates.made import Maker
from trionat.config.acme import AcmeConfig
from trionat.server.certificates import order as order_module
from trionat.server.certificates.challenges import Answer, Challenges
from trionat.server.certificates.order import HelperError, OrderError, ask_windows, order

if TYPE_CHECKING:
    from pathlib import Path

NAME = "shop.example.org"
KEY, CHAIN = Maker().chain(NAME)
TOKEN, PRINT = "t" * 32, "p" * 43

pytestmark = pytest.mark.usefixtures("nothing_left")


def answer(**changes: Any) -> dict[str, Any]:
    values = {"name": NAME, "token": TOKEN, "authorization": f"{TOKEN}.{PRINT}", "pem": ""}
    return {**values, **changes}


def answers(*values: Any) -> str:
    return says({"what": "answers", "answers": list(values)})


def says(*messages: Any) -> str:
    """Return a program that says these, after it has read its task."""
    lines = "".join(f"print({json.dumps(message)!r}, flush=True)\n" for message in messages)
    return f"import sys, time\nsys.stdin.readline()\n{lines}"


@pytest.fixture
def challenges() -> Challenges:
    return Challenges()


async def ask(folder: Path, challenges: Challenges, monkeypatch: Any, program: str) -> Any:
    monkeypatch.setattr(order_module, "_command", lambda: [sys.executable, "-c", program])
    return await order(AcmeConfig(), [NAME], folder=folder, challenges=challenges)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise ValueError('a bug')", "it ended with code 1\n.*ValueError: a bug"),
        ("", "it ended with code 0"),
        ("print('hello', flush=True)", "it says b'hello'"),
        (says([1]), "it says b"),
        (says({"what": "window"}), "it says 'window' instead of answers or issued"),
        (says({"what": "bug", "traceback": "Traceback: a bug"}), "Traceback: a bug"),
        ("print('x' * 3_000_000, flush=True)", "it says more than 2,097,152 bytes"),
    ],
)
async def test_one_that_has_a_bug(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    challenges: Challenges,
    program: str,
    words: str,
) -> None:
    with pytest.raises(HelperError, match=f"(?s){words}"):
        await ask(tmp_path, challenges, monkeypatch, program)


@pytest.mark.parametrize(
    "program",
    [
        answers(answer(name="other.example.org")),
        answers(answer(), answer()),
        answers(answer(token="../../../../etc/passwd")),
        answers(answer(authorization="<script>")),
        answers(answer(authorization=f"{'o' * 32}.{PRINT}")),
        answers(answer(pem="no certificate")),
        answers(answer(pem="x" * 20_000)),
        answers(answer(pem=None)),
        answers(7),
        says({"what": "answers", "answers": 7}),
        says({"what": "issued"}),
        says({"what": "issued", "key": KEY.decode(), "chain": 7}),
        says({"what": "issued", "key": KEY.decode(), "chain": CHAIN.decode()[:99]}),
    ],
)
async def test_one_that_says_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, challenges: Challenges, program: str
) -> None:
    with pytest.raises(OrderError) as caught:
        await ask(tmp_path, challenges, monkeypatch, program)
    assert caught.value.code == "nonsense"
    assert not challenges._answers
    assert not challenges._contexts


async def test_what_it_says_of_moments_is_a_number_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, challenges: Challenges
) -> None:
    issued = {"what": "issued", "key": KEY.decode(), "chain": CHAIN.decode()}
    program = says({**issued, "renew": "soon", "again": float("nan")})
    found = await ask(tmp_path, challenges, monkeypatch, program)
    assert (found.window.renew, found.window.again) == (None, None)
    windows = [{"what": "window", "renew": 5, "again": None}] * 2
    monkeypatch.setattr(order_module, "_command", lambda: [sys.executable, "-c", says(*windows)])
    first, second = await ask_windows(AcmeConfig(), [found.certificate] * 2, folder=tmp_path)
    assert (first.renew, first.again) == (second.renew, second.again) == (5.0, None)


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (None, "too many requests of us: busy"),
        (1e30, "until 9999-12-31"),
        (-1e30, "until 1970-01-01"),
    ],
)
async def test_whatever_the_moment_it_can_be_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    challenges: Challenges,
    until: float | None,
    words: str,
) -> None:
    failed = {"what": "failed", "code": "rateLimited", "text": "busy", "until": until}
    with pytest.raises(OrderError, match=words):
        await ask(tmp_path, challenges, monkeypatch, says(failed))


async def test_answers_are_there_for_as_long_as_the_order(tmp_path: Path) -> None:
    challenges, path = Challenges(), f"/.well-known/acme-challenge/{TOKEN}"
    assert challenges.http01_answer(path) is None
    with challenges.publish([Answer.read(answer())], {}):
        assert challenges.http01_answer(path) == f"{TOKEN}.{PRINT}".encode()
        for other in (TOKEN, path + "/", path + "?", path[:-1], "/" + path, ""):
            assert challenges.http01_answer(other) is None
    assert challenges.http01_answer(path) is None


async def test_a_helper_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, challenges: Challenges
) -> None:
    monkeypatch.setattr(order_module, "_command", lambda: [str(tmp_path / "none")])
    with pytest.raises(Exception, match="helper process for certificates cannot be started: No"):
        await order(AcmeConfig(), [NAME], folder=tmp_path, challenges=challenges)
