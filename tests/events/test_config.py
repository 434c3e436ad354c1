"""The section `Events` of a server's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trionat.config.events import EventsConfig, WebhookConfig
from trionat.config.load import load
from trionat.config.sections import KEYS
from trionat.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = "hIdDeN"


def read(folder: Path, text: str, **environ: str) -> EventsConfig:
    (folder / "s.yml").write_text(text)
    return load("server", file=folder / "s.yml", environ=environ).events


def test_a_list_of_entries(tmp_path: Path) -> None:
    text = """
Events:
  - Url: https://example.org/hook?a=1,2
    Secret: abc,def
    Types: [session.*, ban]
    Template: json
  - https://example.org/other
  - {Url: "http://10.0.0.1:8080/x", AllowPrivate: true}
"""
    assert read(tmp_path, text).webhooks == (
        WebhookConfig(
            url="https://example.org/hook?a=1,2", secret="abc,def", types=("session.*", "ban")
        ),
        WebhookConfig(url="https://example.org/other"),
        WebhookConfig(url="http://10.0.0.1:8080/x", allow_private=True),
    )


@pytest.mark.parametrize("text", ["", "Events:", "Events: []", "Events: ~"])
def test_nobody_is_told(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == EventsConfig()


def test_one_entry_and_the_variable(tmp_path: Path) -> None:
    assert len(read(tmp_path, "Events: {Url: 'https://a.example/'}").webhooks) == 1
    webhooks = read(
        tmp_path, "", TRIONAT_EVENTS="https://a.example/x, https://b.example/y"
    ).webhooks
    assert [webhook.host for webhook in webhooks] == ["a.example", "b.example"]


@pytest.mark.parametrize(
    ("entry", "place", "words"),
    [
        ("{Secret: x}", "Events[0]", "lacks Url"),
        ("{Url: 'https://h/', Typos: x}", "Events[0].Typos", "did you mean Types?"),
        (f"{{Url: 'ftp://h/{HIDDEN}'}}", "Events[0].Url", "is no a URL"),
        (f"{{Url: 'https://u:{HIDDEN}@h/'}}", "Events[0].Url", "is no a URL"),
        (f"{{Url: 'https://h/{HIDDEN} x'}}", "Events[0].Url", "is no a URL"),
        (f"'https://h/{HIDDEN} x'", "Events[0]", "the text is not a URL"),
        ("{Url: 'https://h/', Types: [session.lots]}", "Events[0].Types[0]", "is no event"),
        ("{Url: 'https://h/', Types: ['sesion.*']}", "Events[0].Types[0]", "is no event"),
        ("{Url: 'https://h/', Template: teams}", "Events[0].Template", "is not json, slack"),
        ("{Url: 'https://h/', AllowPrivate: maybe}", "Events[0].AllowPrivate", "neither true nor"),
        (f"{{Url: 'https://h/', Template: wecom, Secret: {HIDDEN}}}", "Events", "knows no Secret"),
        ("{Url: 'https://ntfy.sh/', Template: ntfy}", "Events", "lacks its topic"),
        (
            f"{{Url: 'https://ntfy.sh/x', Template: ntfy, Secret: '{HIDDEN} '}}",
            "Events",
            "no access token",
        ),
        (
            f"{{Url: 'https://ntfy.sh/x', Template: ntfy, Secret: '{HIDDEN}ä'}}",
            "Events",
            "no access token",
        ),
        (f"{{Url: 'https://h/', Secret: {{{HIDDEN}: 1}}}}", "Events[0].Secret", "single value"),
        (f"{{Url: 'https://h/', Secret: {{{HIDDEN}: 1, {HIDDEN}: 2}}}}", "Events[0].Secret", ""),
        (f"{{Url: 'https://h/', Secret:{HIDDEN}}}", "Events[0]", ""),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_without_secrets(
    tmp_path: Path, entry: str, place: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"Server:\n  Name: x\nEvents:\n  - {entry}\n")
    assert f"s.yml:{3 if place == 'Events' else 4}: {place}" in str(caught.value)
    assert words in str(caught.value)
    assert HIDDEN not in str(caught.value)


def test_the_same_url_twice_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named more than once") as caught:
        read(tmp_path, f"Events: ['https://h/{HIDDEN}', 'https://h/{HIDDEN}']")
    assert HIDDEN not in str(caught.value)


def test_what_may_not_be_meant(tmp_path: Path) -> None:
    (tmp_path / "s.yml").write_text(
        f"Events: ['https://hooks.slack.com/{HIDDEN}', 'https://h/{HIDDEN}', 'http://h/{HIDDEN}']"
    )
    told = "\n".join(map(str, load("server", file=tmp_path / "s.yml", environ={}).warnings))
    for words in ("set Template: slack", "without a Secret", "without TLS"):
        assert words in told
    assert HIDDEN not in told


def test_no_secret_is_shown(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"Events: [{{Url: 'https://h.example:8443/{HIDDEN}?k={HIDDEN}', Secret: {HIDDEN}}}]",
    )
    assert HIDDEN not in repr(config)
    assert KEYS["Events"].write(config.webhooks) == "https://h.example:8443/…"


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ((), {"ban", "ban.lifted", "session.up"}),
        (("*",), {"ban", "ban.lifted", "session.up"}),
        (("ban",), {"ban"}),
        (("ban.*",), {"ban", "ban.lifted"}),
        (("session.*", "ban"), {"ban", "session.up"}),
    ],
)
def test_which_types_are_wanted(types: tuple[str, ...], wanted: set[str]) -> None:
    webhook = WebhookConfig(url="https://h/", types=types)
    assert {each for each in ("ban", "ban.lifted", "session.up") if webhook.wants(each)} == wanted
