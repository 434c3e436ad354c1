"""The section `Events`: who is told what happens at a server. It is a list, of which each entry is a webhook."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from trionat.config.key import AT_ONCE, key
from trionat.config.values import BOOLEAN, TEXT, Kind, one_of
from trionat.text import invisible_in, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.config.key import Fault

EVENT_TYPES: Final = (
    "account.added",
    "account.changed",
    "account.expired",
    "account.removed",
    "ban",
    "ban.lifted",
    "certificate.expiring",
    "certificate.failing",
    "certificate.renewed",
    "node.gone",
    "node.up",
    "quota.reached",
    "quota.warning",
    "server.stopping",
    "server.up",
    "session.back",
    "session.ended",
    "session.lost",
    "session.up",
)
"""What can be told of; `server/events/event.py` has the fields of each."""

JSON: Final = "json"
SLACK: Final = "slack"
FEISHU: Final = "feishu"
DINGTALK: Final = "dingtalk"
WECOM: Final = "wecom"
NTFY: Final = "ntfy"
"""What `Template` may be."""

_HOSTS: Final = {
    "hooks.slack.com": SLACK,
    "open.feishu.cn": FEISHU,
    "open.larksuite.com": FEISHU,
    "oapi.dingtalk.com": DINGTALK,
    "qyapi.weixin.qq.com": WECOM,
    "ntfy.sh": NTFY,
}
"""Where the services are that want a form of their own."""

_KEYLESS: Final = frozenset({SLACK, WECOM})
"""They have no secret besides their URL."""

_TOKEN: Final = re.compile(r"[!-~]*", re.ASCII)
"""What may stand behind `Bearer` in a header."""

MOST_WEBHOOKS: Final = 32

_URL: Final = re.compile(r"https?://[!-~]+", re.ASCII)
_LONGEST_URL: Final = 2048


def _read_url(text: str) -> str:
    """Read a URL; never shown in the message, since whoever knows it may send there."""
    if not _is_url(text):
        raise ValueError(f"the text is not {URL.words}")
    return text


def _is_url(text: str) -> bool:
    if len(text) > _LONGEST_URL or not _URL.fullmatch(text):
        return False
    try:
        parts = urlsplit(text)
        return (
            bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc and "#" not in text
        )
    except ValueError:
        return False


def _read_type(text: str) -> tuple[str, ...]:
    text = text.strip()
    if text == "*" or text in EVENT_TYPES:
        return (text,)
    group, dot, rest = text.partition(".")
    if dot and rest == "*" and any(each.startswith(f"{group}.") for each in EVENT_TYPES):
        return (text,)
    raise ValueError(
        f"{quoted(text)} is no event: known are {', '.join(EVENT_TYPES)}, and session.* for all of a kind"
    )


def is_among(type_: str, types: tuple[str, ...]) -> bool:
    """Tell whether a type is one of those that `TYPES` has read."""
    return any(
        each in ("*", type_) or (each.endswith(".*") and f"{type_}.".startswith(each[:-1]))
        for each in types
    )


URL: Final = Kind("a URL, https://HOST/PATH, without user and password", _read_url)
TYPES: Final = Kind(
    "events such as session.lost, or session.* for all of a kind", _read_type, ", ".join
)
TEMPLATE: Final = one_of(JSON, SLACK, FEISHU, DINGTALK, WECOM, NTFY)


@attrs.frozen(kw_only=True)
class WebhookConfig:
    """One webhook. `secret` is what the `template` makes of it; `shown` is all of its URL that anybody is shown."""

    url: str = attrs.field(
        repr=False,
        metadata=key(
            "Url",
            URL,
            "where events are sent to; whoever knows it may send there, so it is shown to nobody",
            flag=None,
        ),
    )
    secret: str = attrs.field(
        default="",
        repr=False,
        metadata=key(
            "Secret",
            TEXT,
            "json: what messages are signed with; feishu, dingtalk: the signing key of the robot; ntfy: an access token",
            flag=None,
        ),
    )
    types: tuple[str, ...] = attrs.field(
        default=(),
        metadata=key("Types", TYPES, "which events", many=True, unset="all", flag=None),
    )
    template: str = attrs.field(
        default=JSON,
        metadata=key(
            "Template",
            TEMPLATE,
            "which form a message has: that of a chat service, or all of the event",
            flag=None,
        ),
    )
    allow_private: bool = attrs.field(
        default=False,
        metadata=key(
            "AllowPrivate",
            BOOLEAN,
            "whether it may be at an address that only this machine or its network knows",
            flag=None,
        ),
    )

    @property
    def host(self) -> str:
        """The host of the URL."""
        return urlsplit(self.url).hostname or ""

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it."""
        parts = urlsplit(self.url)
        rest = "/…" if parts.path.strip("/") or parts.query else ""
        return f"{parts.scheme}://{parts.netloc}{rest}"

    def wants(self, type_: str) -> bool:
        """Tell whether it is to hear of events of a type."""
        return not self.types or is_among(type_, self.types)


def _read_webhook(text: str) -> tuple[WebhookConfig, ...]:
    return (WebhookConfig(url=_read_url(text.strip())),)


WEBHOOKS: Final[Kind[tuple[WebhookConfig, ...]]] = Kind(
    "URLs, or entries with Url, Secret, Types, Template and AllowPrivate",
    _read_webhook,
    lambda webhook: webhook.shown,
)


@attrs.frozen(kw_only=True)
class EventsConfig:
    """Who is told what happens at a server: the section `Events`, which is a list."""

    section: ClassVar[str] = "Events"

    webhooks: tuple[WebhookConfig, ...] = attrs.field(
        default=(),
        metadata=key(
            "",
            WEBHOOKS,
            "who is told what happens at the server",
            many=True,
            item=WebhookConfig,
            unset="nobody",
            flag=None,
            effect=AT_ONCE,
        ),
    )

    def faults(self) -> Iterator[Fault]:
        """What does not go together."""
        if len(self.webhooks) > MOST_WEBHOOKS:
            yield ("webhooks",), f"{len(self.webhooks)} webhooks are more than {MOST_WEBHOOKS}"
        for url, count in Counter(webhook.url for webhook in self.webhooks).items():
            if count > 1:
                shown = next(each.shown for each in self.webhooks if each.url == url)
                yield (
                    ("webhooks",),
                    f"one URL at {shown} is named more than once: put its Types together",
                )
        for number, webhook in enumerate(self.webhooks):
            if webhook.template in _KEYLESS and webhook.secret:
                yield (
                    ("webhooks",),
                    f"webhook [{number}]: {webhook.template} knows no Secret besides its URL: leave it out",
                )
            if webhook.template == NTFY and not _TOKEN.fullmatch(webhook.secret):
                yield (
                    ("webhooks",),
                    f"webhook [{number}]: the Secret is no access token, which has neither blanks nor letters beyond ASCII: copy it anew",
                )
            if webhook.template == NTFY and not urlsplit(webhook.url).path.strip("/"):
                yield (
                    ("webhooks",),
                    f"webhook [{number}]: the URL lacks its topic: write it as in https://ntfy.sh/my-topic",
                )

    def warnings(self) -> Iterator[Fault]:
        """What is most likely not meant."""
        for number, webhook in enumerate(self.webhooks):
            where = f"webhook [{number}] ({webhook.shown})"
            likely = _HOSTS.get(webhook.host.lower())
            if likely is not None and webhook.template != likely:
                yield (
                    ("webhooks",),
                    f"{where}: that service does not understand Template {webhook.template}: set Template: {likely}",
                )
            elif webhook.template == JSON and not webhook.secret:
                yield ("webhooks",), f"{where}: without a Secret its receiver cannot tell who sends"
            if webhook.url.startswith("http:") and not webhook.allow_private:
                yield (
                    ("webhooks",),
                    f"{where}: without TLS everybody on the way can read what is sent: write https",
                )
            if (found := invisible_in(webhook.secret)) is not None:
                yield (
                    ("webhooks",),
                    f"{where}: the Secret has {found}: was it pasted with more than it is?",
                )
