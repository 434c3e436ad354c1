"""`docker compose` without an engine: what `compose.yml` says is run on machines that have a network each, in the image of `dockerfile.py`.

It takes the command lines of docs/containers.md. What is in an image of somebody else's (Redis, MariaDB) is the program of this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import attrs
import yaml

from tests.containers.dockerfile import Image, command_line, words_of
from tests.mariadb import running as running_mariadb
from tests.redis_server import running_redis

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.machines import Machine, Site

_KNOWN: Final = {
    *("build", "image", "profiles", "command", "entrypoint", "environment", "volumes", "ports"),
    *("healthcheck", "read_only", "cap_drop", "security_opt", "restart", "stop_grace_period"),
}
"""Keys of a service. Any other is one that these tests would say nothing about."""

_HARDENED: Final = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}
"""What every container of ours has: it is how `command_line` runs them."""


@attrs.define(eq=False)
class Compose:
    """The services of a file. `exports` is the shell's environment; whoever makes it calls `down` in the end."""

    text: str
    image: Image
    site: Site
    folder: Path
    exports: dict[str, str] = attrs.field(factory=dict[str, str])
    up: dict[str, subprocess.Popen[bytes]] = attrs.field(
        factory=dict[str, "subprocess.Popen[bytes]"]
    )
    closing: ExitStack = attrs.field(factory=ExitStack)

    def services(self) -> dict[str, dict[str, Any]]:
        """Return the services, with the variables of the shell filled in."""
        content = yaml.safe_load(self.text)
        found: dict[str, dict[str, Any]] = self._filled(content["services"])
        for name, service in found.items():
            assert service.keys() <= _KNOWN, name
            volumes = [text.partition(":")[0] for text in service.get("volumes", [])]
            assert set(volumes) <= content["volumes"].keys(), name
            if "build" in service:
                assert {key: service[key] for key in _HARDENED} == _HARDENED, name
        return found

    def run(self, line: str) -> str:
        """Do one line of a shell, as far as it is of these pages; return what it prints."""
        words = shlex.split(line)
        if words[0] == "export":
            self.exports |= dict(word.split("=", 1) for word in words[1:])
            return ""
        given = b""
        if words[0] == "echo":
            given = f"{words[1]}\n".encode()
            words = words[3:]
        assert words[:2] == ["docker", "compose"], line
        match words[2:]:
            case ["--profile", profile, "up", "-d", *names]:
                self._bring_up(profile, names)
                return ""
            case ["run", "--rm", *rest]:
                name, *command = [word for word in rest if word != "-T"]
                return self._once(name, [*self._entrypoint(name), *command], given)
            case ["exec", name, *command]:
                assert self.up[name].poll() is None, self.log(name)
                return self._once(name, command, given)
            case ["logs", name]:
                return self.log(name)
        raise AssertionError(f"unknown here: {line}")

    def is_healthy(self, name: str) -> bool:
        """Ask as an engine does."""
        assert not self.services()[name].get("healthcheck", {}).get("disable")
        return subprocess.run(self._words(name, self.image.health), check=False).returncode == 0

    def log(self, name: str) -> str:
        """Return what a service has printed."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def stop(self, name: str) -> int:
        """Stop a service, and return its exit code."""
        process = self.up.pop(name)
        process.terminate()
        return process.wait(60)

    def down(self) -> None:
        """End everything."""
        for process in self.up.values():
            process.kill()
            process.wait(10)
        self.up.clear()
        self.closing.close()

    def _bring_up(self, profile: str, names: list[str]) -> None:
        for name, service in self.services().items():
            if (names and name not in names) or profile not in service["profiles"]:
                continue
            if name in self.up:
                continue
            if service["image"] != "trionat":
                self._stand_in(name, service)
                continue
            command = service.get("command", self.image.command)
            with (self.folder / f"{name}.log").open("wb") as log:
                words = self._words(name, [*self._entrypoint(name), *command])
                self.up[name] = subprocess.Popen(words, stdout=log, stderr=log)

    def _stand_in(self, name: str, service: dict[str, Any]) -> None:
        machine = self.site[name]
        if f"{name}.up" in self.exports:
            return
        self.exports[f"{name}.up"] = "yes"
        if service["image"].startswith("redis:"):
            password = service["command"][service["command"].index("--requirepass") + 1]
            self.closing.enter_context(
                running_redis(password, host=machine.address, port=6379, inside=machine.inside)
            )
            return
        told = service["environment"]
        server = self.closing.enter_context(
            running_mariadb(machine.address, 3306, inside=machine.inside)
        )
        database, user = told["MARIADB_DATABASE"], told["MARIADB_USER"]
        server.sql(
            f"create database {database};"
            f"create or replace user {user}@'%' identified by '{told['MARIADB_PASSWORD']}';"
            f"grant all on {database}.* to {user}@'%'"
        )

    def _once(self, name: str, command: list[str], given: bytes) -> str:
        done = subprocess.run(
            self._words(name, command), input=given, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{name}: {command}\n{(done.stdout + done.stderr).decode()}"
        return done.stdout.decode()

    def _entrypoint(self, name: str) -> list[str]:
        given = self.services()[name].get("entrypoint", self.image.entrypoint)
        return list(given) if isinstance(given, list) else words_of(given)

    def _words(self, name: str, words: list[str]) -> list[str]:
        service, machine = self.services()[name], self.site[name]
        binds = {machine.hosts: "/etc/hosts"}
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            binds[self._volume(source)] = target
        return command_line(
            self.image,
            words,
            environ=service.get("environment", {}),
            binds=binds,
            read_only=service["read_only"],
            inside=machine.network.inside,
        )

    def _volume(self, name: str) -> Path:
        """Return a volume's folder; a new one belongs to whoever its place in the image belongs to."""
        volume = self.folder / "volumes" / name
        if not volume.exists():
            volume.mkdir(parents=True)
            owner, _, group = self.image.user.partition(":")
            os.chown(volume, int(owner), int(group))
            volume.chmod(0o700)
        return volume

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        if isinstance(value, str):
            return re.sub(
                r"\$\{(\w+):-([^}]*)\}", lambda found: self.exports.get(found[1]) or found[2], value
            )
        return value


def name_all(site: Site, public: dict[str, tuple[str, ...]]) -> None:
    """Have each machine know the others by their names, as an engine does, and `public` names besides."""
    names = {machine.name: (machine.address,) for machine in machines(site)}
    for machine in machines(site):
        machine.name_hosts({**names, **public})


def machines(site: Site) -> list[Machine]:
    """Return all of them."""
    return list(site.machines.values())
