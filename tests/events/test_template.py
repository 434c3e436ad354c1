"""What messages look like, for each service, and what its answers mean."""

from __future__ import annotations

import base64
import hashlib
import hmac
import inspect
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from trionat.config.events import WebhookConfig
from trionat.server.events.event import KINDS, Event
from trionat.server.events.journal import Kept
from trionat.server.events.post import Answer
from trionat.server.events.template import compose, sentence, why_not_taken

NASTY = '<!channel> <at user_id="all">x</at> & \x1b[31m \u202e \n @everyone'
NOW = 1_800_000_000.5


def kept(number: int = 1, **data: Any) -> Kept:
    values = {"network": "192.0.2.7", "reason": "its time is over"} | data
    event = Event(number, NOW, "ban.lifted", "here", values)
    return Kept(event, event.to_json())


def made(
    template: str, *events: Kept, secret: str = "", url: str = "https://chat.example/hook/1"
) -> Any:
    webhook = WebhookConfig(url=url, template=template, secret=secret)
    return compose(webhook, events or (kept(),), "journal-7", NOW)


def test_json_is_the_line_itself() -> None:
    message = made("json", kept(7), kept(8))
    assert message.body == kept(7).line
    assert message.last == 7
    assert message.headers["Trionat-Delivery"] == "journal-7"
    assert "Trionat-Signature" not in message.headers
    assert json.loads(message.body).keys() == {"number", "time", "type", "server", "data"}


def test_slack() -> None:
    values = json.loads(made("slack", kept(network=NASTY)).body)
    text = values.pop("text")
    assert values == {"mrkdwn": False, "unfurl_links": False, "unfurl_media": False}
    assert "&lt;!channel&gt;" in text
    assert "<" not in text
    assert text.isprintable()


def test_feishu() -> None:
    values = json.loads(made("feishu", kept(network=NASTY), secret="k").body)
    assert values["msg_type"] == "text"
    assert "<at" not in values["content"]["text"]
    # As Feishu's page has it: the key is the moment, a line feed and the secret, and the message is empty.
    key = f"{values['timestamp']}\nk".encode()
    assert values["sign"] == base64.b64encode(hmac.new(key, b"", hashlib.sha256).digest()).decode()
    assert values["timestamp"] == "1800000000"
    assert json.loads(made("feishu").body).keys() == {"msg_type", "content"}


def test_dingtalk() -> None:
    url = "https://oapi.dingtalk.com/robot/send?access_token=abc"
    message = made("dingtalk", secret="SEC1", url=url)
    query = parse_qs(urlsplit(message.url).query)
    assert query["access_token"] == ["abc"]
    assert query["timestamp"] == ["1800000000500"]
    mac = hmac.new(b"SEC1", b"1800000000500\nSEC1", hashlib.sha256).digest()
    assert query["sign"] == [base64.b64encode(mac).decode()]
    assert json.loads(message.body)["msgtype"] == "text"
    assert made("dingtalk", url=url).url == url


def test_wecom_fits_into_its_bytes() -> None:
    events = [kept(number, network="名" * 300) for number in range(1, 6)]
    message = made("wecom", *events)
    text = json.loads(message.body)["text"]["content"]
    assert len(text.encode()) <= 2048
    assert message.last == 2
    alone = made("wecom", kept(1, network="名" * 2000), kept(2))
    assert alone.last == 1
    assert 1900 < len(json.loads(alone.body)["text"]["content"].encode()) <= 2048


def test_ntfy_goes_to_the_root_with_its_topic() -> None:
    message = made("ntfy", secret="tk_1", url="https://ntfy.example/base/my-topic")
    assert message.url == "https://ntfy.example/base/"
    assert message.headers["Authorization"] == "Bearer tk_1"
    values = json.loads(message.body)
    assert values["topic"] == "my-topic"
    assert values["title"] == "trionat: ban.lifted"
    assert made("ntfy", url="https://ntfy.sh/my-topic").url == "https://ntfy.sh/"


def test_several_are_lines_of_one_message() -> None:
    message = made("dingtalk", *(kept(number) for number in range(1, 31)))
    assert json.loads(message.body)["text"]["content"].count("\n") == 19
    assert message.last == 20


@pytest.mark.parametrize(
    ("template", "status", "body", "taken"),
    [
        ("json", 200, b"", True),
        ("json", 299, b"{}", True),
        ("json", 302, b"", False),
        ("slack", 200, b"ok", True),
        ("slack", 400, b"invalid_payload", False),
        ("feishu", 200, b'{"code":0,"msg":"success"}', True),
        ("feishu", 200, b'{"StatusCode":0,"StatusMessage":"success","code":0}', True),
        ("feishu", 200, b'{"code":19021,"msg":"sign match fail"}', False),
        ("dingtalk", 200, b'{"errcode":0,"errmsg":"ok"}', True),
        ("dingtalk", 200, b'{"errcode":310000,"errmsg":"keywords not in content"}', False),
        ("wecom", 200, b'{"errcode":45009,"errmsg":"api freq out of limit"}', False),
        ("wecom", 200, b"<html>", False),
        ("wecom", 200, b"[]", False),
        ("ntfy", 200, b'{"id":"x"}', True),
    ],
)
def test_what_an_answer_means(template: str, status: int, body: bytes, taken: bool) -> None:
    reason = why_not_taken(template, Answer(status, body))
    assert (reason is None) == taken
    if reason is not None:
        assert "\n" not in reason


def test_what_a_receiver_says_cannot_drive_a_terminal() -> None:
    reason = why_not_taken("json", Answer(500, b"\x1b[2J\r\n\xff" + b"x" * 5000))
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) < 300


@pytest.mark.parametrize("type_", KINDS)
def test_every_type_has_a_sentence(type_: str) -> None:
    values: dict[str, Any] = {
        name: 5.0
        if name in ("seconds", "grace")
        else (60001, "shop")
        if name == "points"
        else NASTY
        for name in inspect.signature(KINDS[type_]).parameters
    }
    text = sentence(Event(1, NOW, type_, "here", values))
    assert text.isprintable(), "one line, and nothing that a terminal or a chat takes for more"
    assert "{" not in text, "no words for it"
