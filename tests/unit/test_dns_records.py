"""The DNS records that lead visitors to a server: which are told, and how they are looked at."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from trionat.address import TCPAddress
from trionat.server.names import dns_records

if TYPE_CHECKING:
    from trio.testing import MockClock

DOMAIN = "tunnel.example.com"
OURS = "203.0.113.7"


@attrs.define
class Zone(trio.abc.HostnameResolver):
    """A name server's records."""

    records: dict[str, str]

    async def getaddrinfo(self, host: bytes | None, *_arguments: Any, **_more: Any) -> Any:
        name = (host or b"").decode()
        found = self.records.get(name) or self.records.get("*." + name.partition(".")[2])
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 443))]

    async def getnameinfo(self, *_arguments: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("domain", "public", "records"),
    [
        (
            DOMAIN,
            OURS,
            ("*.tunnel.example.com. A 203.0.113.7", "tunnel.example.com. A 203.0.113.7"),
        ),
        (
            DOMAIN,
            "2001:db8::7",
            ("*.tunnel.example.com. AAAA 2001:db8::7", "tunnel.example.com. AAAA 2001:db8::7"),
        ),
        (
            DOMAIN,
            DOMAIN,
            (
                "*.tunnel.example.com. CNAME tunnel.example.com.",
                "tunnel.example.com. A (the address of this server)",
            ),
        ),
        (
            DOMAIN,
            "vps.example.net",
            (
                "*.tunnel.example.com. CNAME vps.example.net.",
                "tunnel.example.com. A (the address of vps.example.net)",
            ),
        ),
        (OURS, OURS, ()),
    ],
)
def test_which_records_lead_to_the_server(
    domain: str, public: str, records: tuple[str, ...]
) -> None:
    assert dns_records.needed(domain, TCPAddress(public, 8007)) == records


@pytest.mark.parametrize(
    ("name", "public", "record"),
    [
        ("shop.example.org", OURS, "shop.example.org. A 203.0.113.7"),
        ("shop.example.org", "2001:db8::7", "shop.example.org. AAAA 2001:db8::7"),
        ("shop.example.org", "vps.example.net", "shop.example.org. CNAME vps.example.net."),
        (f"shop.{DOMAIN}", OURS, f"*.{DOMAIN}. A 203.0.113.7"),
        (DOMAIN, OURS, f"{DOMAIN}. A 203.0.113.7"),
        (OURS, OURS, None),
    ],
)
def test_the_record_of_a_name(name: str, public: str, record: str | None) -> None:
    assert dns_records.record_of(name, DOMAIN, TCPAddress(public, 8007)) == record


@pytest.mark.parametrize(
    ("public", "records", "told"),
    [
        (OURS, {f"*.{DOMAIN}": OURS}, ["the domain itself leads nowhere"]),
        (OURS, {f"*.{DOMAIN}": OURS, DOMAIN: "192.0.2.1"}, ["the domain itself leads elsewhere"]),
        (OURS, {DOMAIN: OURS}, ["names below the domain lead nowhere"]),
        (
            OURS,
            {f"*.{DOMAIN}": "192.0.2.1", DOMAIN: OURS},
            ["names below the domain lead elsewhere"],
        ),
        (DOMAIN, {f"*.{DOMAIN}": OURS}, ["the server's own name (PublicAddr) leads nowhere"]),
        (DOMAIN, {f"*.{DOMAIN}": OURS, DOMAIN: OURS}, []),
    ],
)
async def test_what_is_wrong_is_told_once_and_taken_back_when_it_is_right(
    public: str,
    records: dict[str, str],
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    caplog.set_level(logging.INFO, "trionat")
    zone = Zone({OURS: OURS, **records})
    trio.socket.set_custom_hostname_resolver(zone)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dns_records.watch, DOMAIN, TCPAddress(public, 8007))
        await trio.sleep(3 * dns_records.LOOK_INTERVAL)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [any(text in str(record.msg) for text in told) for record in warnings] == [
            True
        ] * len(told)
        if told:
            assert f"{DOMAIN}. " in str(warnings[0].msg)
            assert "lead here" not in caplog.text
        zone.records |= {f"*.{DOMAIN}": OURS, DOMAIN: OURS}
    assert caplog.text.count("names below the domain lead here") == 1
