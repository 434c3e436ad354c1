"""What may be sent to a service instead of what a visitor has sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.client.inspector.http_view import raw_body, read_conversation
from trionat.client.inspector.replay import EditError, write_request


def test_the_length_is_said_anew() -> None:
    fields = [
        ("Host", "x"),
        ("Content-Length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Encoding", "gzip"),
    ]
    assert write_request("PUT", "/a", fields, b"hello") == (
        b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert b"Content-Encoding: gzip" in write_request("PUT", "/", fields, b"x", is_new_body=False)
    assert write_request("GET", "/", [("Host", "x")], b"", minor=0) == (
        b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
    )
    assert b"Content-Length: 0" in write_request("POST", "/", [], b"")


@pytest.mark.parametrize(
    ("method", "target", "field", "part"),
    [
        ("GET /", "/", ("A", "b"), "method"),
        ("", "/", ("A", "b"), "method"),
        ("GET", "/a b", ("A", "b"), "target"),
        ("GET", "/\r\nX: y", ("A", "b"), "target"),
        ("GET", "", ("A", "b"), "target"),
        ("GET", "/漢", ("A", "b"), "target"),
        ("GET", "/", ("A b", "c"), "fields"),
        ("GET", "/", ("A", "b\r\nC: d"), "fields"),
        ("GET", "/", ("A", "漢"), "fields"),
        ("GET", "/", ("A", "\0"), "fields"),
    ],
)
def test_what_would_be_no_request(
    method: str, target: str, field: tuple[str, str], part: str
) -> None:
    with pytest.raises(EditError) as caught:
        write_request(method, target, [field], b"")
    assert caught.value.field == part


@given(
    st.text(max_size=9),
    st.text(max_size=9),
    st.text(max_size=9),
    st.text(max_size=9),
    st.binary(max_size=50),
)
def test_it_is_always_one_request(
    method: str, target: str, name: str, value: str, body: bytes
) -> None:
    """Whatever somebody writes: none is smuggled in behind it."""
    try:
        data = write_request(method, target, [(name, value)], body)
    except EditError:
        return
    view = read_conversation(data, b"")
    (exchange,) = view.exchanges
    assert exchange.request.is_whole
    assert exchange.request.end == len(data)
    assert raw_body(data, exchange.request) == body
