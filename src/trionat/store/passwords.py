"""Passwords: hashing them, checking them, making readable ones up.

Argon2id with the least that OWASP's Password Storage Cheat Sheet recommends: 19 MiB, two passes, one lane. More would protect a
stolen table better, but a login must stay cheap for the server that others share: about 25 ms of one core here. One lane,
because more only help where a login may have several cores to itself.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from typing import Final

import argon2
import trio

from trionat.errors import StoreError
from trionat.store.base import NOBODYS_SALT
from trionat.text import invisible_in

MAX_PASSWORD_BYTES: Final = 1024
"""Chosen, not measured: longer than any passphrase, and short enough to be read from a peer before anything is known of it."""

SHORTEST_PASSWORD: Final = 8
"""Characters of one that is chosen: the least that NIST SP 800-63B asks for."""

WRONG_LENGTH: Final = f"a password is 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8"

_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
_LANES: Final = 1
COST: Final = f"m={_MEMORY_KIB},t={_PASSES},p={_LANES}"
"""The same as a hash has it in its text."""

_HASHER: Final = argon2.PasswordHasher(
    time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES
)

_MOST_MEMORY_KIB: Final = 256 * 1024
_MOST_WORK_KIB: Final = 1024 * 1024
_MOST_LANES: Final = 16
"""What checking a hash of somebody else's making may cost: memory, memory times passes (some 0.7 s), threads. A table that the
Go program writes holds what users choose for a password: one that looks like a hash of hours would keep everybody out, since
a check cannot be stopped."""

_HASH_PREFIX: Final = "$argon2"
_WHOLE_HASH: Final = re.compile(
    r"\$argon2id\$v=(?:16|19)\$m=[0-9]{1,8},t=[0-9]{1,8},p=[0-9]{1,3}\$([A-Za-z0-9+/]{11,43})\$([A-Za-z0-9+/]{16,86})",
    re.ASCII,
)
"""Salts of 8 to 32 bytes, results of 12 to 64: short enough for a text of the protocol, with a user before it."""

_NO_HASH: Final = f"$argon2id$v=19${COST}${NOBODYS_SALT}${'A' * 43}"
"""A well-formed hash (salt and result all zero) that costs as much to check as a real one, and that no password is known for."""

_THREADS: Final = trio.CapacityLimiter(2)
"""Two at once, whatever the number of logins: each holds 19 MiB and a core. Of Trio's own 40 threads a flood of logins would
take all, with 760 MiB and every core, while the relay waits."""

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""32 characters without i, l, o and u (Crockford's base 32), so that a password can be read out and typed."""
_GROUPS: Final = 4
_GROUP_LENGTH: Final = 5


def make_password() -> str:
    """Return a random password of 100 bits, in groups for reading: `k7m2p-0x4qd-…`."""
    groups = ("".join(map(secrets.choice, [_ALPHABET] * _GROUP_LENGTH)) for _ in range(_GROUPS))
    return "-".join(groups)


def make_no_password() -> str:
    """Return what a store holds for an account that is to have no password: a hash that is none of any.

    Not a word of its own, which the Go program, where it uses the same table, would take for the password; and random, since it takes the hash for that as well.
    """
    return f"$argon2id$v=19${COST}${NOBODYS_SALT}${base64.b64encode(secrets.token_bytes(32)).rstrip(b'=').decode()}"


def check_password(password: str) -> None:
    """Check a password to be set.

    Raises:
        ValueError: It is empty, or longer than `MAX_PASSWORD_BYTES` in UTF-8.
    """
    if not password:
        raise ValueError("the password is empty")
    if _encoded(password) is None:
        raise ValueError(WRONG_LENGTH)


def check_new_password(password: str) -> None:
    """Check a password that somebody has chosen: whoever gets to know it has to be able to type it.

    Raises:
        ValueError: `check_password` says so, or it has a character in it that cannot be seen, or a blank at one of its ends.
    """
    check_password(password)
    if (found := invisible_in(password)) is not None:
        raise ValueError(f"the password has {found}: choose one that can be typed")
    if password != password.strip():
        raise ValueError("the password begins or ends with a blank: choose one without")


def check_chosen_password(password: str) -> None:
    """Check a password that somebody chooses at a keyboard, or by the API: one that is short is soon guessed. A script at the server's machine answers for what it sets.

    Raises:
        ValueError: `check_new_password` says so, or it has fewer than `SHORTEST_PASSWORD` characters.
    """
    check_new_password(password)
    if len(password) < SHORTEST_PASSWORD:
        raise ValueError(
            f"the password is too short: choose {SHORTEST_PASSWORD} characters or more"
        )


async def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password in PHC text form, 97 characters.

    Takes some 25 ms in a thread of its own; a call that is cancelled meanwhile ends after that.

    Raises:
        ValueError: `check_password` says so.
    """
    check_password(password)
    return await trio.to_thread.run_sync(_HASHER.hash, password, limiter=_THREADS)


def is_hashed(stored: str) -> bool:
    """Tell whether a store holds a hash; otherwise it is the password itself, as the Go program writes it."""
    return stored.startswith(_HASH_PREFIX)


def is_whole_hash(text: str) -> bool:
    """Tell whether a text is a hash by Argon2id that can be checked. What only begins like one may be a password."""
    found = _WHOLE_HASH.fullmatch(text)
    if found is None or not all(map(_is_base64, found.groups())):
        return False
    cost = argon2.extract_parameters(text)
    # RFC 9106, 3.1: one lane and one pass at least, and eight blocks of 1 KiB for each lane.
    return min(cost.parallelism, cost.time_cost) >= 1 and cost.memory_cost >= 8 * cost.parallelism


def _is_base64(text: str) -> bool:
    """Tell whether a text is base64 without padding, in the one way in which its bytes are written."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False
    return base64.b64encode(data).rstrip(b"=") == text.encode()


def costs_more_than_ours(whole_hash: str) -> bool:
    """Tell whether checking a hash takes more memory, work or threads than one that `hash_password` has made (`COST`)."""
    cost = argon2.extract_parameters(whole_hash)
    return (
        cost.memory_cost > _MEMORY_KIB
        or cost.memory_cost * cost.time_cost > _MEMORY_KIB * _PASSES
        or cost.parallelism > _LANES
    )


async def verify_password(
    stored: str | None, password: str, *, limiter: trio.CapacityLimiter = _THREADS
) -> bool:
    """Tell whether the password is the one that the store holds, or holds the hash of.

    Takes as long for an account that does not exist, and for one whose password is there in plain text, as for a wrong
    password, so that the time tells nobody which names there are. A call that is cancelled meanwhile ends after the check.

    Args:
        stored: What `hash_password` returned, or the password itself, or None where there is no such account. An empty one
            is nobody's.
        password: What was given; one of an impossible length or form is wrong without being checked.
        limiter: How many are checked at once, each with 19 MiB and a core.

    Raises:
        StoreError: What the store holds is a hash that is damaged, or costs too much to check.
    """
    encoded = _encoded(password)
    if encoded is None:
        await trio.lowlevel.checkpoint()
        return False
    if stored is not None and is_hashed(stored):
        return await trio.to_thread.run_sync(_verify, stored, encoded, limiter=limiter)
    await trio.to_thread.run_sync(_verify, _NO_HASH, encoded, limiter=limiter)
    return stored is not None and hmac.compare_digest(stored.encode(), encoded)


def _verify(password_hash: str, password: bytes) -> bool:
    try:
        cost = argon2.extract_parameters(password_hash)
        if (
            cost.memory_cost > _MOST_MEMORY_KIB
            or cost.memory_cost * cost.time_cost > _MOST_WORK_KIB
            or cost.parallelism > _MOST_LANES
        ):
            raise argon2.exceptions.InvalidHashError
        return _HASHER.verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError) as exc:
        raise StoreError(
            "the stored password hash is damaged, or costs too much to check: set a new password with trionat user passwd"
        ) from exc


def _encoded(password: str) -> bytes | None:
    """Return the bytes to hash, or None where the length is out of bounds; a lone surrogate, as JSON can carry it, has none."""
    try:
        encoded = password.encode()
    except UnicodeEncodeError:
        return None
    return encoded if 1 <= len(encoded) <= MAX_PASSWORD_BYTES else None
