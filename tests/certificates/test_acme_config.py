"""The section `Acme`, as far as it is there."""

from __future__ import annotations

import pytest

from trionat.config.acme import DIRECTORY, LETS_ENCRYPT, AcmeConfig
from trionat.config.key import keys_of


def test_the_authority_is_reached_by_https_only() -> None:
    for url in (LETS_ENCRYPT, "https://127.0.0.1:14000/dir", "https://[::1]/"):
        assert DIRECTORY.read(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://a.example/dir",
        "a.example/dir",
        "https:///dir",
        "https://a:0/",
        "https://a:b/",
        "https://u:p@a/",
        "file:///etc/passwd",
        "https://[::1",
    ],
)
def test_what_is_no_directory(text: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a directory of ACME"):
        DIRECTORY.read(text)


def test_the_keys() -> None:
    assert [entry.path for entry in keys_of(AcmeConfig)] == [
        "Acme.Directory",
        "Acme.Email",
        "Acme.AgreeTerms",
        "Acme.CAFile",
        "Acme.OrdersPerDay",
    ]
    assert AcmeConfig().directory == LETS_ENCRYPT
