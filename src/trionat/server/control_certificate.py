"""What the control port, tunnels and the console show: the operator's certificate, or the one that the state folder has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionat.errors import StartupError
from trionat.server.state_folder import MemoryState, StateFolder
from trionat.transport.certificate import fingerprint, first_certificate
from trionat.transport.tls import server_context, server_context_of

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from trionat.config.server import ServerConfig
    from trionat.server.state_folder import State


def certificate_files(config: ServerConfig, state: StateFolder) -> tuple[Path, Path]:
    """Return where the certificate is, and its key."""
    return config.certificate or state.certificate_file, config.certificate_key or state.key_file


def load_certificate(config: ServerConfig, state: State) -> tuple[ssl.SSLContext, bytes]:
    """Return the TLS context and the fingerprint of what it shows. Blocks.

    Raises:
        StartupError: The files cannot be used.
    """
    if isinstance(state, StateFolder):
        certificate, key = certificate_files(config, state)
    elif config.certificate is not None and config.certificate_key is not None:
        certificate, key = config.certificate, config.certificate_key
    else:
        assert isinstance(state, MemoryState), "there is no third kind"  # noqa: S101 - for type checkers
        try:
            return server_context_of(state.pem), state.fingerprint
        except OSError as error:
            raise StartupError(
                f"cannot use the certificate that was made in memory: {error.strerror or error}"
            ) from error
    try:
        return server_context(certificate, key), fingerprint(
            first_certificate(certificate.read_text())
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(
            f"cannot use the certificate {certificate} with the key {key}: {reason}"
        ) from error
