"""What runs in the helper process: one conversation with an authority, by the library `acme`, then the end.

It is run by its path and imported by nobody, as it imports nothing of trionat: so it begins in half the time, and the library's 20 MiB are gone with the process. It
touches no file but the authorities that it checks by, gets its task in one line of JSON, and says what it has in such lines. When its input ends, the server is gone,
and so is it.

| line | from | says |
| --- | --- | --- |
| `order`, `renewal` | server | the task |
| `answers` | helper | what has to be answered; it waits for `serving` |
| `issued`, `window`, `failed`, `bug` | helper | the last word |

It never says anything but these; what the authority answered is bounded before it is read, and the library's own exceptions, whatever they
are, are the authority's fault: it answers, the library only believes it.
"""

# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The library builds its messages at run time, so no type checker knows their fields.

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import ipaddress
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import attrs
import requests
import urllib3
from acme import challenges, client, crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy import b64, jwa, jwk
from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Values = dict[str, Any]

_MOST_BYTES: Final = 1_000_000
"""Of one answer of the authority; a chain has 8,000."""

_REQUEST_TIMEOUT: Final = 20
"""Seconds without a byte."""

_NONCE_TRIES: Final = 10
"""An authority may refuse a nonce for no reason that we could know (RFC 8555 section 6.5); the library tries twice for each of these."""

_FIRST_LOOK: Final = 0.1
_LAST_LOOK: Final = 5.0
"""Seconds between two looks whether an authority has done something; it doubles from the first to the last."""

_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
"""The extension of a certificate that answers tls-alpn-01 (RFC 8737 section 6.1)."""


class Failed(Exception):  # noqa: N818 - the last word of that name
    """What the last word is when there is no certificate. `until` is in seconds since 1970."""

    def __init__(self, code: str, text: str, until: float | None = None) -> None:
        super().__init__(text)
        self.code, self.text, self.until = code, text, until


def main() -> None:
    """Do the task that comes on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us
    said: queue.Queue[Values] = queue.Queue()
    threading.Thread(target=_hear, args=(said,), daemon=True).start()
    task = said.get()
    net = _Network(task["agent"], task["ca_file"])
    try:
        authority = _Authority(task, said, net)
        if task["what"] == "order":
            authority.order()
        else:
            authority.tell_windows()
    except Exception as error:  # noqa: BLE001 - it is told to the server, which has the log
        say(_last_word(error, net))
    # Not by the way of the interpreter's end, which would wait for connections and threads.
    sys.stdout.flush()
    os._exit(0)


def _hear(said: queue.Queue[Values]) -> None:
    for line in sys.stdin:
        said.put(json.loads(line))
    os._exit(1)  # the server is gone


def say(message: Values) -> None:
    """Say one line to the server."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _last_word(error: Exception, net: _Network) -> Values:
    match error:
        case Failed():
            return _failed(error)
        case messages.Error():
            return _failed(net.problem(error.typ, error.detail))
        case requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError():
            return _failed(Failed("away", f"it did not answer within {_REQUEST_TIMEOUT} s"))
        case requests.exceptions.RequestException() | urllib3.exceptions.HTTPError():
            return _failed(Failed("away", _innermost(error)))
        case OSError():  # a file of authorities that is not there, or is none
            return _failed(Failed("here", str(error)))
        case errors.ClientError() if net.status >= 400:
            return _failed(net.refused())
        case _ if _is_ours(error):
            return {"what": "bug", "traceback": "".join(traceback.format_exception(error))}
        case _:
            text = f"its answer makes no sense ({type(error).__name__}: {str(error)[:100]})"
            return _failed(Failed("nonsense", text))


def _failed(error: Failed) -> Values:
    return {"what": "failed", "code": error.code, "text": error.text[:2000], "until": error.until}


def _is_ours(error: Exception) -> bool:
    """Tell a bug of ours from what the library makes of strange answers: by where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or frames[-1].filename == __file__


def _innermost(error: BaseException) -> str:
    """Say what the system said: the libraries wrap it three times."""
    text = str(error)
    found = re.search(r"\[(?:Errno -?\d+|SSL: \w+)\] ([^'\"()]+)", text)
    if found:
        return found[1].strip()
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or text or type(error).__name__


class _Bounded(HTTPAdapter):
    """Reads answers up to a bound. `heard` is called with each, before its content is read."""

    def __init__(self, heard: Callable[[requests.Response], None]) -> None:
        super().__init__()
        self._heard = heard

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request and read its answer."""
        kwargs["stream"] = True
        # The library of the connection would wait for an answer that comes a byte a minute; the server kills us in time.
        response = super().send(request, *args, **kwargs)
        self._heard(response)
        content = bytearray()
        for piece in response.raw.stream(65_536, decode_content=True):
            content += piece
            if len(content) > _MOST_BYTES:
                response.raw.close()
                raise Failed("nonsense", f"its answer has more than {_MOST_BYTES:,} bytes")
        response.raw = io.BytesIO(bytes(content))
        return response


class _Network(client.ClientNetwork):
    """The library's, with bounds and more patience. `status` and `retry_after` are of the last answer."""

    status = 0
    retry_after: str | None = None

    def __init__(self, agent: str, ca_file: str | None) -> None:
        super().__init__(alg=jwa.ES256, user_agent=agent, timeout=_REQUEST_TIMEOUT)
        if ca_file is not None:
            self.verify_ssl = ca_file  # type: ignore[assignment]  # it goes to requests as it is
        self.session.adapters.clear()  # none for http://
        self.session.mount("https://", _Bounded(self._note))

    def _note(self, response: requests.Response) -> None:
        self.status = response.status_code
        self.retry_after = response.headers.get("Retry-After")

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a signed request."""
        for _ in range(_NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)

    def problem(self, typ: object, detail: object) -> Failed:
        """Return what a problem document says (RFC 7807), in our words where a user can do something about it."""
        code = str(typ).rpartition(":")[2]
        text = str(detail or code)
        if code == "rateLimited":
            return Failed(code, text, self._until())
        return Failed(code, text)

    def refused(self) -> Failed:
        """Return what an answer says that is an error without a document."""
        code = "rateLimited" if self.status == 429 else "away"
        return Failed(code, f"it answered with status {self.status}", self._until())

    def _until(self) -> float | None:
        asked = _seconds(self.retry_after)
        return None if asked is None else time.time() + asked


@attrs.define(eq=False)
class _Authority:
    """The conversation. `task` is what the server wants, `said` what else it says."""

    task: Values
    said: queue.Queue[Values]
    net: _Network
    key: Any = attrs.field(init=False)
    acme: client.ClientV2 = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        pem = self.task["account_key"].encode()
        private = serialization.load_pem_private_key(pem, password=None)
        self.key = jwk.JWKEC(key=private)
        self.net.key = self.key

    # --- the two tasks ---

    def order(self) -> None:
        """Get a certificate, and say `issued`."""
        self._open()
        self._log_in()
        names, method = self.task["names"], self.task["method"]
        key = ec.generate_private_key(ec.SECP256R1())
        key_pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        order = self._make_order(names, key_pem)
        wanted = [self._challenge(url, method) for url in _urls(order.body.authorizations)]
        open_ones = [found for found in wanted if found is not None]
        if open_ones:
            say({"what": "answers", "answers": [answer for _, _, answer in open_ones]})
            if self.said.get()["what"] != "serving":
                raise Failed("helper", "the server does not serve the answers")
            for _, url, answer in open_ones:
                # Any response of the library's serializes to the empty object that the authority wants to have. An empty one of our own would be
                # false, and false is sent as a request to look only, so that the authority would never begin.
                begin = challenges.HTTP01Response(key_authorization=answer["authorization"])
                self.net.post(url, begin, **self._nonces())
            for authorization, _, _ in open_ones:
                self._wait_valid(authorization)
        chain = self._finalize(order)
        window = self._window(chain)
        say({"what": "issued", "key": key_pem.decode(), "chain": chain, **window})

    def tell_windows(self) -> None:
        """Say when the authority wants certificates to be renewed, a `window` for each, in order."""
        self._open()
        for pem in self.task["certificates"]:
            say({"what": "window", **self._window(pem)})

    # --- steps ---

    def _open(self) -> None:
        directory = _object(self.net.get(self.task["directory"]))
        for name in ("newNonce", "newAccount", "newOrder"):
            if not isinstance(directory.get(name), str):
                raise Failed("nonsense", f"this is no directory of ACME: it has no {name}")
        self.acme = client.ClientV2(messages.Directory.from_json(directory), self.net)

    def _log_in(self) -> None:
        """Open an account, or find the one of this key: the authority tells them apart."""
        terms = self.acme.directory.meta.terms_of_service
        if terms and not self.task["agree_terms"]:
            raise Failed(
                "terms", f"its terms have to be agreed to first (Acme.AgreeTerms): {terms}"
            )
        if self.acme.external_account_required():
            raise Failed(
                "terms", "it wants accounts that were opened elsewhere, which is not built"
            )
        email = self.task["email"] or None
        new = messages.NewRegistration.from_data(email=email, terms_of_service_agreed=True)
        try:
            self.acme.new_account(new)
            say({"what": "account", "terms": terms or ""})
        except errors.ConflictError as known:
            self.net.account = messages.RegistrationResource(
                uri=known.location, body=messages.Registration()
            )

    def _make_order(self, names: list[str], key_pem: bytes) -> Any:
        hosts = [name for name in names if not _is_address(name)]
        addresses = [ipaddress.ip_address(name) for name in names if _is_address(name)]
        csr = crypto_util.make_csr(key_pem, domains=hosts, ipaddrs=addresses)
        return self.acme.new_order(csr, profile=self.task["profile"])

    def _challenge(self, authorization: str, method: str) -> tuple[str, str, Values] | None:
        """Return an authorization, the URL of the challenge that we take, and its answer; None where it is valid already."""
        status, name, offered = self._authorization(authorization)
        if status == "valid":
            return None
        for one in offered:
            match one:
                case {"type": str(typ), "url": str(url), "token": str(token)} if typ == method:
                    break
                case _:
                    continue
        else:
            raise Failed("method", f"it does not offer {method} for {name}")
        thumbprint = b64.b64encode(self.key.thumbprint(hash_function=hashes.SHA256)).decode()
        text = f"{token}.{thumbprint}"
        pem = _alpn_pem(name, text) if method == "tls-alpn-01" else ""
        answer = {"name": name, "token": token, "authorization": text, "pem": pem}
        return authorization, url, answer

    def _authorization(self, url: str) -> tuple[str, str, list[Any]]:
        """Return the status of an authorization, whose it is, and its challenges."""
        match self._look(url):
            case {
                "status": str(status),
                "identifier": {"value": str(name)},
                "challenges": list(offered),
            } if name in self.task["names"]:
                return status, name, offered
            case _:
                raise Failed("nonsense", "an authorization of it is none, or for another name")

    def _wait_valid(self, authorization: str) -> None:
        for _ in self._looks():
            status, name, offered = self._authorization(authorization)
            if status == "valid":
                return
            if status in {"pending", "processing"}:
                continue
            for one in offered:
                match one:
                    case {"error": {"type": typ, "detail": detail}}:
                        raise self.net.problem(typ, f"{name}: {detail}")
                    case _:
                        continue
            raise Failed("nonsense", f"{name}: it is {status}, and no reason is given")

    def _finalize(self, order: Any) -> str:
        found = self._begin(order)
        for _ in self._looks():
            match found:
                case {"status": "valid", "certificate": str(url)}:
                    return self.net.post(url, None, **self._nonces()).text
                case {"status": "invalid", "error": {"type": typ, "detail": detail}}:
                    raise self.net.problem(typ, detail)
                case {"status": "invalid"}:
                    raise Failed("nonsense", "the order is invalid, and no reason is given")
                case {"status": "ready"}:
                    found = self._begin(order)
                case _:
                    found = self._look(order.uri)
        raise AssertionError  # the looks have no end

    def _begin(self, order: Any) -> Values:
        """Ask for the certificate; return the order."""
        csr = messages.CertificateRequest(csr=x509.load_pem_x509_csr(order.csr_pem))
        try:
            return _object(self.net.post(order.body.finalize, csr, **self._nonces()))
        except (
            messages.Error
        ) as error:  # an authority of many machines may not know it everywhere yet
            if error.code != "orderNotReady":
                raise
            return self._look(order.uri)

    def _window(self, pem: str) -> Values:
        """Return `renew` and `again`, in seconds since 1970: when to renew, if the authority says so, and when to ask again."""
        try:
            renew, again = self.acme.renewal_time(pem.encode())
        except errors.ARIError as error:
            return {"renew": None, "again": error.retry_after.timestamp()}
        except Exception:  # noqa: BLE001 - it is a hint: a certificate without one is as good
            return {"renew": None, "again": None}
        at = None if renew is None else renew.astimezone(dt.UTC).timestamp()
        return {"renew": at, "again": again.timestamp()}

    # --- small things ---

    def _nonces(self) -> Values:
        return {"new_nonce_url": self.acme.directory["newNonce"]}

    def _look(self, url: str) -> Values:
        return _object(self.net.post(url, None, **self._nonces()))

    def _looks(self) -> Iterator[None]:
        """Yield at once, and then after pauses; the server ends it."""
        pause = _FIRST_LOOK
        while True:
            yield
            asked = _seconds(self.net.retry_after)
            time.sleep(pause if asked is None else min(max(asked, pause), _LAST_LOOK))
            pause = min(2 * pause, _LAST_LOOK)


def _seconds(retry_after: str | None) -> float | None:
    """Return how many seconds a Retry-After means, whichever of its two forms it has; None where there is none that can be read."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return min(max(float(int(retry_after)), 0.0), 31e6)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare

    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return None


def _object(response: requests.Response) -> Values:
    found = response.json()
    if not isinstance(found, dict):
        raise Failed("nonsense", "its answer is no object of JSON")
    return found


def _urls(found: object) -> tuple[str, ...]:
    if not isinstance(found, tuple) or not all(isinstance(url, str) for url in found):
        raise Failed("nonsense", "its order has no authorizations")
    return found


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _alpn_pem(name: str, text: str) -> str:
    """Return key and certificate that answer tls-alpn-01 (RFC 8737 section 3): self-signed, for this name, with the digest of `text`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trionat")])
    general: x509.GeneralName = (
        x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)
    )
    digest = b"\x04\x20" + hashlib.sha256(text.encode()).digest()  # an OCTET STRING of 32 bytes
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([general]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (pem + certificate.public_bytes(serialization.Encoding.PEM)).decode()


if __name__ == "__main__":
    main()
