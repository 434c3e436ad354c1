from __future__ import annotations

import re

import pytest

from trionat.config.values import FINGERPRINT
from trionat.fingerprint import format_fingerprint, parse_fingerprint
from trionat.text import quoted

VALUE = bytes(range(32))
BASE64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_fingerprint_is_shown_as_ssh_shows_it() -> None:
    assert format_fingerprint(VALUE) == f"SHA256:{BASE64}"


@pytest.mark.parametrize(
    "text",
    [
        f"SHA256:{BASE64}",
        f" SHA256:{BASE64}=\n",
        f"sha256:{BASE64}",
        VALUE.hex(),
        VALUE.hex().upper(),
        VALUE.hex(":"),
        f"SHA256:{VALUE.hex(':')}",
    ],
)
def test_fingerprint_is_read_in_every_common_form(text: str) -> None:
    assert parse_fingerprint(text) == VALUE
    assert FINGERPRINT.read(text) == f"SHA256:{BASE64}"  # the configuration reads the same


@pytest.mark.parametrize(
    "text",
    ["", "SHA256:", f"MD5:{BASE64}", BASE64[:-1], f"{BASE64}A", VALUE.hex()[:-2], f"{VALUE.hex()}00", "é" * 43],
)  # fmt: skip
def test_other_text_is_no_fingerprint(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{quoted(text)} is not a valid fingerprint: write SHA256: and 32 bytes in base64 or hex"
        ),
    ):
        parse_fingerprint(text)
