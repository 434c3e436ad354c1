"""How long certificates are still good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, warning, wrong
from trionat.transport.certificate import validity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trionat.config.server import ServerConfig

_LAST_PART: Final = 6
"""Of its life. One that renews itself does so when a third is left, so when a sixth is left, that has failed for a while. Chosen."""

_SOON: Final = timedelta(days=21)
"""For one of a long life."""

_MOST: Final = 1000
"""Certificates in one folder that are looked at."""

_CHAINS: Final = ("*.crt", "*.pem", "*.cer", "*/fullchain.pem", "*/tls.crt")


def certificate_files(config: ServerConfig, folder: Path) -> Iterator[tuple[Path, bool]]:
    """Return the certificates of a server, and whether each is renewed by trionat itself. Blocks."""
    if config.certificate is not None:
        yield config.certificate, False
    elif (own := folder / "server.crt").exists():
        yield own, False
    if config.certificates_dir is not None:
        for pattern in _CHAINS:
            for number, path in enumerate(sorted(config.certificates_dir.glob(pattern))):
                if number < _MOST:
                    yield path, False
    for number, path in enumerate(sorted((folder / "certificates").glob("*/certificate.pem"))):
        if number < _MOST:
            yield path, True


def check_certificates(
    files: Iterable[tuple[Path, bool]], now: datetime | None = None
) -> list[Finding]:
    """Look at each; those that are good for long are told together. Blocks."""
    now = now or datetime.now(UTC)
    found: list[Finding] = []
    good: list[tuple[timedelta, Path]] = []
    for path, renewed in files:
        try:
            begins, ends = validity(path.read_text())
        except OSError as error:
            found.append(
                wrong(
                    f"{path}: {error.strerror}", "correct its name, or let trionat's user read it"
                )
            )
            continue
        except ValueError as error:
            found.append(wrong(f"{path}: {error}", "it has to be PEM: restore it"))
            continue
        left = ends - now
        how = (
            "look into the server's log for why it was not renewed (certificate), and at names below"
            if renewed
            else "renew it: trionat takes the new file by itself where it is in CertificatesDir, otherwise after trionat reload"
        )
        if left <= timedelta():
            found.append(wrong(f"{path} has run out on {ends:%Y-%m-%d}", how))
        elif begins > now:
            found.append(
                wrong(
                    f"{path} is not valid before {begins:%Y-%m-%d}",
                    "is this machine's clock right?",
                )
            )
        elif left < min((ends - begins) / _LAST_PART, _SOON):
            found.append(wrong(f"{path} ends in {left.days} days, on {ends:%Y-%m-%d}", how))
        else:
            good.append((left, path))
    if good:
        left, path = min(good)
        which = "it is" if len(good) == 1 else f"the first of {len(good)} is"
        more = "for ever" if left > timedelta(days=365 * 1000) else f"for {left.days} days"
        found.append(fine(f"{path}: {which} good {more}"))
    return found or [warning("there is none yet", "the first start makes one")]
