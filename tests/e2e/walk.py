"""A page, followed as a person follows it: its commands are run, in their order, on a machine of a test that has the names and ports of the pages.

So nothing is put in the place of an address or a port. What a page cannot know is put in its place: `TICKET`, or a ticket with `…` in
it, is the last one that was shown (likewise tokens), and a fingerprint with `…` in it the server's. `pip install`, with the `git pull` before it, is left out, since trionat is there.

`serve`, `connect` and `demo` go on while the next lines are typed. A server goes on until the page starts the next one, and a client
until the next one, or until its block is over; what a client makes public is visited before the next line. Each has to end by itself, with 0.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from tests.faults.programs import TIMEOUT, Program
from tests.pages import blocks, calls, without_comment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.faults.machines import Machine
    from tests.pages import Block

PASSWORD: Final = "a-password-of-hers"
GREETING: Final = "Hello from behind the tunnel."

_TICKET: Final = r"tn\d_[\w-]+"
_TOKEN: Final = r"trn_[\w-]+"
_FINGERPRINT: Final = r"SHA256:[\w+/]{43}"


@attrs.define(eq=False)
class Walk:
    """Where somebody is who follows a page."""

    machine: Machine
    client_machine: Machine = attrs.field(
        default=attrs.Factory(lambda self: self.machine, takes_self=True)
    )
    """Where the service is, and `connect` runs."""
    server: Program | None = None
    successor: int | None = None
    """The process that has taken the server's place, by its number."""
    client: Program | None = None
    ticket: str = ""
    token: str = ""
    fingerprint: str = ""
    values: dict[str, str] = attrs.field(factory=lambda: {})
    """What else is put in whose place, by its pattern."""
    outputs: dict[str, str] = attrs.field(factory=lambda: {})
    """What each line has printed that has ended, the latest of a line."""

    def follow(
        self,
        *pages: str,
        before: Mapping[str, Callable[[], object]] | None = None,
        codes: Mapping[str, int] | None = None,
    ) -> None:
        """Run the blocks of pages that are not marked, and end what still runs then.

        Args:
            pages: Their paths in the repository.
            before: What is done before a line, by the beginning of that.
            codes: What a line ends with, if that is not 0.
        """
        before, codes = dict(before or {}), dict(codes or {})
        for block in (block for page in pages for block in blocks(page)):
            if not block.not_run:
                self._run_block(block, before, codes)
                self.end_client()
        self.end_server()
        assert not before, f"no line begins like this: {[*before]}"
        assert not codes, f"no line begins like this: {[*codes]}"

    def _run_block(
        self, block: Block, before: dict[str, Callable[[], object]], codes: dict[str, int]
    ) -> None:
        shell = ""  # what a line leaves to the next ones
        for line in block.typed:
            for start in [start for start in before if line.startswith(start)]:
                before.pop(start)()
            [code] = [codes.pop(start) for start in [*codes] if line.startswith(start)] or [0]
            command = self._fill_in(line)
            if not command:
                continue
            given = calls(command)
            if given and (given[-1][:1] in (["serve"], ["connect"]) or given[-1] == ["demo"]):
                self._start(given[-1][0], command)
                continue
            if found := re.fullmatch(r"([A-Z]+)=(?:\$\(.*\)|\S+)|export .*", command):
                command += f'; echo "${found[1]}"' if found[1] else ""
            output = self.run(shell + command, code=code)
            self.outputs[line] = output
            if taken := re.match(r"trionat \S+ serves as process (\d+)", output):
                self._note_successor(int(taken[1]))
            if found and found[1]:
                shell += f"{found[1]}={output.splitlines()[-1]}; "
            elif found:
                shell += f"{command}; "

    def _fill_in(self, line: str) -> str:
        command = re.sub(r"^(git pull && )?pip install [^&]+(?:&& |$)", "", without_comment(line))
        for pattern, value in (
            (r"\bTICKET\b|\btn\d_[\w-]*…\w*", self.ticket),
            (r"\btrn_[\w-]*…", self.token),
            (r"\bSHA256:[\w+/]*…|\bSHA256:[\w+/]{43}", self.fingerprint),
            (r"(?<=PASSWORD=)…", PASSWORD),
            *self.values.items(),
        ):
            if re.search(pattern, command):
                assert value, f"there is nothing yet for {line}"
                command = re.sub(pattern, value, command)
        return command.strip()

    def run(self, script: str, *, code: int = 0) -> str:
        """Run lines of a shell, and return what they print; whoever asks for a password gets one."""
        for path, stands_for in (("/etc/trionat", "etc"), ("/var/lib/trionat", "var")):
            script = script.replace(path, str(self.machine.folder / stands_for))
        done = subprocess.run(
            [*self.machine.inside, "sh", "-c", script],
            check=False,
            cwd=self.machine.folder,
            env=self.machine.environ,
            input=f"{PASSWORD}\n",
            capture_output=True,
            timeout=TIMEOUT,
            encoding="utf-8",
        )
        told = f"{script}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, f"it ended with {done.returncode}: {told}"
        assert "Traceback" not in told, told
        self._note(done.stdout + done.stderr)
        return done.stdout

    def _note(self, text: str) -> None:
        for name, pattern in (("ticket", _TICKET), ("token", _TOKEN)):
            for found in re.findall(pattern, text):
                setattr(self, name, found)
        if found := re.search(rf"fingerprint +({_FINGERPRINT})", text):
            self.fingerprint = found[1]

    # --- what goes on ---

    def _start(self, what: str, command: str) -> None:
        self.end_client()
        if what == "connect":
            self.connect(command)
            return
        self.end_server()
        self.server = _program(self.machine, command)
        last = r"^  trionat connect tn|^A user's ticket: " if what == "serve" else r"Ctrl-C"
        self.server.wait_for(last)
        self._note(self.server.text)
        if what == "demo":
            url = self.server.wait_for(r"^(http://\S+)")[1]
            assert GREETING in self.run(f"curl --silent --show-error --fail {url}")
            self.end_server()

    def serve(self, flags: str = "") -> None:
        """Run a server until the page starts one."""
        self._start("serve", f"trionat serve --public-addr tunnel.example.com {flags}")

    def connect(self, command: str = "trionat connect TICKET 8080") -> Program:
        """Run a client until the next one, and visit what it makes public."""
        self.end_client()
        command = self._fill_in(command)
        self.client = client = _program(self.client_machine, command)
        client.wait_for("logged in as")  # below the addresses
        for public, local in re.findall(r"^(\S+:\d+) -> (\S+)$", client.text, re.MULTILINE):
            if local == "127.0.0.1:8080":
                answer = self.run(f"curl --silent --show-error --fail http://{public}/")
                assert answer == f"{GREETING}\n"
        return client

    def end_client(self, code: int = 0) -> None:
        """End the client, if there is one; `code` is another one that it has ended with by itself."""
        if self.client is not None:
            client, self.client = self.client, None
            _end(client, code)

    def end_server(self) -> None:
        """End the server, if there is one."""
        if self.server is not None:
            server, self.server = self.server, None
            _end(server)
        if self.successor is not None:
            successor, self.successor = self.successor, None
            os.kill(successor, signal.SIGTERM)
            until = time.monotonic() + TIMEOUT
            while Path(f"/proc/{successor}").exists():
                assert time.monotonic() < until, "it has not ended"
                time.sleep(0.05)

    def _note_successor(self, pid: int) -> None:
        """Another process has taken over, and is nobody's child."""
        server, self.server = self.server, None
        assert server is not None
        assert server.process.wait(TIMEOUT) == 0, server.text
        self.successor = pid

    def kill(self) -> None:
        """End what is left after a failure."""
        for program in (self.client, self.server):
            if program is not None:
                program.stop()
        if self.successor is not None:
            os.kill(self.successor, signal.SIGKILL)


def _program(machine: Machine, command: str) -> Program:
    return Program(machine, "sh", "-c", f"exec env {command}")


def _end(program: Program, code: int = 0) -> None:
    ended = program.process.wait(TIMEOUT) if code else program.stop(signal.SIGINT)
    assert ended == code, f"it ended with {ended}:\n{program.text}"
    assert "Traceback" not in program.text, program.text


def serve_greeting(machine: Machine, *ports: int) -> Program:
    """Run a web server at each of these ports of a machine's loopback; the caller stops it."""
    folder = machine.folder / "site"
    folder.mkdir()
    (folder / "index.html").write_text(f"{GREETING}\n")
    program = Program(machine, sys.executable, "-c", _WEB_SERVER, str(folder), *map(str, ports))
    program.wait_for("here")
    return program


_WEB_SERVER: Final = """
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

handler = partial(SimpleHTTPRequestHandler, directory=sys.argv[1])
for port in sys.argv[2:]:
    Thread(target=ThreadingHTTPServer(("127.0.0.1", int(port)), handler).serve_forever).start()
print("here", flush=True)
"""
