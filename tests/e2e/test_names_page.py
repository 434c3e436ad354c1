"""docs/names.md, followed word for word: from an empty server and a domain to a site, on machines of its own with a real DNS server and a real authority.

What is not taken from the page: the authority is pebble in place of Let's Encrypt, by two variables of the environment, and pip is left out.
"""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.certificates.pebble import find_program
from tests.faults.machines import open_site
from tests.faults.programs import Program
from tests.mariadb import write_certificates

if TYPE_CHECKING:
    from tests.faults.machines import Site

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it makes network namespaces"),
]

PAGE: Final = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
MACHINES: Final = {
    "server": "203.0.113.7",
    "client": "192.0.2.10",
    "visitor": "198.51.100.9",
    "dns": "203.0.113.53",
    "authority": "203.0.113.99",
}
DOMAIN: Final = "tunnel.example.com"


def commands(section: str) -> list[str]:
    """Return the lines of the page that are typed, in a section."""
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\$ (.+)$", text, re.MULTILINE)


def start_authority(site: Site, stack: ExitStack) -> None:
    """Run pebble, which asks the site's DNS server, and comes to the ports 80 and 443 of whatever a name leads to."""
    machine = site["authority"]
    write_certificates(machine.folder, machine.address)
    config = {
        "listenAddress": f"{machine.address}:443",
        "managementListenAddress": f"{machine.address}:15000",
        "certificate": str(machine.folder / "server.pem"),
        "privateKey": str(machine.folder / "server.key"),
        "httpPort": 80,
        "tlsPort": 443,
    }
    (machine.folder / "config.json").write_text(json.dumps({"pebble": config}))
    process = Program(
        machine,
        *(find_program("pebble"), "-strict", "-config", str(machine.folder / "config.json")),
        *("-dnsserver", f"{MACHINES['dns']}:53"),
        PEBBLE_VA_NOSLEEP="1",
    )
    stack.callback(process.stop)
    process.wait_for(r"Listening on")


def start_dns(site: Site, stack: ExitStack) -> None:
    """Run a DNS server with the records that the page says: the domain, and all below it, leads to the server."""
    records = re.findall(r"^(\S*tunnel\S+)\. +A  (\S+)$", PAGE, re.MULTILINE)
    assert records == [(f"*.{DOMAIN}", MACHINES["server"]), (DOMAIN, MACHINES["server"])]
    machine = site["dns"]
    process = Program(
        machine,
        *(find_program("pebble-challtestsrv"), "-dnsserver", f"{machine.address}:53"),
        *(
            "-management",
            f"{machine.address}:8055",
            "-defaultIPv4",
            MACHINES["server"],
            "-defaultIPv6",
            "",
        ),
        *("-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""),
    )
    stack.callback(process.stop)
    process.wait_for(r"(?i)starting")


def test_five_minutes(tmp_path: Path) -> None:
    pip, serve, connect = commands("Five minutes")
    assert pip == "pip install '.[names]'"
    began = time.monotonic()
    with ExitStack() as stack:
        site = stack.enter_context(open_site(tmp_path, MACHINES))
        start_dns(site, stack)
        start_authority(site, stack)
        for name in ("server", "visitor"):
            site[name].ask_names_at(MACHINES["dns"])
        authority = site["authority"].folder / "authority.pem"
        server = Program(
            site["server"],
            *site["server"].words(serve),
            TRIONAT_ACME_DIRECTORY=f"https://{MACHINES['authority']}/dir",
            TRIONAT_ACME_CA_FILE=str(authority),
        )
        stack.callback(server.stop)
        ticket = server.wait_for(r"trionat connect (tn\S+) http:8080$")[1]
        told = PAGE.split("$ trionat serve", 1)[1].split("```", 1)[0].strip().splitlines()[-3:]
        for line in told:
            assert line.strip() in server.text, server.text
        server.wait_for("names below the domain lead here")
        site_folder = site["client"].folder / "site"
        site_folder.mkdir()
        (site_folder / "index.html").write_text("Hello from home.\n")
        web = Program(
            site["client"],
            *(
                sys.executable,
                "-m",
                "http.server",
                "8080",
                "--bind",
                "127.0.0.1",
                "--directory",
                str(site_folder),
            ),
        )
        stack.callback(web.stop)
        client = Program(site["client"], *site["client"].words(connect.replace("TICKET", ticket)))
        stack.callback(client.stop)
        url = client.wait_for(
            rf"^(https://[a-z]+-[a-z]+-[0-9]+\.{re.escape(DOMAIN)}) -> 127\.0\.0\.1:8080$"
        )[1]
        assert client.text.splitlines()[0].startswith(url), "it is shown first of all"
        root = tmp_path / "root.pem"
        root.write_text(
            site["authority"].run(
                f"curl --silent --cacert {authority} https://{MACHINES['authority']}:15000/roots/0"
            )
        )
        answer = site["visitor"].run(
            f"curl --silent --show-error --location --cacert {root} http://{url[8:]}/"
        )
        assert answer == "Hello from home.\n"
        assert time.monotonic() - began < 60, "five minutes are for people"
        status = site["server"].run("trionat status")
        assert f"\nCertificates:\n  {url[8:]}  good until " in status
        # What the page says of who may have which name.
        limit, narrow = commands("Who may have which name")
        run = "trionat user add alice"
        site["server"].run(f"echo secret-12 | {run}; {limit}; {narrow}")
        listed = site["server"].run("trionat user names")
        assert listed.startswith(f"{url[8:]}  trionat, kept until ")
    assert "Traceback" not in server.text + client.text
