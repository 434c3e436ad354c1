from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from trionat.default_labels import ADJECTIVES, ANIMALS, default_label, default_labels
from trionat.hostnames import RESERVED_LABELS, parse_label

KNOWN = ["glad-seal-28", "glad-seal-29", "glad-seal-30"]


def test_they_stay() -> None:
    """Known answers: clients have these names, and visitors their addresses."""
    assert list(islice(default_labels("alice", "laptop"), 3)) == KNOWN
    assert default_label("alice", "laptop") == KNOWN[0]


def test_the_words() -> None:
    for words in (ADJECTIVES, ANIMALS):
        assert len(words) == 128
        assert list(words) == sorted(set(words))
    assert not set(ADJECTIVES) & set(ANIMALS)
    assert not RESERVED_LABELS & {*ADJECTIVES, *ANIMALS}


@given(st.text(), st.text())
def test_each_is_a_label_of_two_words_and_a_number(user: str, identity: str) -> None:
    labels = list(default_labels(user, identity))
    assert len(set(labels)) == len(labels) == 990
    words = labels[0].rpartition("-")[0]
    adjective, animal = words.split("-")
    assert adjective in ADJECTIVES
    assert animal in ANIMALS
    for label in labels:
        assert parse_label(label) == label
        assert label.rpartition("-")[0] == words
    assert [len(label) - len(words) for label in labels] == [3] * 90 + [4] * 900


def test_nothing_moves_between_user_and_identity() -> None:
    assert default_label("ab", "c") != default_label("a", "bc")
    assert default_label("a", "b") != default_label("b", "a")


def test_they_are_spread() -> None:
    """Of a thousand clients hardly two have the same one: there are some 1.5 million."""
    labels = Counter(default_label("user", str(number)) for number in range(1000))
    assert len(labels) > 990
    words = {part for label in labels for part in label.split("-")[:2]}
    assert len(words) > 250


def test_half_a_surrogate_pair_does_no_harm() -> None:
    """As it comes out of a configuration; the protocol takes none."""
    assert parse_label(default_label("\udcff", "\udcff"))
