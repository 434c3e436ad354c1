"""What a backup says of itself, as its first file: `manifest.json`.

Whoever reads one trusts nothing in it: it may come from anybody.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Self, TypeVar

import attrs

from trionat.backup.contents import DATABASE, MOST_BYTES, MOST_FILES, is_kept, is_secret
from trionat.version import VERSION

T = TypeVar("T")

NAME: Final = "manifest.json"

MOST_MANIFEST_BYTES: Final = 16 * 1024 * 1024

_FORMAT: Final = 1
"""Of the file as a whole; an older program refuses one with a higher number."""

_MOST_DATABASE_BYTES: Final = 1 << 40
_MOST_TEXT: Final = 1000
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BackupError(ValueError):
    """It is no backup, or is damaged, or not for this program."""


@attrs.frozen
class KeptFile:
    """A file of the backup, by its path in the state folder with `/`."""

    name: str
    size: int
    sha256: str


@attrs.frozen
class LeftOut:
    """A file of the folder that is not in the backup, and why."""

    name: str
    reason: str


@attrs.frozen(kw_only=True)
class Manifest:
    """See the module.

    `made` is a time, ISO 8601 in UTC. `schema` is the version of the accounts, None where they are not in it. `database` says in words where they are then, and
    `dump` which command copies them; both are empty where they are in it, or there are none.
    """

    version: str
    made: str
    schema: int | None
    database: str
    dump: str
    files: tuple[KeptFile, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)

    def values(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        return {
            "format": _FORMAT,
            "trionat": self.version,
            "made": self.made,
            "schema": self.schema,
            "database": self.database,
            "dump": self.dump,
            "files": [
                {
                    "name": each.name,
                    "bytes": each.size,
                    "sha256": each.sha256,
                    "secret": is_secret(each.name),
                }
                for each in self.files
            ],
            "left_out": [attrs.asdict(each) for each in self.left_out],
        }

    def encode(self) -> bytes:
        """Return it as it is written."""
        return json.dumps(self.values(), indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` wrote.

        Raises:
            BackupError: It is something else, or of a newer program.
        """
        try:
            content = json.loads(data)
            form, files = content["format"], content["files"]
            if type(form) is int and form > _FORMAT:
                raise BackupError(
                    f"it was made by a newer trionat (this one is {VERSION}): update this one"
                )
            if type(form) is not int or form != _FORMAT or not 1 <= len(files) <= MOST_FILES:
                raise ValueError("it is none")
            manifest = cls(
                version=_text(content["trionat"]),
                made=_text(content["made"]),
                schema=_optional(int, content["schema"]),
                database=_text(content["database"]),
                dump=_text(content["dump"]),
                files=tuple(map(_file, files)),
                left_out=(),  # of no use to whoever restores it
            )
            if len({each.name for each in manifest.files}) != len(manifest.files):
                raise ValueError("a file is there twice")
        except BackupError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BackupError(f"its {NAME} is damaged") from None
        return manifest


def _file(value: Any) -> KeptFile:
    name, size, digest = _text(value["name"]), value["bytes"], _text(value["sha256"])
    most = _MOST_DATABASE_BYTES if name == DATABASE else MOST_BYTES
    if not is_kept(name) or not _SHA256.fullmatch(digest):
        raise ValueError(name)
    if type(size) is not int or not 0 <= size <= most:
        raise ValueError(name)
    return KeptFile(name, size, digest)


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _MOST_TEXT:
        raise ValueError("no text")
    return value


def _optional(kind: type[T], value: Any) -> T | None:
    if value is not None and type(value) is not kind:
        raise ValueError("no number")
    return value
