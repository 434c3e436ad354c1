from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trionat.address import TCPAddress
from trionat.errors import RemoteProtocolError
from trionat.protocol.client_hello import ROUTE
from trionat.protocol.fields import NAME_CHARACTERS, TEXT_CHARACTERS
from trionat.protocol.frames import (
    CONTROL_FRAME_BYTES,
    FIRST_FRAME_BYTES,
    HEADER_BYTES,
    Frame,
    FrameReader,
)
from trionat.protocol.messages import (
    MAX_SERVICES,
    MAX_STREAMS,
    SECRET_BYTES,
    Acks,
    Approve,
    Ask,
    Attach,
    Begin,
    Change,
    Changed,
    Close,
    Demand,
    Down,
    Drain,
    Early,
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
    Refused,
    Resumption,
    ServiceRequest,
    Welcome,
    decode_message,
    encode_message,
)
from trionat.protocol.ticket import MAX_CAVEATS, MAX_CAVEATS_TOGETHER, TOKEN_BYTES

IDS = {
    Hello: 40001,
    Expose: 40002,
    Queued: 40003,
    Welcome: 40004,
    Refused: 40005,
    Ping: 40006,
    Pong: 40007,
    Drain: 40008,
    Close: 40009,
    Demand: 40010,
    Acks: 40011,
    Lost: 40012,
    Begin: 40013,
    Early: 40014,
    Down: 40015,
    Moved: 40016,
    Ask: 40017,
    Approve: 40018,
    Change: 40021,
    Changed: 40022,
    Attach: 40100,
    Join: 40110,
}

# Whatever UTF-8 can carry.
characters = st.characters(exclude_categories=["Cs"])
names = st.text(characters, max_size=NAME_CHARACTERS)
texts = st.text(characters, max_size=TEXT_CHARACTERS)
ports = st.integers(1, 65535)
spans = st.floats(0, 86400)
numbers = st.integers(0, 2**64 - 1)
capabilities = st.lists(names, max_size=5).map(tuple)
secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)
streams = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5).map(tuple)

addresses = st.lists(
    st.builds(TCPAddress, st.sampled_from(["b.example", "192.0.2.1", "2001:db8::1"]), ports),
    max_size=3,
).map(tuple)

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        username=names,
        identity=names,
        password=st.none() | texts,
        token=st.none() | st.binary(max_size=100),
        name=names,
        version=st.integers(1, 2**31),
        capabilities=capabilities,
        software=names,
        resume=st.none() | names,
        caveats=st.lists(st.sampled_from(["only ports=60001", "x"]), max_size=3).map(tuple),
    ),
    st.builds(
        Expose,
        services=st.lists(
            st.builds(
                ServiceRequest,
                name=names,
                local=names,
                visit_port=st.none() | ports,
                preferred_port=st.none() | ports,
                publish=st.none()
                | st.builds(
                    Publish,
                    kind=st.sampled_from([PublishKind.HTTP, PublishKind.TLS]),
                    name=st.none() | st.sampled_from(["shop", "shop.example.org"]),
                    http2=st.booleans(),
                    rate=st.none() | st.sampled_from([0.5, 3.0]),
                    approve=st.booleans(),
                ),
            ),
            min_size=1,
            max_size=5,
        ).map(tuple),
        idle_tunnels=st.integers(0, 2**31),
        group=st.none() | st.text(characters, min_size=1, max_size=NAME_CHARACTERS),
    ),
    st.builds(Queued, position=st.integers(1, 2**31)),
    st.builds(Ask, service=st.integers(0, 1023), host=st.just("192.0.2.1"), what=st.just("GET /")),
    st.builds(Approve, service=st.integers(0, 1023), host=st.just("::1"), approved=st.booleans()),
    st.builds(
        Welcome,
        uid=st.integers(1, 2**63 - 1),
        secret=secrets,
        ports=st.lists(ports, max_size=5).map(tuple),
        host=st.just("")
        | st.sampled_from(["example.com", "192.0.2.1", "2001:db8::1", "dätä.example"]),
        ping_interval=spans,
        peer_timeout=spans,
        max_tunnels=st.integers(1, 2**31),
        version=st.integers(1, 2**31),
        capabilities=capabilities,
        resumption=st.none()
        | st.builds(Resumption, lease=names, wait=spans, buffer=st.integers(1, 2**31)),
        route=st.none() | st.from_regex(ROUTE, fullmatch=True),
    ),
    st.builds(
        Refused,
        code=names,
        text=texts,
        route=st.none() | st.from_regex(ROUTE, fullmatch=True),
        servers=addresses,
    ),
    st.builds(Close, code=names, text=texts),
    st.builds(Ping, numbers),
    st.builds(Pong, numbers),
    st.builds(Demand, numbers),
    st.builds(Acks, streams),
    st.builds(Lost, streams),
    st.builds(Begin, st.binary(max_size=100)),
    st.builds(
        Early,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=100),
    ),
    st.builds(
        Change,
        removed=st.sets(st.integers(0, MAX_SERVICES - 1), max_size=5).map(sorted).map(tuple),
        added=st.lists(
            st.builds(ServiceRequest, name=names, local=names, visit_port=st.none() | ports),
            max_size=3,
        ).map(tuple),
    ),
    st.builds(
        Changed,
        ports=st.lists(ports, max_size=5).map(tuple),
        code=st.none() | names,
        text=texts,
    ),
    st.builds(Down, st.sets(st.integers(0, MAX_SERVICES - 1), max_size=5).map(sorted).map(tuple)),
    st.builds(Drain, seconds=spans, servers=addresses),
    st.just(Moved()),
    st.builds(Attach, numbers, secrets),
    st.builds(Join, numbers, numbers, secrets),
)

GOOD: dict[type[Any], dict[str, Any]] = {
    Hello: {
        "version": 1,
        "capabilities": ["recycled-tunnels"],
        "software": "trionat 1",
        "name": "n",
        "identity": "i",
        "username": "u",
        "password": None,
        "token": "00ff",
        "resume": "l",
        "caveats": ["only names=shop"],
    },
    Expose: {
        "services": [{"name": "n", "local": "l", "visit_port": 1, "preferred_port": None}],
        "idle_tunnels": 4,
        "group": "g",
    },
    Queued: {"position": 1},
    Welcome: {
        "uid": 1,
        "secret": "00" * SECRET_BYTES,
        "ports": [60000],
        "host": "h",
        "ping_interval": 2.5,
        "peer_timeout": 8,
        "max_tunnels": 9,
        "version": 1,
        "capabilities": [],
        "resumption": {"lease": "l", "wait": 30, "buffer": 65536},
        "route": "w1",
    },
    Refused: {"code": "moved", "text": "t", "route": "n1.w2", "servers": ["b.example:8007"]},
    Close: {"code": "stopped", "text": "t"},
    Drain: {"seconds": 30, "servers": ["b.example:8007", "[::1]:1"]},
    Down: {"services": [0, 3]},
    Change: {"removed": [0, 3], "added": []},
    Changed: {"ports": [60001], "code": "port-taken", "text": "t"},
}

NO_TEXT: list[Any] = [None, 1, True, [], {}, "x" * (NAME_CHARACTERS + 1), "\ud800"]
NO_LONG_TEXT: list[Any] = [None, 1, [], "x" * (TEXT_CHARACTERS + 1), "a\udfffb"]
NO_NUMBER: list[Any] = ["1", True, False, 1.5, 1.0, [], {}, -1, 10**30]
NO_SPAN: list[Any] = [None, "1", True, -0.1, 86400.1, float("nan"), float("inf"), 10**400, [], {}]
NO_PORT = [*NO_NUMBER, 0, 65536]
NO_TEXTS: list[Any] = [
    None,
    "x",
    {},
    [1],
    [None],
    ["x" * (NAME_CHARACTERS + 1)],
    ["x"] * 65,
    ["\ud800"],
]
NO_HEX: list[Any] = [7, "0", "zz", "é", [], "00" * 128]
SERVICE = GOOD[Expose]["services"][0]
NO_ROUTE: list[Any] = [1, True, [], {}, "", ".", "W1", "w 1", "w-1", "é", "w1\n", "x" * 64]
RESUMPTION = GOOD[Welcome]["resumption"]

NO_ADDRESSES: list[Any] = [
    *(1, {}, "b.example:1", [1], [None], [""], ["b.example"], ["b.example:0"], ["::1:1"]),
    *(["a b:1"], ["\x1b[2J:1"], [f"{'h' * 1100}:1"], ["\ud800:1"], [":1"], ["[::]:1"]),
    ["b.example:1"] * 17,
]

BAD: dict[tuple[type[Any], str], list[Any]] = {
    (Hello, "version"): [None, 0, *NO_NUMBER],
    (Hello, "capabilities"): NO_TEXTS,
    (Hello, "software"): NO_TEXT,
    (Hello, "name"): NO_TEXT,
    (Hello, "identity"): NO_TEXT,
    (Hello, "username"): NO_TEXT,
    (Hello, "password"): [value for value in NO_LONG_TEXT if value is not None],
    (Hello, "token"): NO_HEX,
    (Hello, "resume"): [value for value in NO_TEXT if value is not None],
    (Hello, "caveats"): [
        *(value for value in NO_TEXTS if value is not None),
        *([text] for text in ("", "a\nb", '"', "\\", "ä", "a" * 256)),
        ["a"] * 17,
        ["a" * 205] * 5,
    ],
    (Expose, "services"): [
        None,
        {},
        "x",
        [],
        [1],
        [None],
        [[]],
        [SERVICE] * (MAX_SERVICES + 1),
        [SERVICE | {"name": None}],
        [SERVICE | {"local": "x" * 256}],
        ["\ud800"],
        [{"\ud800": 1}],
        [SERVICE | {"name": "\ud800"}],
        *([SERVICE | {"visit_port": port}] for port in NO_PORT),
        *([SERVICE | {"preferred_port": port}] for port in NO_PORT),
    ],
    (Expose, "idle_tunnels"): [None, *NO_NUMBER],
    (Expose, "group"): ["", *(value for value in NO_TEXT if value is not None)],
    (Queued, "position"): [None, 0, *NO_NUMBER],
    (Welcome, "uid"): [None, 0, *NO_NUMBER],
    (Welcome, "secret"): [None, "", "00" * (SECRET_BYTES - 1), "00" * (SECRET_BYTES + 1), *NO_HEX],
    (Welcome, "ports"): [None, 1, {}, *([port] for port in NO_PORT), [None], [1] * 1025],
    (Welcome, "host"): [*NO_TEXT, "two words", "host:1", "1.2.3", "http://x", "\x1b[31m"],
    (Welcome, "ping_interval"): NO_SPAN,
    (Welcome, "peer_timeout"): NO_SPAN,
    (Welcome, "max_tunnels"): [None, 0, *NO_NUMBER],
    (Welcome, "version"): [None, 0, *NO_NUMBER],
    (Welcome, "capabilities"): NO_TEXTS,
    (Welcome, "resumption"): [
        1,
        True,
        "x",
        [],
        {},
        *(RESUMPTION | {"lease": text} for text in NO_TEXT),
        *(RESUMPTION | {"wait": span} for span in NO_SPAN),
        *(RESUMPTION | {"buffer": number} for number in (None, 0, 2**31 + 1, *NO_NUMBER)),
    ],
    (Welcome, "route"): NO_ROUTE,
    (Refused, "code"): NO_TEXT,
    (Refused, "text"): NO_LONG_TEXT,
    (Refused, "route"): NO_ROUTE,
    (Close, "code"): NO_TEXT,
    (Close, "text"): NO_LONG_TEXT,
    (Drain, "seconds"): NO_SPAN,
    (Drain, "servers"): NO_ADDRESSES,
    (Refused, "servers"): NO_ADDRESSES,
    (Change, "added"): [None, 1, {}, "x", [None], [1], ["x"], [{}]],
    (Changed, "ports"): [None, 1, {}, "x", [None], ["1"], [0], [65536], [True]],
    (Changed, "code"): [1, True, [], {}, "x" * (NAME_CHARACTERS + 1), "\ud800"],
    (Changed, "text"): NO_LONG_TEXT,
    (Change, "removed"): [
        *(None, 1, {}, "x", [None], ["0"], [True], [0.0], [-1], [MAX_SERVICES]),
        *([1, 0], [1, 1], [0] * (MAX_SERVICES + 1)),
    ],
    (Down, "services"): [
        *(None, 1, {}, "x", [None], ["0"], [True], [0.0], [-1], [MAX_SERVICES]),
        *([1, 0], [1, 1], [0] * (MAX_SERVICES + 1)),
    ],
}


OPTIONAL = {
    (Hello, "password"),
    (Hello, "token"),
    (Hello, "resume"),
    (Drain, "servers"),
    (Refused, "servers"),
    (Hello, "caveats"),
    (Welcome, "resumption"),
    (Welcome, "route"),
    (Refused, "route"),
    (Expose, "group"),
    (Changed, "code"),
}


def decode(kind: type[Any], value: object) -> Message:
    return decode_message(Frame(IDS[kind], json.dumps(value).encode()))


@given(messages)
def test_round_trip(message: Message) -> None:
    reader = FrameReader(limit=CONTROL_FRAME_BYTES)
    reader.feed(encode_message(message))
    frame = reader.next_frame()
    assert frame is not None
    assert frame.id == IDS[type(message)]
    assert decode_message(frame) == message
    assert reader.trailing == b""


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_good_values_are_taken_and_unknown_keys_ignored(kind: type[Any]) -> None:
    assert decode(kind, GOOD[kind]) == decode(kind, GOOD[kind] | {"from": {"the": ["future"]}})


def test_every_field_has_its_bad_values() -> None:
    assert {(kind, field) for kind, fields in GOOD.items() for field in fields} == set(BAD)


@pytest.mark.parametrize(
    ("kind", "field"), BAD, ids=[f"{kind.__name__}.{field}" for kind, field in BAD]
)
def test_bad_values_of_every_field(kind: type[Any], field: str) -> None:
    for value in BAD[kind, field]:
        with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
            decode(kind, GOOD[kind] | {field: value})
            pytest.fail(f"{field}={value!r:.80} was taken")


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_payload_that_is_no_json_object(kind: type[Any]) -> None:
    for payload in (
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"\xff\xfe",
        b'{"a": 1}x',
        b"[" * 9000,
    ):
        with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
            decode_message(Frame(IDS[kind], payload))


def test_deeply_nested_service_is_refused() -> None:
    for depth in range(100, 3000, 100):
        payload = b'{"services": [' + b"[" * depth + b"]" * depth + b'], "idle_tunnels": 1}'
        with pytest.raises(RemoteProtocolError, match="EXPOSE"):
            decode_message(Frame(IDS[Expose], payload))


def test_missing_keys() -> None:
    for kind, fields in GOOD.items():
        for field in fields:
            value = {key: value for key, value in fields.items() if key != field}
            if (kind, field) in OPTIONAL:
                decode(kind, value)
                continue
            with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
                decode(kind, value)


@pytest.mark.parametrize(
    ("kind", "right"), [(Ping, 8), (Pong, 8), (Demand, 8), (Attach, 40), (Join, 48)]
)
def test_binary_payload_of_a_wrong_length(kind: type[Any], right: int) -> None:
    for length in {0, 1, right - 1, right + 1, 100}:
        with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
            decode_message(Frame(IDS[kind], bytes(length)))
    decode_message(Frame(IDS[kind], bytes(right)))


def test_early_byte_for_byte() -> None:
    encoded = bytes.fromhex("0000001200009c4e 0000000000000029 0000000000000002 6869")
    assert encode_message(Early(41, 2, b"hi")) == encoded
    assert decode_message(Frame(40014, encoded[8:])) == Early(41, 2, b"hi")
    for length in (15, 16 + 16 * 1024 + 1):
        with pytest.raises(RemoteProtocolError, match="EARLY"):
            decode_message(Frame(40014, bytes(length)))


@pytest.mark.parametrize(("kind", "frame_id"), [(Acks, "00009c4b"), (Lost, "00009c4c")])
def test_streams_are_pairs_of_numbers(kind: type[Acks | Lost], frame_id: str) -> None:
    message = kind(((41, 700), (2**64 - 1, 0)))
    wire = "00000020" + frame_id + f"{41:016x}{700:016x}" + "f" * 16 + "0" * 16
    assert encode_message(message).hex() == wire
    payload = bytes.fromhex(wire)[HEADER_BYTES:]
    assert decode_message(Frame(kind.id, payload)) == message
    for length in (0, 1, 15, 17, 16 * MAX_STREAMS + 16):
        with pytest.raises(RemoteProtocolError, match=kind.__name__.upper()):
            decode_message(Frame(kind.id, bytes(length)))
    longest = encode_message(kind(((1, 2),) * MAX_STREAMS))
    reader = FrameReader(limit=CONTROL_FRAME_BYTES)
    reader.feed(longest)
    frame = reader.next_frame()
    assert frame is not None
    assert decode_message(frame) == kind(((1, 2),) * MAX_STREAMS)


def test_who_does_not_resume_says_nothing_of_it() -> None:
    """A peer that knows nothing of `resume` gets the frames that it has always got."""
    hello = Hello(username="u", identity="i")
    assert not {"resume", "caveats"} & json.loads(hello.payload()).keys()
    welcome = Welcome(
        uid=1,
        secret=bytes(SECRET_BYTES),
        ports=(1,),
        host="",
        ping_interval=1,
        peer_timeout=2,
        max_tunnels=1,
    )
    assert "resumption" not in json.loads(welcome.payload())


@pytest.mark.parametrize("kind", [Refused, Close])
def test_a_text_for_people_is_cut_where_the_peer_would_not_take_it(
    kind: type[Refused | Close],
) -> None:
    """It may name all the ports that an account may have."""
    text = ", ".join(map(str, range(1, 2000, 2)))
    message = decode(kind, json.loads(kind(code="c", text=text).payload()))
    assert message == kind(code="c", text=text[:TEXT_CHARACTERS])


def test_the_longest_hello_fits_into_a_first_frame() -> None:
    """Of a client, not of anybody: its identity and its name are at most 128 printable characters."""
    caveats = ("c" * (MAX_CAVEATS_TOGETHER // MAX_CAVEATS),) * MAX_CAVEATS
    hello = Hello(
        username="\U0001f511" * 255,
        identity="\U0001f511" * 128,
        name="\U0001f511" * 128,
        token=bytes(TOKEN_BYTES),
        capabilities=("narrowed-tickets",) * 6,
        software="trionat 10.10.10",
        resume="0" * 32,
        caveats=caveats,
    )
    frame = encode_message(hello)
    assert len(frame) - HEADER_BYTES <= FIRST_FRAME_BYTES
    reader = FrameReader(FIRST_FRAME_BYTES)
    reader.feed(frame)
    first = reader.next_frame()
    assert first is not None
    assert decode_message(first) == hello


def test_hello_and_welcome_of_those_who_resume() -> None:
    hello = json.loads(Hello(username="u", identity="i", resume="lease 7").payload())
    assert hello["resume"] == "lease 7"
    welcome = Welcome(
        uid=1,
        secret=bytes(SECRET_BYTES),
        ports=(1,),
        host="",
        ping_interval=1,
        peer_timeout=2,
        max_tunnels=1,
        resumption=Resumption(lease="lease 8", wait=30.0, buffer=2**20),
    )
    assert json.loads(welcome.payload())["resumption"] == {
        "lease": "lease 8",
        "wait": 30.0,
        "buffer": 1048576,
    }


def test_a_proof_is_of_its_tunnel_alone() -> None:
    """A known answer, from HMAC-SHA-256 as docs/protocol.md has it; nothing of the frame can be changed."""
    secret = b"s" * SECRET_BYTES
    join = Join.prove(7, 3, secret)
    text = b"trionat plain tunnel" + bytes(7) + b"\x07" + bytes(7) + b"\x03"
    assert join.proof == hmac.new(secret, text, hashlib.sha256).digest()
    assert join.is_proven(secret)
    for other in (Join(8, 3, join.proof), Join(7, 4, join.proof), Join(7, 3, bytes(32))):
        assert not other.is_proven(secret)
    assert not join.is_proven(b"t" * SECRET_BYTES)


@pytest.mark.parametrize(
    "message_id", [0, 10001, 20002, 40000, 40039, 40101, 40109, 60001, 2**32 - 1]
)
def test_unknown_id(message_id: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(message_id)):
        decode_message(Frame(message_id, b"{}"))


@given(st.sampled_from([*IDS.values(), 1]), st.binary(max_size=200))
@example(40002, b'{"services":["\\ud800"],"idle_tunnels":1}')
@example(40008, b'{"seconds":1' + b"0" * 400 + b"}")
@example(40008, b'{"seconds":1' + b"0" * 5000 + b"}")
def test_random_bytes_give_a_message_or_a_protocol_error(message_id: int, payload: bytes) -> None:
    try:
        message = decode_message(Frame(message_id, payload))
    except RemoteProtocolError:
        return
    assert decode_message(Frame(message_id, message.payload())) == message


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["name", "local"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(BAD, key=str)), json_values)
def test_random_json_gives_a_message_or_a_protocol_error(
    place: tuple[type[Any], str], value: object
) -> None:
    kind, field = place
    try:
        message = decode(kind, GOOD[kind] | {field: value})
    except RemoteProtocolError:
        return
    assert decode_message(Frame(IDS[kind], message.payload())) == message


def test_longest_hello_of_plain_text_fits_the_first_frame() -> None:
    long = "x" * NAME_CHARACTERS
    hello = Hello(
        username=long,
        identity=long,
        name=long,
        software=long,
        password="p" * TEXT_CHARACTERS,
        token=bytes(100),
        resume=long,
    )
    assert len(hello.payload()) <= FIRST_FRAME_BYTES


def test_secrets_are_in_no_repr() -> None:
    hello = Hello(username="u", identity="i", password="hunter2", token=b"tokentoken")
    welcome = Welcome(
        uid=1,
        secret=b"s" * SECRET_BYTES,
        ports=(1,),
        host="",
        ping_interval=1,
        peer_timeout=2,
        max_tunnels=1,
    )
    attach = Attach(1, b"s" * SECRET_BYTES)
    shown = repr((hello, welcome, attach))
    assert "hunter2" not in shown
    assert "tokentoken" not in shown
    assert "sss" not in shown
