"""The cluster's key, and what is sealed with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
import pytest

from tests.registry.redis_world import identity
from trionat.errors import StartupError
from trionat.server.cluster.identity import Identity, adopt_identity, read_identity
from trionat.server.cluster.seal import Seal, make_key_file, read_key_file

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = Seal(bytes(32)), Seal(bytes([1] * 32))


def test_what_is_sealed_is_opened_with_the_same_key_and_for_the_same_purpose() -> None:
    sealed = ONE.close("a", b"secret")
    assert b"secret" not in sealed
    assert ONE.open("a", sealed) == b"secret"
    assert sealed != ONE.close("a", b"secret")


@pytest.mark.parametrize(
    ("seal", "purpose", "change"),
    [(OTHER, "a", 0), (ONE, "b", 0), (ONE, "a", 1)],
    ids=["another key", "another purpose", "changed"],
)
def test_anything_else_is_refused(seal: Seal, purpose: str, change: int) -> None:
    sealed = bytearray(ONE.close("a", b"secret"))
    sealed[-1] ^= change
    with pytest.raises(ValueError, match="another key, or has been changed"):
        seal.open(purpose, bytes(sealed))


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(27)])
def test_what_was_never_sealed(sealed: bytes) -> None:
    with pytest.raises(ValueError, match="another key, or has been changed"):
        ONE.open("a", sealed)


def test_the_id_of_a_cluster_is_its_keys_and_not_the_key() -> None:
    assert ONE.cluster_id != OTHER.cluster_id
    assert ONE.cluster_id not in ONE.key.hex()
    assert repr(ONE) == "Seal()"


def test_the_key_file_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cluster.key"
    assert make_key_file(path)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    before = read_key_file(path)
    assert not make_key_file(path)
    assert read_key_file(path) == before


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    with pytest.raises(StartupError, match=r"cluster\.key: there is no key of the cluster: copy"):
        read_key_file(path)
    path.write_text("x" * 44)
    path.chmod(0o600)
    with pytest.raises(StartupError, match="it is no key of a cluster: copy it anew"):
        read_key_file(path)
    if os.name == "posix":
        path.chmod(0o644)
        with pytest.raises(StartupError, match="others can read or change this key"):
            read_key_file(path)


def test_the_identity_goes_through_redis_sealed() -> None:
    sealed = identity().seal(ONE)
    assert identity().key not in sealed
    assert Identity.unseal(ONE, sealed) == identity()
    with pytest.raises(StartupError, match="is KeyFile the one of this cluster"):
        Identity.unseal(OTHER, sealed)


def test_parts_that_do_not_belong_together() -> None:
    identity().check()
    with pytest.raises(StartupError, match="the key of tickets has 3 bytes"):
        attrs.evolve(identity(), ticket_key=b"abc").check()
    with pytest.raises(StartupError, match="the certificate is not of the key"):
        attrs.evolve(identity(), key=b"nonsense").check()


def test_a_folder_takes_the_clusters_identity(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert read_identity(folder) is None
    assert adopt_identity(folder, identity())
    assert read_identity(folder) == identity()
    assert not adopt_identity(folder, identity())


def test_another_servers_identity_is_replaced_only_where_asked(tmp_path: Path) -> None:
    mine = attrs.evolve(identity(), ticket_key=bytes([7] * 32))
    adopt_identity(tmp_path, mine)
    with pytest.raises(StartupError, match="run trionat cluster join"):
        adopt_identity(tmp_path, identity())
    assert read_identity(tmp_path) == mine
    assert adopt_identity(tmp_path, identity(), replace=True)
    assert read_identity(tmp_path) == identity()
    (before,) = tmp_path.glob("ticket.key.before-*")
    assert before.read_bytes() == mine.ticket_key
