from __future__ import annotations

import math
from typing import TYPE_CHECKING

import argon2
import pytest
import trio
import trio.testing

from trionat.errors import StoreError, StoreUnavailableError
from trionat.store import passwords
from trionat.store.passwords import (
    MAX_PASSWORD_BYTES,
    check_password,
    costs_more_than_ours,
    hash_password,
    is_hashed,
    is_whole_hash,
    make_password,
    verify_password,
)

if TYPE_CHECKING:
    from argon2 import PasswordHasher

OUT_OF_BOUNDS = ["", "x" * (MAX_PASSWORD_BYTES + 1), "é" * 513, "\ud800"]


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[argon2.Parameters]:
    """The cost of every Argon2 verification that is made, in order."""
    made: list[argon2.Parameters] = []
    verify = argon2.PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str, password: bytes) -> bool:  # noqa: A002 - its name there
        made.append(argon2.extract_parameters(hash))
        return verify(self, hash, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    return made


async def test_the_right_password_and_no_other() -> None:
    stored = await hash_password("correct horse")
    assert await verify_password(stored, "correct horse")
    assert not await verify_password(stored, "correct horse ")
    assert not await verify_password(stored, "")


async def test_the_hash_is_argon2id_at_the_documented_cost_and_salted() -> None:
    first, second = await hash_password("secret"), await hash_password("secret")
    assert first != second
    assert "secret" not in first
    assert len(first) <= 255  # fits MySQL's column
    parameters = argon2.extract_parameters(first)
    assert parameters.type is argon2.Type.ID
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19456, 2, 1)


async def test_an_unknown_user_costs_what_a_wrong_password_costs(
    verifications: list[argon2.Parameters],
) -> None:
    stored = await hash_password("secret")
    assert not await verify_password(stored, "wrong")
    assert not await verify_password(None, "wrong")
    known, unknown = verifications
    assert known == unknown


@pytest.mark.parametrize("password", ["", "trionat", "\0", "AAAAAAAA"])
async def test_an_unknown_user_has_no_password(password: str) -> None:
    assert not await verify_password(None, password)


@pytest.mark.parametrize("stored", ["00000000", "pass word ", "Straße", "日本", "$2b$12$no hash of ours", "$argon"])  # fmt: skip
async def test_a_plain_text_is_the_password_itself(stored: str) -> None:
    assert not is_hashed(stored)
    assert await verify_password(stored, stored)
    for other in (stored.swapcase(), f"{stored} ", stored[:-1], f"{stored}\0", "STRASSE"):
        if other != stored:
            assert not await verify_password(stored, other)


async def test_a_plain_text_costs_what_a_hash_costs(
    verifications: list[argon2.Parameters],
) -> None:
    hashed = await hash_password("secret")
    for stored in (hashed, "secret", "", None):
        for password in ("secret", "wrong"):
            await verify_password(stored, password)
    assert len(verifications) == 8
    assert len(set(map(repr, verifications))) == 1


@pytest.mark.parametrize("password", ["", "x", "\0"])
async def test_an_empty_password_in_the_store_is_nobodys(password: str) -> None:
    assert not await verify_password("", password)


@pytest.mark.parametrize(
    "password", OUT_OF_BOUNDS, ids=["empty", "long", "long in UTF-8", "no text"]
)
async def test_out_of_bounds(password: str, verifications: list[argon2.Parameters]) -> None:
    reason = r"^a password is 1 to 1024 bytes of UTF-8$" if password else r"^the password is empty$"
    with pytest.raises(ValueError, match=reason):
        await hash_password(password)
    with pytest.raises(ValueError, match=reason):
        check_password(password)
    with trio.testing.assert_checkpoints():
        assert not await verify_password(None, password)
    assert verifications == []  # a peer cannot make us work on what no password can be


@pytest.mark.parametrize("password", ["x", "x" * MAX_PASSWORD_BYTES, "é" * 512])
async def test_at_the_bounds(password: str) -> None:
    check_password(password)
    assert await verify_password(await hash_password(password), password)


@pytest.mark.parametrize("stored", ["$argon2id$v=19$m=19456,t=2,p=1$AAAA", "$argon2id$v=19$m=1,t=1,p=1$AAAAAAAAAAA$AAAA", "$argon2", "$argon2x"])  # fmt: skip
async def test_a_damaged_hash_is_told_and_never_matches(stored: str) -> None:
    assert is_hashed(stored)
    with pytest.raises(StoreError, match="damaged") as caught:
        await verify_password(stored, stored)
    assert not isinstance(caught.value, StoreUnavailableError)


@pytest.mark.parametrize("cost", ["m=4194304,t=1,p=1", "m=8,t=4294967295,p=1", "m=262144,t=5,p=1", "m=65536,t=3,p=4096"])  # fmt: skip
async def test_a_hash_that_is_a_trap_is_not_checked(cost: str) -> None:
    """As a user can choose it for a password where that is kept in plain text: its check would take hours, or all memory."""
    stored = f"$argon2id$v=19${cost}${'A' * 22}${'A' * 43}"
    with trio.fail_after(1), pytest.raises(StoreError, match="costs too much"):
        await verify_password(stored, "x")


async def test_a_hash_of_another_program_is_checked() -> None:
    """With the defaults of argon2-cffi before and after 21.2 and of RFC 9106 for small machines."""
    for memory, passes, lanes in ((102400, 2, 8), (65536, 3, 4)):
        hasher = argon2.PasswordHasher(memory_cost=memory, time_cost=passes, parallelism=lanes)
        assert await verify_password(hasher.hash("secret"), "secret")


SALT, RESULT = "A" * 22, "A" * 43


async def test_a_whole_hash() -> None:
    ours = await hash_password("secret")
    assert is_whole_hash(ours)
    assert not costs_more_than_ours(ours)
    for memory, passes, lanes in ((102400, 2, 8), (65536, 3, 4), (12288, 3, 1)):
        hasher = argon2.PasswordHasher(memory_cost=memory, time_cost=passes, parallelism=lanes)
        assert is_whole_hash(hasher.hash("secret"))
    older = argon2.low_level.hash_secret(b"x", bytes(8), 1, 8, 1, 12, argon2.Type.ID, version=16)
    assert is_whole_hash(older.decode())


@pytest.mark.parametrize(
    "text",
    [
        "$argon2fan",
        "$argon2id$",
        "$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA",
        f"$argon2i$v=19$m=19456,t=2,p=1${SALT}${RESULT}",
        f"$argon2d$v=19$m=19456,t=2,p=1${SALT}${RESULT}",
        f"$argon2id$m=19456,t=2,p=1${SALT}${RESULT}",
        f"$argon2id$v=18$m=19456,t=2,p=1${SALT}${RESULT}",
        f"$argon2id$v=19$t=2,m=19456,p=1${SALT}${RESULT}",
        f"$argon2id$v=19$m=19456,t=0,p=1${SALT}${RESULT}",
        f"$argon2id$v=19$m=19456,t=2,p=0${SALT}${RESULT}",
        f"$argon2id$v=19$m=8,t=2,p=2${SALT}${RESULT}",
        f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${RESULT[1:]}B",
        f"$argon2id$v=19$m=19456,t=2,p=1${SALT}AAA${RESULT}",
        f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${RESULT}=",
        f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${'A' * 87}",
        f"$argon2id$v=19$m=19456,t=2,p=1${SALT}${RESULT}\n",
        f"$argon2id$v=19$m=1_000,t=2,p=1${SALT}${RESULT}",
        f"$argon2id$v=19$m=+1000,t=2,p=1${SALT}${RESULT}",
        f"$argon2id$v=19$m=1000000000,t=2,p=1${SALT}${RESULT}",
    ],
)
def test_what_only_looks_like_a_whole_hash(text: str) -> None:
    assert not is_whole_hash(text)


@pytest.mark.parametrize(
    ("cost", "more"),
    [
        ("m=19456,t=2,p=1", False),
        ("m=12288,t=3,p=1", False),
        ("m=7168,t=5,p=1", False),
        ("m=8,t=1,p=1", False),
        ("m=19457,t=1,p=1", True),
        ("m=19456,t=3,p=1", True),
        ("m=19456,t=2,p=2", True),
        ("m=262144,t=4,p=1", True),
        ("m=8,t=99999999,p=1", True),
    ],
)
def test_what_costs_more_than_ours(cost: str, more: bool) -> None:
    text = f"$argon2id$v=19${cost}${SALT}${RESULT}"
    assert is_whole_hash(text)
    assert costs_more_than_ours(text) is more


async def test_two_at_once_at_most_and_the_loop_goes_on() -> None:
    stored = await hash_password("secret")
    most = 0
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(verify_password, stored, "wrong")
        while nursery.child_tasks:
            most = max(most, passwords._THREADS.borrowed_tokens)
            await trio.sleep(0.001)
    assert most == 2


async def test_cancelled_checks_give_their_threads_back() -> None:
    stored = await hash_password("secret")
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(verify_password, stored, "wrong")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert passwords._THREADS.borrowed_tokens == 0
    assert await verify_password(stored, "secret")


def test_made_passwords_are_readable_and_hard_to_guess() -> None:
    made = {make_password() for _ in range(200)}
    assert len(made) == 200
    letters = set("".join(made)) - {"-"}
    assert letters == set(passwords._ALPHABET)
    assert not letters & set("ilou")
    for password in made:
        assert [len(group) for group in password.split("-")] == [5, 5, 5, 5]
    assert 20 * math.log2(len(letters)) >= 96
