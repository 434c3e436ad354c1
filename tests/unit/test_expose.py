"""What a client tells a server of its services."""

from __future__ import annotations

import pytest

from trionat.address import TCPAddress
from trionat.client.native.expose import expose, hash_passwords
from trionat.config.service import Service
from trionat.store.passwords import hash_password, is_whole_hash, verify_password

LOCAL = TCPAddress("127.0.0.1", 8080)


@pytest.mark.parametrize(
    "password",
    [
        "secret",
        "se:cret",
        "$argon2fan",
        "$argon2id$x",
        "$argon2id$v=19$m=8,t=1,p=1$hello$world",
        f"$argon2i$v=19$m=8,t=1,p=1${'A' * 22}${'A' * 43}",
    ],
)
async def test_no_password_is_sent(password: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it begins like: only what can be nothing but a hash goes as it is."""
    service = Service(local=LOCAL, http="shop", basic_auth=(f"ann:{password}",))
    [hashed] = await hash_passwords([service])
    assert password.encode() not in expose([hashed], [None], idle_tunnels=1).payload()
    assert hashed.basic_auth is not None
    [login] = hashed.basic_auth
    user, _, password_hash = login.partition(":")
    assert user == "ann"
    assert is_whole_hash(password_hash)
    assert await verify_password(password_hash, password)
    told = [message for message in caplog.messages if "taken for the password itself" in message]
    assert len(told) == password.startswith("$argon2"), "it may be a hash that was not copied whole"
    assert password not in caplog.text


async def test_a_hash_is_sent_as_it_is() -> None:
    given = (f"ann:{await hash_password('secret')}",)
    services = [Service(local=LOCAL, http=name, basic_auth=given) for name in ("a", "b")]
    assert await hash_passwords([*services, Service(local=LOCAL)]) == (
        *services,
        Service(local=LOCAL),
    )
