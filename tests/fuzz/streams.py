"""Streams of bytes that are nearly right, which get further into a decoder than noise does."""

from __future__ import annotations

from attrs import asdict, evolve
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.protocol.frames import BIG_ENDIAN, encode_frame
from trionat.protocol.legacy import (
    HEADERS,
    AuthFail,
    AuthSuccess,
    ConnectionFull,
    Credentials,
    KeepAlive,
    LegacyMessage,
    NewConnection,
    Reason,
    Refusal,
    UserInformation,
    encode,
)
from trionat.protocol.messages import (
    SECRET_BYTES,
    Acks,
    Approve,
    Ask,
    Attach,
    Begin,
    Change,
    Changed,
    Close,
    CloseCode,
    Demand,
    Down,
    Drain,
    Early,
    Examine,
    Examined,
    Expose,
    Hello,
    Join,
    Lost,
    Message,
    Moved,
    Ping,
    Pong,
    Publish,
    PublishKind,
    Queued,
    RefusalCode,
    Refused,
    Resumption,
    ServiceRequest,
    Welcome,
    encode_message,
)
from trionat.protocol.proxy import PROXY_V2, proxy_header
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    END_ID,
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    Ack,
    Forward,
    Open,
    Probe,
    Probed,
    Resume,
    Resumed,
)

OPEN = Open(
    visitor=1, service=0, host="192.0.2.1", port=1234, visit_host="public.example", visit_port=60001
)

MESSAGES: tuple[Message, ...] = (
    Hello(username="alice", identity="laptop", password="secret", software="x"),
    Hello(username="", identity="", token=bytes(16), resume="lease"),
    Hello(username="alice", identity="x", token=bytes(16), caveats=("only ports=60001", "until x")),
    Expose(services=(ServiceRequest(name="web", visit_port=60001),), idle_tunnels=3),
    Expose(services=(ServiceRequest(),), group="web"),
    Expose(
        services=(
            ServiceRequest(
                publish=Publish(
                    kind=PublishKind.HTTP,
                    name="shop",
                    http2=True,
                    basic_auth=("alice:x",),
                    allow=("192.0.2.0/24",),
                    deny=("::/0",),
                    rate=1.5,
                    approve=True,
                )
            ),
            ServiceRequest(publish=Publish(kind=PublishKind.TLS)),
            ServiceRequest(publish=Publish(kind=PublishKind.HTTPS), visit_port=60001),
        )
    ),
    Queued(position=1),
    Welcome(
        uid=1,
        secret=bytes(SECRET_BYTES),
        ports=(60001,),
        host="public.example",
        ping_interval=2.5,
        peer_timeout=8,
        max_tunnels=9,
        resumption=Resumption(lease="lease", wait=30, buffer=65536),
        route="w1",
    ),
    Welcome(
        uid=1,
        secret=bytes(SECRET_BYTES),
        ports=(0, 60001),
        urls=("https://shop.example.org", None),
        host="public.example",
        ping_interval=2.5,
        peer_timeout=8,
        max_tunnels=9,
    ),
    Refused(code=RefusalCode.FULL, text="full"),
    Refused(code=RefusalCode.MOVED, text="over there", route="n1.w2"),
    Refused(code=RefusalCode.DRAINING, text="go away", servers=(TCPAddress("b.example", 8007),)),
    Close(code=CloseCode.STOPPED, text="bye"),
    Ping(1),
    Pong(2**64 - 1),
    Drain(seconds=1.5),
    Drain(seconds=1, servers=(TCPAddress("b.example", 8007),)),
    Moved(),
    Demand(3),
    Acks(((1, 5), (2, 0))),
    Lost(((1, 0),)),
    Begin(OPEN.payload()),
    Early(1, 5, b"bytes"),
    Down((0, 2)),
    Ask(service=0, host="192.0.2.1", what="GET /"),
    Approve(service=0, host="192.0.2.1", approved=True),
    Examine(service=0, token="a-token"),
    Examine(service=0, token="a-token", wanted=(ServiceRequest(visit_port=60001),)),
    Examined(
        service=0,
        dialled="public.example:60000",
        answered=False,
        failure="Connection refused",
        time=1.8e9,
        client="192.0.2.1:40000",
        software="trionat 0.1.0",
        refusal="no",
    ),
    Change(removed=(0,), added=(ServiceRequest(name="n", visit_port=60001),)),
    Changed(ports=(60001,)),
    Changed(code="port-taken", text="t"),
    Attach(1, bytes(SECRET_BYTES)),
    Join.prove(1, 1, bytes(SECRET_BYTES)),
)
"""One of each kind, and more of those that come in several forms."""

LEGACY: tuple[LegacyMessage, ...] = (
    Credentials(username="alice", password="secret"),
    UserInformation(uid=1, port=60001),
    UserInformation(uid=2, port=60002),
    AuthSuccess(),
    AuthFail(),
    NewConnection(),
    KeepAlive(),
    ConnectionFull(),
    Refusal.of(Reason.USER_EXPIRED),
)

FRAME_IDS = (
    DATA_ID,
    END_ID,
    *(kind.ID for kind in (Open, Forward, Resume, Resumed, Ack, Abort, Probe, Probed)),
)

VISITORS = st.integers(0, 3)
"""Few, so that chance finds the one that is there, the one before, and a stranger."""

POSITIONS = st.one_of(st.integers(0, 12), st.just(2**64 - 1))
"""Of a stream that has said little: most of them are true."""

opens = st.builds(evolve, st.just(OPEN), visitor=VISITORS, service=st.integers(0, 2))
forwards = st.builds(
    lambda opening, fence, name: Forward(fence=fence, name=name, **asdict(opening)),
    opens,
    POSITIONS,
    st.sampled_from(["", "shop.example.org"]),
)
aborts = st.builds(Abort, VISITORS, st.sampled_from(AbortReason), st.text(max_size=5))
resumes = st.builds(Resume, opens, POSITIONS, POSITIONS, st.integers(0, 2))
tunnel_frames = st.one_of(
    opens.map(Open.encode),
    forwards.map(Forward.encode),
    resumes.map(Resume.encode),
    st.builds(Resumed, POSITIONS).map(Resumed.encode),
    st.builds(Ack, VISITORS, POSITIONS).map(Ack.encode),
    aborts.map(Abort.encode),
    st.sampled_from([END_FRAME, PROBE_FRAME, PROBED_FRAME]),
    st.binary(min_size=1, max_size=40).map(lambda data: encode_frame(DATA_ID, data)),
)
legacy_frames = st.sampled_from(
    [encode(message, dialect) for dialect in HEADERS for message in LEGACY]
)
control_frames = st.sampled_from([encode_message(message) for message in MESSAGES])


def _bounds(length: int, message_id: int, share: float) -> bytes:
    """A header, and as much of what it announces as can be had cheaply."""
    return BIG_ENDIAN.pack(length, message_id) + bytes(min(round(length * share), 6000))


oversize = st.builds(
    _bounds,
    st.sampled_from([0, 1, 1024, 1025, 4096, 4097, 65537, 2**20 + 1, 2**32 - 1]),
    st.sampled_from([0, *(message.id for message in MESSAGES), *FRAME_IDS]),
    st.sampled_from([0.0, 0.5, 1.0]),
)

CAVEATS = (
    b"only names=shop,shop-*,*.example.org ports=60001,60003-60009",
    b"only ports=1-1024",
    b"until 2027-01-31T12:00:00Z",
    b"xn--bcher-kva.example",
)

FIRST_BYTES = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    BIG_ENDIAN.pack(41, 60001),
    b"\x16\x00\x00\x00\x61\xea\x00\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
)

PROXY_HEADERS = (
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 60001\r\n",
    b"PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 56324 60001\r\n",
    b"PROXY UNKNOWN 1 2\r\n",
    proxy_header(PROXY_V2, TCPAddress("192.0.2.7", 56324), TCPAddress("198.51.100.1", 60001)),
    proxy_header(PROXY_V2, TCPAddress("2001:db8::7", 56324), TCPAddress("2001:db8::1", 60001)),
    b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0f" + bytes(12) + b"\x03\0\0",
)

TICKET = Ticket(
    host="example.com",
    port=8007,
    fingerprint=bytes(32),
    username="alice",
    token=bytes(TOKEN_BYTES),
)

SAMPLES: tuple[bytes, ...] = (
    b"".join(map(encode_message, MESSAGES)),
    *map(encode_message, MESSAGES),
    OPEN.encode() + encode_frame(DATA_ID, b"hello") + END_FRAME + PROBE_FRAME + PROBED_FRAME,
    Abort(1, AbortReason.RESET, "gone").encode(),
    Resume(OPEN, 5, 3, 1).encode() + Resumed(5).encode() + Ack(1, 6).encode(),
    *FIRST_BYTES,
    *PROXY_HEADERS,
    *CAVEATS,
    *(encode(message, dialect) for dialect in HEADERS for message in LEGACY),
    TICKET.encode().encode(),
    TICKET.narrow("only names=shop", "until 2027-01-31T12:00:00Z").encode().encode(),
    encode_frame(Drain.id, b'{"seconds":1' + b"0" * 400 + b"}"),
    encode_frame(Expose.id, b'{"services":[{"name":"\\ud800"}],"idle_tunnels":' + b"[" * 900),
)
"""Good input, and some that is not, for a fuzzer to begin with: noise takes long to get past the first header."""


def _spoilt(stream: bytes, places: list[tuple[int, int, bytes]]) -> bytes:
    """Put other bytes in the place of a few."""
    for place, length, other in places:
        at = place % (len(stream) + 1)
        stream = stream[:at] + other + stream[at + length :]
    return stream


spoils = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 4), st.binary(max_size=4)), max_size=4
)


def spoilt(*kinds: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A few frames of these kinds, some of them damaged."""
    joined = st.lists(st.one_of(*kinds), max_size=8).map(b"".join)
    return st.builds(_spoilt, joined, spoils)


streams: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=300),
    spoilt(control_frames),
    spoilt(tunnel_frames),
    oversize,
    spoilt(st.sampled_from(PROXY_HEADERS)),
    spoilt(st.sampled_from(CAVEATS)),
    spoilt(
        control_frames,
        tunnel_frames,
        oversize,
        st.sampled_from(FIRST_BYTES),
        st.just(TICKET.encode().encode()),
    ),
)
