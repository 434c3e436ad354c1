from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest

from trionat.errors import StoreError
from trionat.store.tokens import Token, TokenScope, digest_token, make_token_text
from trionat.text import mask_secrets

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def test_a_text_has_256_random_bits_and_is_kept_as_its_hash() -> None:
    texts = {make_token_text() for _ in range(100)}
    assert len(texts) == 100
    for text in texts:
        assert re.fullmatch("trn_[a-z2-7]{52}", text)
        assert digest_token(text) == hashlib.sha256(text.encode()).digest()


@pytest.mark.parametrize("wrong", ["", "trn_", "trn_" + "a" * 51, "trn_" + "a" * 53, "trn_" + "A" * 52, "trn_" + "1" * 52, "tn1_" + "a" * 52, "trn_" + "a" * 52 + "\n", " trn_" + "a" * 52, "\ud800" * 56])  # fmt: skip
def test_another_text_is_no_token_and_not_shown(wrong: str) -> None:
    with pytest.raises(ValueError, match="this is no token") as caught:
        digest_token(wrong)
    assert "aaa" not in str(caught.value)


def test_the_instant_of_expiry_counts_as_expired() -> None:
    token = Token(
        name="grafana",
        user="alice",
        account_id=1,
        digest=b"secret",
        scope=TokenScope.READ,
        created_at=NOW,
        expires_at=NOW,
    )
    assert token.is_expired(NOW)
    assert not token.is_expired(NOW - timedelta(microseconds=1))
    assert "secret" not in repr(token)


def test_no_message_shows_a_token() -> None:
    text = make_token_text()
    assert str(StoreError(f"there is no token {text!r}")) == "there is no token 'trn_********'"
    assert mask_secrets(f"{text.upper()} and {text[:20]}") == "TRN_******** and trn_********"
    assert mask_secrets("a token begins with trn_ and has") == "a token begins with trn_ and has"
