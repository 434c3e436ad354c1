"""What `serve --help`, `connect --help` and `doctor --help` are ordered by, and examples for each: sixty flags in one list are read by nobody.

Flags that stand nowhere here come under "Other".
"""

from __future__ import annotations

from typing import Final

TOPICS: Final = {
    "serve": {
        "Most used": (
            *("--public-addr", "--visit-port", "--domain", "--console-addr", "--workers"),
            *("--config", "--state-dir", "--json", "--plain", "--quiet", "--verbose"),
        ),
        "Addresses": (
            *("--controller-addr", "--tunnel-addr", "--visit-host", "--visit-port-policy"),
            *("--other-server", "--proxy-control-addr", "--proxy-visit-addr", "--trusted-proxies"),
        ),
        "Clients": (
            *("--name", "--start-auth", "--max-tcp-conn-num", "--max-services"),
            *("--max-group-clients", "--legacy-clients", "--tunnel-encryption"),
            *("--certificate", "--certificate-key"),
        ),
        "Queue": ("--max-conn-num", "--task-queue-num", "--task-queue-buffer-size"),
        "Visitors": (
            *("--max-visitors", "--max-waiting-visitors", "--max-visitors-per-address"),
            *("--visitor-rate", "--visitor-wait", "--allow-visitors", "--deny-visitors"),
        ),
        "Names": (
            *("--http-addr", "--https-addr", "--public-https-port", "--plain-http"),
            *("--certificates-dir", "--pages-dir", "--access-log", "--access-log-format"),
            *("--http-head-bytes", "--http-head-fields", "--http-head-timeout"),
            "--http-idle-timeout",
        ),
        "Losses and stops": (
            *("--drain-grace", "--port-reservation", "--resume-wait", "--resume-buffer"),
            *("--resume-memory", "--resume-memory-total", "--ping-interval", "--peer-timeout"),
        ),
        "Strangers": (
            *("--ban-after", "--ban-time", "--handshake-timeout", "--max-handshakes"),
            "--max-handshakes-per-address",
        ),
        "Console, log, and what is waited for": (
            *("--console-host", "--open-metrics", "--log-name", "--start-log"),
            *("--log-level", "--reload-on-change", "--wait-for-database", "--wait-for-redis"),
        ),
    },
    "connect": {
        "Most used": (
            *("--ticket-file", "--qr", "--inspect", "--once", "--config", "--state-dir", "--json"),
            *("--plain", "--quiet", "--verbose"),
        ),
        "Who may visit a service with a name": (
            *("--basic-auth", "--allow", "--deny", "--rate", "--approve"),
        ),
        "Services": (
            *("--local-server-addr", "--proxy-protocol", "--local-timeout", "--group"),
            *("--inspect-addr", "--inspect-bytes"),
        ),
        "The server, without a ticket": (
            *("--controller-addr", "--server", "--username", "--password", "--fingerprint"),
            *("--trust-on-first-use", "--ca-file", "--tunnel-server-addr"),
            *("--public-server-addr", "--dialect", "--tunnel-encryption", "--connect-timeout"),
        ),
        "This client": (
            *("--name", "--identity", "--log-name", "--drain-grace"),
            *("--min-idle-tunnels", "--max-tunnels", "--log-level", "--reload-on-change"),
        ),
    },
    "doctor": {
        "Most used": ("--bundle", "--json", "--config", "--state-dir", "--ticket-file"),
        "The server, without a ticket": (
            *("--controller-addr", "--server", "--username", "--password", "--fingerprint"),
            *("--trust-on-first-use", "--ca-file", "--tunnel-server-addr"),
            *("--public-server-addr", "--dialect", "--tunnel-encryption", "--connect-timeout"),
        ),
        "Others of connect, so that its command line can be taken as it is": (
            *("--local-server-addr", "--local-timeout", "--max-tunnels", "--min-idle-tunnels"),
            *("--name", "--identity", "--group", "--once", "--log-name", "--drain-grace"),
            *("--proxy-protocol", "--basic-auth", "--allow", "--deny", "--rate", "--approve"),
            *("--inspect", "--inspect-addr", "--inspect-bytes", "--log-level"),
            "--reload-on-change",
        ),
    },
}
"""For each command, by topic: its flags."""

OTHER: Final = "Other"

EXAMPLES: Final = {
    "serve": (
        ("trionat serve", "the first start makes everything that it needs"),
        ("trionat serve --public-addr tunnel.example.com -p 60000-60099", "a hundred visit ports"),
        ("trionat serve --domain tunnel.example.com", "https names, with certificates"),
        ("trionat serve --console-addr 8090", "a console at http://127.0.0.1:8090"),
    ),
    "connect": (
        ("trionat connect TICKET 8080", "127.0.0.1:8080, at a port that the server chooses"),
        ("trionat connect TICKET 22:60001 192.168.1.7:554", "two services, one at port 60001"),
        ("trionat connect TICKET http:8080@shop", "https://shop.DOMAIN, where the server has one"),
    ),
    "doctor": (
        ("trionat doctor TICKET 8080", "why nobody reaches 127.0.0.1:8080"),
        ("trionat doctor", "at the server: what is wrong with it"),
        ("trionat doctor --bundle report.zip", "a file for a bug report"),
    ),
}
"""For each command: a command line, and what it does."""


def topic_of(command: str, flags: list[str]) -> str:
    """Return under which topic a flag of a command stands; `flags` are all its words."""
    for topic, members in TOPICS.get(command, {}).items():
        if not set(flags).isdisjoint(members):
            return topic
    return OTHER


def rank(command: str, flags: list[str]) -> int:
    """Return which place a flag has among all of its command, from 0; those under no topic come last."""
    members = [each for topic in TOPICS.get(command, {}).values() for each in topic]
    return min((members.index(flag) for flag in flags if flag in members), default=len(members))
