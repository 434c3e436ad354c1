"""TLS 1.3 on both sides.

The server shows its certificate; the client checks it either by fingerprint (then nothing else of it matters, neither name nor
dates) or as a browser would, by authority and name. Nothing is sent before that check.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Final

from trionat.errors import ConnectionLostError
from trionat.system import named_file
from trionat.transport.certificate import fingerprint
from trionat.transport.endpoint import lost
from trionat.transport.tls_endpoint import TLSEndpoint

if TYPE_CHECKING:
    import socket
    from pathlib import Path

# What OpenSSL calls an answer that is no TLS record.
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})

# What OpenSSL says where no authority that counts has signed (X509_V_ERR_*, openssl/x509_vfy.h): no issuer, self-signed alone
# or in the chain, no issuer here, no chain at all.
_UNKNOWN_AUTHORITY: Final = frozenset({2, 18, 19, 20, 21})
# That it is for another name, or another address.
_OTHER_NAME: Final = frozenset({62, 64})


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the context of a server that shows this certificate.

    Raises:
        OSError: a file cannot be read, or (as `ssl.SSLError`) the two do not belong together.
    """
    return _server_context(certificate, key)


def server_context_of(pem: bytes) -> ssl.SSLContext:
    """Return the same for a certificate that is in no file: its key, and then the chain, PEM. Blocks.

    Raises:
        OSError: it cannot be used.
    """
    with named_file(pem) as path:  # OpenSSL would take it from memory, but Python's ssl does not
        return _server_context(path, path)


def _server_context(certificate: Path | str, key: Path | str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key, "")  # an encrypted key fails instead of asking
    return context


def client_context(*, pinned: bool, ca_file: Path | None = None) -> ssl.SSLContext:
    """Return the context of a client that will compare fingerprints (`pinned`) or else checks authority and name.

    Raises:
        OSError: `ca_file` cannot be read or holds no certificate.
    """
    if pinned:  # no authority counts, so none is loaded
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        # Python 3.13 turned this on, and many a home-made authority does not pass it; 3.11 and 3.12 take the same ones.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def find_refusal(
    certificate: Path, key: Path, host: str | None = None
) -> ssl.SSLCertVerificationError | None:
    """Return why a client that checks by the system's authorities would refuse a server; None where it would not.

    They shake hands in memory, so it is the client's own check, as of here and now. Takes some 20 ms, and blocks.

    Args:
        certificate: What the server shows.
        key: Its private key.
        host: The name or address by which clients know the server; None leaves that out.

    Raises:
        OSError: As `server_context`.
    """
    context = client_context(pinned=False)
    context.check_hostname = host is not None
    return _refusal(context, certificate, key, host)


def _refusal(
    context: ssl.SSLContext, certificate: Path, key: Path, host: str | None
) -> ssl.SSLCertVerificationError | None:
    """Return why a client with that context refuses a server; they shake hands in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(certificate, key).wrap_bio(to_server, to_client, server_side=True)
    client = context.wrap_bio(to_client, to_server, server_hostname=host)
    try:
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error
    return None


def name_mismatch(certificate: Path, key: Path, host: str) -> str | None:
    """Return in which words a client refuses a certificate because it is for other names than `host`; None where it is for it.

    Whoever has signed it is left out: the certificate vouches for itself. Takes some 20 ms, and blocks.

    Raises:
        OSError: As `server_context`.
    """
    context = client_context(pinned=False, ca_file=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    error = _refusal(context, certificate, key, host)
    return error.verify_message.rstrip(".") if error and is_for_other_name(error) else None


def lacks_authority(error: ssl.SSLCertVerificationError) -> bool:
    """Tell whether a certificate was refused because no authority that counts vouches for it."""
    return error.verify_code in _UNKNOWN_AUTHORITY


def speaks_no_tls(error: OSError) -> bool:
    """Tell whether a handshake failed because what the other side said is no TLS."""
    return getattr(error, "reason", None) in _NO_TLS


def is_for_other_name(error: ssl.SSLCertVerificationError) -> bool:
    """Tell whether a certificate was refused because it is for other names."""
    return error.verify_code in _OTHER_NAME


async def accept_tls(
    sock: socket.socket, context: ssl.SSLContext, *, tells_end: bool = False
) -> TLSEndpoint:
    """Shake hands as the server, on a connected socket; closes it where that fails. The caller sets the deadline. `tells_end` is that of `TLSEndpoint`.

    Raises:
        ConnectionLostError: the client went away or its TLS and ours do not agree.
    """
    return await _shake_hands(sock, context, server_side=True, tells_end=tells_end)


async def connect_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    host: str,
    *,
    session: ssl.SSLSession | None = None,
) -> TLSEndpoint:
    """Shake hands as a client, on a connected socket; closes it where that fails. The caller sets the deadline.

    `session` is that of an earlier connection made with the same context: it saves the server a signature.

    Raises:
        ConnectionLostError: the server went away or its TLS and ours do not agree.
        ssl.SSLCertVerificationError: the certificate does not pass the check by authority and name.
    """
    return await _shake_hands(sock, context, server_hostname=host, session=session)


async def _shake_hands(
    sock: socket.socket,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
    tells_end: bool = False,
) -> TLSEndpoint:
    try:
        sock.setblocking(False)
        endpoint = TLSEndpoint(
            sock,
            context,
            server_side=server_side,
            server_hostname=server_hostname,
            session=session,
            tells_end=tells_end,
        )
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: "server_hostname cannot be an empty string or start with a dot"
        sock.close()
        raise ConnectionLostError(f"TLS cannot start: {error}") from error
    try:
        await endpoint.do_handshake()
    except ssl.SSLCertVerificationError:
        endpoint.close()
        raise
    except OSError as error:
        endpoint.close()
        if not server_side and speaks_no_tls(error):
            raise ConnectionLostError(
                "whatever answers there does not speak TLS, so it is no trionat: give the control port of a trionat server"
            ) from error
        raise lost(error) from error
    except BaseException:
        endpoint.close()
        raise
    return endpoint


def peer_fingerprint(endpoint: TLSEndpoint) -> bytes:
    """Return the SHA-256 fingerprint of the certificate that the server showed."""
    certificate = endpoint.tls.getpeercert(binary_form=True)
    if certificate is None:  # a TLS 1.3 server without a certificate does not exist
        raise ConnectionLostError("the server showed no certificate")
    return fingerprint(certificate)
