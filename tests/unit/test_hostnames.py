from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.hostnames import (
    MAX_HOSTNAME,
    RESERVED_LABELS,
    label_below,
    matches,
    parse_hostname,
    parse_label,
    parse_name,
    parse_pattern,
    whole_name,
)

LONG = "a" * 63

labels = st.from_regex(r"[a-z0-9]([a-z0-9]{0,3}[a-z0-9])?", fullmatch=True)
tops = st.sampled_from(["org", "example", "xn--p1ai"])
hostnames = st.builds(
    lambda front, top: ".".join([*front, top]), st.lists(labels, min_size=1, max_size=4), tops
)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("shop", "shop"),
        ("Shop-1", "shop-1"),
        ("8080", "8080"),
        ("a", "a"),
        (LONG, LONG),
        ("xn--bcher-kva", "xn--bcher-kva"),
        ("XN--strae-oqa", "xn--strae-oqa"),  # one that the older standard would not write
        ("xn--ls8h", "xn--ls8h"),  # a picture
    ],
)
def test_labels(text: str, label: str) -> None:
    assert parse_label(text) == label
    assert parse_name(text) == label
    assert parse_pattern(text) == label


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("shop.example.org", "shop.example.org"),
        ("Shop.Example.ORG.", "shop.example.org"),
        ("1.2.3.example", "1.2.3.example"),
        ("a.b", "a.b"),
        (f"{LONG}.{LONG}.{LONG}.{'b' * 57}.org", f"{LONG}.{LONG}.{LONG}.{'b' * 57}.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_whole_names(text: str, name: str) -> None:
    assert parse_hostname(text) == name
    assert parse_name(text) == name
    assert parse_pattern(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a valid name: there is nothing between two dots, or nothing at all"),
        (".", "is not a valid name: there is nothing between"),
        ("a..b", "is not a valid name: there is nothing between two dots"),
        (".shop.example.org", "is not a valid name: there is nothing between two dots"),
        ("shop.example.org..", "is not a valid name: there is nothing between two dots"),
        ("-shop", "'-shop' is not a valid name: a label has letters, digits and dashes, and no"),
        ("shop-", "no dash at either end, as in shop-1"),
        ("my_shop", "a label has letters, digits and dashes"),
        ("my shop", "a label has letters, digits and dashes"),
        ("shop\n", "a label has letters, digits and dashes"),
        ("shop*", "* stands in patterns only"),
        (f"{LONG}a", "a label has at most 63 characters"),
        (f"{LONG}.{LONG}.{LONG}.{'b' * 58}.org", "a value of 254 characters is too long"),
        ("bücher", "'bücher' is not ASCII: write xn--bcher-kva"),
        ("Bücher.example", "'Bücher.example' is not ASCII: write xn--bcher-kva.example"),
        ("straße", "letters beyond a to z are written in their ASCII form, which begins with xn--"),
        ("\U0001f4a9", "is not ASCII: write xn--ls8h"),
        ("ä" * 70, "letters beyond a to z are written in their ASCII form"),
        ("\r\xa0", "letters beyond a to z are written in their ASCII form"),
        ("\ud800", "letters beyond a to z are written in their ASCII form"),
        ("shop\u3002example\u3002org", "is not ASCII: write shop.example.org"),
        ("xn--zzzzzz", "xn--zzzzzz stands for no other letters"),
        ("xn--", "no dash at either end"),
        ("xn--abc-", "no dash at either end"),
        ("ab--cd", "two dashes in the third and fourth place are for names that begin with xn--"),
        ("203.0.113.7", "'203.0.113.7' is an IP address: write a name"),
        ("2001:db8::7", "is an IP address: write a name"),
        ("[2001:db8::7]", "is an IP address: write a name"),
        ("203.0.113", "it ends with '113', which is no top-level domain"),
        ("127.0x1", "it ends with '0x1', which is no top-level domain"),
        ("shop.0x", "it ends with '0x', which is no top-level domain"),
        ("shop.example.org:8080", "is more than a name: leave out the port"),
        ("https://shop.example.org", "is a URL: write the name alone, as in shop.example.org"),
        ("shop.example.org/x", "is a URL: write the name alone"),
    ],
)
def test_what_is_no_name_is_told_in_a_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        parse_name(text)
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1


def test_a_label_is_no_whole_name_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match=r"'a\.b' is more than a label: write one without dots"):
        parse_label("a.b")
    with pytest.raises(ValueError, match=r"'a' is not a whole name: write it like shop"):
        parse_hostname("a")


@given(st.text(max_size=80))
def test_any_text_is_a_name_that_stays_or_a_value_error(text: str) -> None:
    for parse in (parse_label, parse_hostname, parse_name, parse_pattern):
        try:
            name = parse(text)
        except ValueError as exc:
            assert type(exc) is ValueError  # noqa: PT017 - a UnicodeError would be one as well
            assert len(str(exc).splitlines()) == 1  # noqa: PT017
        else:
            assert parse(name) == name
            assert len(name) <= MAX_HOSTNAME


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("shop", ["shop"], ["shops", "shop.example.org", "sho"]),
        ("shop-*", ["shop-1", "shop-a-b"], ["shop", "shop1", "a.shop-1", "shop-1.a"]),
        ("*", ["shop", "a"], ["shop.example.org"]),
        ("a*a", ["aa", "aba"], ["a", "ab"]),
        ("*.example.org", ["shop.example.org"], ["example.org", "a.b.example.org", "shop.example"]),
        ("a.*.org", ["a.b.org"], ["a.org", "a.b.c.org", "b.b.org"]),
        ("*-x.b*.org", ["y-x.b.org", "y-x.bcd.org"], ["yx.b.org", "y-x.c.org"]),
        ("Shop-*.Example.org.", ["shop-1.example.org"], ["shop-1.example.com"]),
    ],
)
def test_patterns(pattern: str, names: list[str], others: list[str]) -> None:
    pattern = parse_pattern(pattern)
    assert parse_pattern(pattern) == pattern
    assert [name for name in names if not matches(pattern, name)] == []
    assert [name for name in others if matches(pattern, name)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*.*", "it ends with '*', which is no top-level domain"),
        ("shop.*", "it ends with '*'"),
        ("shop.o*", "it ends with 'o*'"),
        ("**", "a label may have one * in it"),
        ("*a*.example.org", "a label may have one * in it"),
        ("-*", "is not a valid pattern of names: a label has letters"),
        ("*-", "a label has letters"),
        ("", "there is nothing between two dots, or nothing at all"),
        ("bücher-*", "is not ASCII: letters beyond a to z are written in their ASCII form"),
        ("203.0.113.*", "it ends with '*'"),
    ],
)
def test_what_is_no_pattern(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_pattern(text)


@given(hostnames, st.data())
def test_a_star_is_any_part_of_one_label(name: str, data: st.DataObject) -> None:
    parts = name.split(".")
    number = data.draw(st.integers(0, len(parts) - 2))
    label = parts[number]
    start = data.draw(st.integers(0, len(label)))
    end = data.draw(st.integers(start, len(label)))
    parts[number] = f"{label[:start]}*{label[end:]}"
    pattern = ".".join(parts)
    assert matches(parse_pattern(pattern), name)
    parts[number] = label + ".more"
    assert not matches(pattern, ".".join(parts))


def test_names_below_a_domain() -> None:
    domain = "tunnel.example.com"
    assert whole_name("shop", domain) == "shop.tunnel.example.com"
    assert whole_name("shop-*", domain) == "shop-*.tunnel.example.com"
    assert whole_name("shop.example.org", domain) == "shop.example.org"
    assert label_below("shop", domain) == "shop"
    assert label_below("shop.tunnel.example.com", domain) == "shop"
    for other in ("shop.example.org", domain, f"a.b.{domain}", f"shop.x{domain}"):
        assert label_below(other, domain) is None


def test_what_is_reserved_could_be_asked_for() -> None:
    assert {parse_label(label) for label in RESERVED_LABELS} == RESERVED_LABELS
