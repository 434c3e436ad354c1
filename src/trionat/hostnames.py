"""Names by which services are visited, as people write them, and patterns of them.

A label is one word, such as `shop`, and stands right below a server's domain. A whole name, such as `shop.example.org`, has dots in it. A
pattern is either with at most one `*` in each of its labels, which stands for any characters of that label, also none, and never for a
dot: `shop-*`, `*.example.org`. Values only: nothing here resolves a name. What the functions return is in small letters.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from trionat.text import quoted

MAX_LABEL: Final = 63
MAX_HOSTNAME: Final = 253
"""Characters: RFC 1035 2.3.4, without the dot at the end."""

RESERVED_LABELS: Final = frozenset(
    {
        *("autoconfig", "autodiscover", "isatap", "localhost", "mta-sts", "openpgpkey"),
        *("wpad", "www"),
    }
)
"""Labels below a domain from which programs take settings, keys or proxies by themselves, and the one that people take for the domain.

Whoever has one speaks for the whole domain, so only a pattern without `*` gives it to anybody: see `Scope`.
"""

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", re.ASCII)
_PLAIN: Final = re.compile(r"[a-z0-9.-]+", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_SPELT_DIFFERENTLY: Final = re.compile("[\u00df\u03c2\u1e9e\u200c\u200d]")
"""What the two standards for names that are not ASCII (RFC 3490, RFC 5891) write differently: the codec knows the older one."""

_STAR: Final = "*"
_NOT_ASCII: Final = "letters beyond a to z are written in their ASCII form, which begins with xn--"


def parse_label(text: str) -> str:
    """Read a label, such as `shop`.

    Raises:
        ValueError: It is none; the message says what would be right.
    """
    if "." in text:
        raise ValueError(f"{quoted(text)} is more than a label: write one without dots, as in shop")
    return _checked(_ascii(text), text, stars=False)


def parse_hostname(text: str) -> str:
    """Read a whole name, such as `shop.example.org`; a dot at its end is taken off.

    Raises:
        ValueError: It is none, or an IP address; the message says what would be right.
    """
    name = _checked(_ascii(text).removesuffix("."), text, stars=False)
    if "." not in name:
        raise ValueError(f"{quoted(text)} is not a whole name: write it like shop.example.org")
    return name


def parse_name(text: str) -> str:
    """Read what a service may be called: a label or a whole name.

    Raises:
        ValueError: It is neither, or an IP address; the message says what would be right.
    """
    return _checked(_ascii(text).removesuffix("."), text, stars=False)


def parse_pattern(text: str) -> str:
    """Read a pattern of labels or of whole names; a name alone stands for itself.

    Raises:
        ValueError: It is none, or could stand for a top-level domain; the message says what would be right.
    """
    return _checked(_ascii(text).removesuffix("."), text, stars=True)


def whole_name(name: str, domain: str) -> str:
    """Return the whole name that a label below the domain stands for; a whole name, or a pattern of them, stays."""
    return name if "." in name else f"{name}.{domain}"


def label_below(name: str, domain: str) -> str | None:
    """Return the label of a name that stands right below the domain; None for every other name."""
    label, dot, rest = whole_name(name, domain).partition(".")
    return label if dot and rest == domain else None


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name is one of the pattern's; both are labels, or both whole names."""
    wanted, labels = pattern.split("."), name.split(".")
    return len(wanted) == len(labels) and all(map(_label_matches, wanted, labels))


def _label_matches(pattern: str, label: str) -> bool:
    before, star, after = pattern.partition(_STAR)
    if not star:
        return pattern == label
    return (
        len(label) >= len(before) + len(after)
        and label.startswith(before)
        and label.endswith(after)
    )


def _ascii(text: str) -> str:
    """Return a text in small letters if it is ASCII; otherwise tell how it is written so."""
    if text.isascii():
        return text.lower()
    try:
        spelt = text.encode("idna").decode().lower()
        if _SPELT_DIFFERENTLY.search(text) or not _PLAIN.fullmatch(spelt):
            spelt = ""
    except UnicodeError:
        spelt = ""
    how = f"write {spelt}" if spelt and len(spelt) <= MAX_HOSTNAME else _NOT_ASCII
    raise ValueError(f"{quoted(text)} is not ASCII: {how}")


def _checked(name: str, text: str, *, stars: bool) -> str:
    """Return the name if each of its labels is right; `text` is how it was written."""
    if "://" in name or "/" in name:
        raise ValueError(f"{quoted(text)} is a URL: write the name alone, as in shop.example.org")
    if _is_address(name):
        raise ValueError(
            f"{quoted(text)} is an IP address: write a name, as in shop.example.org, or a visit port"
        )
    if ":" in name:
        raise ValueError(f"{quoted(text)} is more than a name: leave out the port")
    if len(name) > MAX_HOSTNAME:
        raise ValueError(
            f"{quoted(text)} is too long: a name has at most {MAX_HOSTNAME} characters"
        )
    labels = name.split(".")
    for label in labels:
        if (reason := _wrong_with(label, stars=stars)) is not None:
            raise ValueError(f"{quoted(text)} is not a valid {_kind(stars)}: {reason}")
    if len(labels) > 1 and (_NUMBER.fullmatch(labels[-1]) or _STAR in labels[-1]):
        # A browser takes a name whose last label is a number for an address (https://url.spec.whatwg.org/#ends-in-a-number-checker).
        raise ValueError(
            f"{quoted(text)} is not a valid {_kind(stars)}: it ends with {labels[-1]!r}, which is no top-level domain"
        )
    return name


def _kind(stars: bool) -> str:
    return "pattern of names" if stars else "name"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _wrong_with(label: str, *, stars: bool) -> str | None:
    if _STAR in label and not stars:
        return "* stands in patterns only"
    if label.count(_STAR) > 1:
        return "a label may have one * in it"
    if not label:
        return "there is nothing between two dots, or nothing at all"
    plain = label.replace(_STAR, "0")
    if len(plain) > MAX_LABEL:
        return f"a label has at most {MAX_LABEL} characters"
    if not _LABEL.fullmatch(plain):
        return "a label has letters, digits and dashes, and no dash at either end, as in shop-1"
    if plain[2:4] == "--" and _STAR not in label:
        # RFC 5890 2.3.1; no authority gives certificates for others (Baseline Requirements 7.1.4.2.1).
        if not plain.startswith("xn--"):
            return "two dashes in the third and fourth place are for names that begin with xn--"
        if not _is_punycode(plain[4:]):
            return f"{label} stands for no other letters"
    return None


def _is_punycode(text: str) -> bool:
    try:
        return not text.encode().decode("punycode").isascii()
    except UnicodeError:
        return False
