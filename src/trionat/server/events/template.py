"""What a message looks like: all of an event as JSON, signed, or a text in the form that a chat service takes; and whether its answer means that it was taken.

The forms are those of the services' own pages: Slack, Incoming Webhooks; Feishu, Custom Bot; DingTalk, Custom Robot; WeCom, Group Robot; ntfy, Publish as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import attrs

from trionat.config.events import DINGTALK, FEISHU, JSON, NTFY, SLACK, WECOM
from trionat.log import escape
from trionat.server.events.event import DROPPED, LEFT_OUT, TEST
from trionat.text import counted
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.config.events import WebhookConfig
    from trionat.server.events.event import Event
    from trionat.server.events.journal import Kept
    from trionat.server.events.post import Answer

_MOST_LINES: Final = 20
"""Events that are one message of a chat: services take so many messages a minute, and no more."""

_MOST_BYTES: Final = {SLACK: 12_000, FEISHU: 12_000, DINGTALK: 12_000, WECOM: 2_000, NTFY: 4_000}
"""Of a text: what each service takes, or less (WeCom 2,048, ntfy 4,096, the others 20,000 and more)."""

_LONGEST_WORDS: Final = 200
"""Characters of an answer that are told."""

_ALARMS: Final = frozenset(
    {
        "session.lost",
        "quota.reached",
        "certificate.expiring",
        "certificate.failing",
        "node.gone",
        DROPPED,
        LEFT_OUT,
    }
)
"""What somebody should look at; ntfy shows it so."""

_AGENT: Final = f"trionat/{VERSION}"


@attrs.frozen
class Message:
    """A request. It is `last` up to which event it tells."""

    url: str = attrs.field(repr=False)
    headers: dict[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    last: int


def compose(webhook: WebhookConfig, events: Sequence[Kept], delivery: str, now: float) -> Message:
    """Make a message of the first events, as many as go into one.

    Args:
        webhook: For whom.
        events: At least one.
        delivery: What names the first event, and nothing else ever.
        now: The time of day, which signatures are for.
    """
    first = events[0]
    headers = {"Content-Type": "application/json", "User-Agent": _AGENT}
    if webhook.template == JSON:
        headers |= {
            "Trionat-Event": first.event.type,
            "Trionat-Delivery": delivery,
        }
        if webhook.secret:
            headers["Trionat-Signature"] = sign(webhook.secret, first.line, int(now))
        return Message(webhook.url, headers, first.line, first.event.number)
    texts = _fit([sentence(kept.event) for kept in events[:_MOST_LINES]], webhook.template)
    told = [kept.event for kept in events[: len(texts)]]
    url, values = _in_form(webhook, told, "\n".join(texts), now)
    if webhook.template == NTFY and webhook.secret:
        headers["Authorization"] = f"Bearer {webhook.secret}"
    return Message(url, headers, json.dumps(values).encode("ascii"), told[-1].number)


def sign(secret: str, body: bytes, moment: int) -> str:
    """Return the signature of a body: of the moment, a dot and the body, so that nobody can send it again much later."""
    mac = hmac.new(secret.encode(errors="surrogatepass"), b"%d.%b" % (moment, body), hashlib.sha256)
    return f"t={moment},v1={mac.hexdigest()}"


def _fit(texts: list[str], template: str) -> list[str]:
    """Return as many of the texts as a message may have; of one that is too long alone, its beginning."""
    room = _MOST_BYTES[template]
    fitting: list[str] = []
    for text in texts:
        room -= len(text.encode()) + 1
        if room < 0:
            break
        fitting.append(text)
    return fitting or [texts[0].encode()[: _MOST_BYTES[template]].decode(errors="ignore")]


def _in_form(
    webhook: WebhookConfig, events: Sequence[Event], text: str, now: float
) -> tuple[str, dict[str, Any]]:
    """Return the URL, and what the service takes there."""
    url, secret = webhook.url, webhook.secret.encode(errors="surrogatepass")
    match webhook.template:
        case "slack":
            return (
                url,
                {
                    "text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
                    "mrkdwn": False,  # *bold* would be bold
                    "unfurl_links": False,  # and a link that somebody calls himself be looked up and shown
                    "unfurl_media": False,
                },
            )
        case "feishu":
            # There is no way to write a bracket that is none: <at user_id="all"> in somebody's name would call everybody.
            values: dict[str, Any] = {
                "msg_type": "text",
                "content": {"text": text.replace("<", "\N{FULLWIDTH LESS-THAN SIGN}")},
            }
            if secret:
                moment = str(int(now))
                key = f"{moment}\n".encode() + secret
                values |= {"timestamp": moment, "sign": _mac(key, b"")}
            return url, values
        case "dingtalk":
            if secret:
                moment = str(int(now * 1000))
                mac = quote(_mac(secret, f"{moment}\n".encode() + secret), safe="")
                url += f"{'&' if urlsplit(url).query else '?'}timestamp={moment}&sign={mac}"
            return url, {"msgtype": "text", "text": {"content": text}}
        case "wecom":
            return url, {"msgtype": "text", "text": {"content": text}}
        case "ntfy":
            before, _, topic = urlsplit(url).path.strip("/").rpartition("/")
            parts = urlsplit(url)
            root = parts._replace(path=f"/{before}/" if before else "/").geturl()
            alarm = any(event.type in _ALARMS for event in events)
            return root, {
                "topic": topic,
                "title": f"trionat: {events[0].type}"
                if len(events) == 1
                else f"trionat: {counted(len(events), 'event')}",
                "message": text,
                "priority": 4 if alarm else 3,
                "tags": ["warning" if alarm else "information_source"],
            }
        case other:
            raise AssertionError(f"there is no template {other!r}")


def _mac(key: bytes, message: bytes) -> str:
    return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


def why_not_taken(template: str, answer: Answer) -> str | None:
    """Return why an answer does not mean that the message was taken; None where it does. Feishu, DingTalk and WeCom say so in the body."""
    if not 200 <= answer.status < 300:
        said = _words(answer.body)
        redirected = ": redirections are not followed" if 300 <= answer.status < 400 else ""
        return f"status {answer.status}{redirected}{f': {said}' if said and not redirected else ''}"
    if template not in (FEISHU, DINGTALK, WECOM):
        return None
    try:
        values = json.loads(answer.body)
        codes = [values[name] for name in ("errcode", "code", "StatusCode") if name in values]
    except (ValueError, TypeError, RecursionError):
        codes = []
    return (
        None
        if codes and not any(codes)
        else f"its answer says that it was not: {_words(answer.body)}"
    )


def _words(body: bytes) -> str:
    return escape(" ".join(body.decode(errors="replace").split()))[:_LONGEST_WORDS]


def sentence(event: Event) -> str:
    """Tell an event in a line for people; nothing that a peer has said in it can be more than a word."""
    return (
        escape(f"[{event.server}] {_words_of(event.type, event.data)}")
        .encode(errors="replace")
        .decode()
    )


def _words_of(type_: str, data: Any) -> str:
    match type_, data:
        case ("session.up" | "session.back") as what, {
            "client": client,
            "user": user,
            "address": address,
            "points": points,
        }:
            state = "is up" if what == "session.up" else "is back"
            return f"client {client} of {user} {state} at {', '.join(map(str, points))} (from {address})"
        case ("session.lost" | "session.ended") as what, {
            "client": client,
            "user": user,
            "reason": reason,
        }:
            state = "is lost" if what == "session.lost" else "has ended"
            return f"client {client} of {user} {state}: {reason}"
        case ("quota.warning" | "quota.reached") as what, {
            "user": user,
            "month": month,
            "used": used,
            "quota": quota,
        }:
            state = (
                "has used 80 % of its quota" if what == "quota.warning" else "has used up its quota"
            )
            return f"{user} {state} of {month}: {used} of {quota} bytes"
        case "ban", {"network": network, "failures": failures, "seconds": seconds}:
            return f"{network} is banned for {seconds:g} s after {failures} failed logins"
        case "ban.lifted", {"network": network, "reason": reason}:
            return f"the ban of {network} is over: {reason}"
        case "certificate.renewed", {"name": name, "ends": ends}:
            return f"new certificate for {name}, until {ends}"
        case "certificate.failing", {"name": name, "reason": reason, "next_try": again}:
            return f"no new certificate for {name}: {reason} (tried again {again})"
        case "certificate.expiring", {"name": name, "ends": ends, "reason": reason}:
            return f"the certificate for {name} runs out on {ends}: {reason}"
        case ("node.up" | "node.gone") as what, {"node": node, "address": address}:
            return f"node {node} at {address} {'has come' if what == 'node.up' else 'is gone'}"
        case ("account.added" | "account.changed" | "account.removed") as what, {
            "user": user,
            "by": by,
            "what": part,
        }:
            detail = f" ({part})" if part else ""
            return f"account {user} was {what.partition('.')[2]} by {by}{detail}"
        case "account.expired", {"user": user, "expires_at": moment}:
            return f"account {user} has expired on {moment}, and is still asked for"
        case "server.up", {"version": number, "control": control}:
            return f"trionat {number} is up at {control}"
        case "server.stopping", {"grace": grace}:
            return f"the server stops; visitors may finish within {grace:g} s"
        case ("test", _) if type_ == TEST:
            return "this is a test of trionat's events"
        case (_, {"user": user, "count": count, "types": types}) if type_ == LEFT_OUT:
            whose = "" if user is None else f" of clients of {user}"
            parts = ", ".join(f"{number} {each}" for each, number in types.items())
            return f"{counted(count, 'event')}{whose} left out, since there were too many: {parts}"
        case (_, {"count": count}) if type_ == DROPPED:
            return f"{counted(count, 'event')} before this went untold: there were too many"
        case _:
            return f"{type_}: {json.dumps(data)}"
