"""What a visitor sees where no service answers: well-formed, of the kind that was asked for, and nothing of the request gets out unescaped."""

from __future__ import annotations

import html
import json
import os
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final

import h11
import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.errors import StartupError
from trionat.protocol.http.head import RequestHead, parse_request
from trionat.server.names.page import _TEXTS, Pages

if TYPE_CHECKING:
    from pathlib import Path

BROWSER: Final = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
STATUSES: Final = sorted(_TEXTS)
PAGES: Final = Pages()


def request(accept: str = BROWSER, method: str = "GET") -> RequestHead:
    return parse_request(
        f"{method} / HTTP/1.1\r\nHost: shop.example.org\r\nAccept: {accept}\r\n\r\n".encode()
    )


def parsed(answer: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Read an answer as a client does, by two parsers that have to agree; return status, fields and body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response), head
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    if method != "HEAD":
        parser = httptools.HttpResponseParser(object())
        parser.feed_data(answer)
        assert parser.get_status_code() == head.status_code
    return head.status_code, {n.decode(): v.decode() for n, v in head.headers}, body


class _Texts(HTMLParser):
    """The words of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_has_a_page_of_each_kind(status: int) -> None:
    told, fields, body = parsed(PAGES.answer(status, request(), name="shop.example.org"))
    assert (told, fields["content-type"]) == (status, "text/html; charset=utf-8")
    assert "default-src 'none'" in fields["content-security-policy"]
    assert len(body) < 4096
    texts = _Texts(body.decode())
    assert _TEXTS[status][0] in texts.words
    assert "shop.example.org" in texts.words
    assert not {"script", "img", "link", "iframe"} & set(texts.elements)

    told, fields, body = parsed(PAGES.answer(status, request("application/json"), name="a.b"))
    assert fields["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert (problem["status"], problem["name"], problem["title"]) == (
        status,
        "a.b",
        _TEXTS[status][0],
    )

    told, fields, body = parsed(PAGES.answer(status, request("*/*"), name="a.b"))
    assert fields["content-type"] == "text/plain; charset=utf-8"
    assert body.startswith(f"{status} ".encode())

    told, fields, body = parsed(PAGES.answer(status, None))
    assert told == status
    assert body.startswith(f"{status} ".encode())


def test_head_gets_no_body() -> None:
    status, fields, body = parsed(PAGES.answer(404, request(method="HEAD")), "HEAD")
    assert (status, body) == (404, b"")
    assert int(fields["content-length"]) > 1000


def test_when_to_come_again() -> None:
    _, fields, _ = parsed(PAGES.answer(503, request(), retry_after=5))
    assert fields["retry-after"] == "5"
    assert "retry-after" not in parsed(PAGES.answer(502, request()))[1]


@given(st.text(), st.text(), st.sampled_from(STATUSES))
def test_nothing_gets_out_unescaped(name: str, text: str, status: int) -> None:
    _, _, body = parsed(PAGES.answer(status, request(), name=name, text=text, title=text))
    page = body.decode()
    usual = _Texts(PAGES.answer(status, request(), name="a").partition(b"\r\n\r\n")[2].decode())
    assert len(_Texts(page).elements) <= len(usual.elements)
    if not re.fullmatch(r"[a-z0-9.:-]{1,253}", name):
        assert 'class="name"' not in page
    _, _, body = parsed(PAGES.answer(status, request("application/json"), name=name, text=text))
    json.loads(body)


def test_pages_of_the_operator(tmp_path: Path) -> None:
    (tmp_path / "404.html").write_text("<b>{status}</b> {name}: {title} {other} {detail}")
    (tmp_path / "error.html").write_text("all others: {status}")
    (tmp_path / "503.html").write_bytes(b"\xff no text")
    (tmp_path / "notes.txt").write_text("not a page")
    (tmp_path / "413.html").write_text("x" * 300_000)
    (tmp_path / "504.html").mkdir()
    os.mkfifo(tmp_path / "505.html")
    pages = Pages(tmp_path)
    pages.load()
    _, fields, body = parsed(pages.answer(404, request(), name="shop.example.org", text="<i>"))
    title = html.escape(_TEXTS[404][0])
    assert body.decode() == f"<b>404</b> shop.example.org: {title} {{other}} &lt;i&gt;"
    assert "default-src" not in fields["content-security-policy"]
    for status in (502, 503):
        assert parsed(pages.answer(status, request()))[2].decode() == f"all others: {status}"
    assert parsed(pages.answer(404, request("application/json")))[1]["content-type"].endswith(
        "json"
    )
    with pytest.raises(StartupError, match="PagesDir"):
        Pages(tmp_path / "none").load()


def test_a_redirect() -> None:
    status, fields, body = parsed(PAGES.redirect(request(), "https://shop.example.org/a?b"))
    assert (status, fields["location"], body) == (308, "https://shop.example.org/a?b", b"")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("shop.tunnel.example.com", "http:8080@shop."),
        ("tunnel.example.com", ""),
        ("a.shop.tunnel.example.com", ""),
        ("shop.example.org", ""),
        ("203.0.113.7", ""),
        ("www.tunnel.example.com", ""),
        ("localhost", ""),
        ("", ""),
    ],
)
def test_only_a_name_below_the_domain_can_simply_be_had(name: str, advice: str) -> None:
    body = parsed(Pages(domain="tunnel.example.com").answer(404, request(), name=name))[2].decode()
    assert ("trionat connect" in body) == bool(advice)
    assert advice in body
