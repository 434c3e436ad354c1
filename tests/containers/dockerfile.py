"""A Dockerfile done without an engine: each stage is a folder with a Debian in it, and what runs there is chrooted.

It knows the instructions that ours has, and stops at any other.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUN_TIMEOUT: Final = 600.0
"""Seconds for one RUN: packages come over a network."""

MAKE_DEVICES: Final = """\
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs shm "$root/dev/shm"
"""
"""Lines of a shell that give the folder `$root` a /dev with what every program may open."""

_ENTER: Final = f"""
set -e
root=$1 how=$2
shift 2
mount --bind "$root" "$root"
mount -o "remount,bind,$how" "$root"
mount -t proc proc "$root/proc"
{MAKE_DEVICES}while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"""


@attrs.define
class Image:
    """A root folder, and how what is in it is run."""

    root: Path
    environ: dict[str, str] = attrs.field(factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = attrs.field(factory=dict[str, str])
    user: str = "0:0"
    folder: str = "/"
    volumes: list[str] = attrs.field(factory=list[str])
    ports: list[str] = attrs.field(factory=list[str])
    entrypoint: list[str] = attrs.field(factory=list[str])
    command: list[str] = attrs.field(factory=list[str])
    health: list[str] = attrs.field(factory=list[str])


def command_line(
    image: Image,
    words: Sequence[str],
    *,
    environ: Mapping[str, str],
    binds: Mapping[Path, str],
    read_only: bool = True,
    user: str | None = None,
    inside: Sequence[str] = (),
) -> list[str]:
    """Return the command line that runs words in an image: as its user, without any capability, where only `binds` can be written to.

    It becomes the program itself, so a signal for it is one for the program. `inside` is what brings it into a network.
    """
    owner, _, group = (user or image.user).partition(":")
    mounts = [part for source, target in binds.items() for part in (str(source), target)]
    enter = ["sh", "-c", _ENTER, "sh", str(image.root), "ro" if read_only else "rw", *mounts, "--"]
    rights: list[str] = []
    if owner != "0":
        rights = ["setpriv", "--reuid", owner, "--regid", group or owner, "--clear-groups"]
        rights += ["--no-new-privs", "--bounding-set", "-all"]
    settings = [f"{name}={value}" for name, value in {**image.environ, **environ}.items()]
    where = ["-C", image.folder] if image.folder != "/" else []
    return [*inside, "unshare", "--mount", *enter, *rights, "env", "-i", *where, *settings, *words]


def make_debian(release: str, root: Path) -> Path:
    """Return a new folder with the smallest Debian of that release, from the mirror that debootstrap takes by itself. Blocks for a minute."""
    command = ["debootstrap", "--variant=minbase", release, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return root


def build(file: Path, bases: Mapping[str, Path], folder: Path) -> Image:
    """Return the image that a Dockerfile makes of the files beside it; its stages are made in `folder`. Blocks."""
    stages: dict[str, Image] = {}
    arguments: dict[str, str] = {}  # those before the first FROM
    image: Image | None = None
    for name, text in instructions(file.read_text(encoding="utf-8")):
        if name == "FROM":
            base, _, stage = _filled(text, arguments).partition(" AS ")
            image = begin(bases[base], folder / f"stage{len(stages)}")
            stages[stage or str(len(stages))] = image
        elif image is None:
            assert name == "ARG", name
            _argue(arguments, text)
        else:
            _do(image, name, text, file.parent, stages)
    assert image is not None
    return image


def begin(base: Path, root: Path) -> Image:
    """Return a new image with what is in a base. Blocks."""
    copy_tree(base, root)
    for own in ("resolv.conf", "hosts"):  # an engine brings its own
        shutil.copyfile(f"/etc/{own}", root / "etc" / own)
    return Image(root)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return what a Dockerfile says: the name and the rest of each instruction, on one line."""
    lines = [line for line in text.splitlines() if line.strip() and line.lstrip()[0] != "#"]
    whole = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in whole.splitlines()]
    return [(name, rest.strip()) for name, rest in found]


def _do(image: Image, name: str, text: str, context: Path, stages: Mapping[str, Image]) -> None:
    variables = {**image.arguments, **image.environ}
    match name:
        case "RUN":
            run_line(image, text)
        case "COPY":
            _copy(image, _filled(text, variables), context, stages)
        case "ARG":
            _argue(image.arguments, text)
        case "ENV":
            image.environ |= dict(
                word.split("=", 1) for word in shlex.split(_filled(text, variables))
            )
        case "WORKDIR":
            image.folder = text
            (image.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = text
        case "VOLUME":
            image.volumes.append(text)
        case "EXPOSE":
            image.ports += text.split()
        case "ENTRYPOINT":
            image.entrypoint = words_of(text)
        case "CMD":
            image.command = words_of(text)
        case "HEALTHCHECK":
            image.health = words_of(text.partition("CMD ")[2])
        case _:
            raise AssertionError(f"{name} is not known here yet")


def words_of(text: str) -> list[str]:
    """Return a command: a JSON list, or a line for a shell."""
    if text.startswith("["):
        words = json.loads(text)
        assert all(isinstance(word, str) for word in words), text
        return list(words)
    return ["/bin/sh", "-c", text]


def _argue(arguments: dict[str, str], text: str) -> None:
    name, _, default = text.partition("=")
    arguments[name] = default


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables[found[1]], text)


def run_line(image: Image, text: str) -> None:
    """Run a line of a shell as root; blocks. What this machine's pip is told goes along, and does not stay: it may be how packages are reached at all."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    if Path("/etc/pip.conf").exists():
        settings.setdefault("PIP_CONFIG_FILE", "/etc/pip.conf")
    lent = image.root / "lent"
    lent.mkdir()
    binds: dict[Path, str] = {}
    for name, value in settings.items():
        path = Path(value)
        if path.is_absolute() and path.exists():
            place = lent / name
            place.mkdir() if path.is_dir() else place.touch()
            settings[name] = binds[path] = f"/lent/{name}"
    command = command_line(
        image,
        ["/bin/sh", "-c", text],
        environ={**image.arguments, **settings, "DEBIAN_FRONTEND": "noninteractive"},
        binds=binds,
        read_only=False,
        user="0:0",
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT)
    shutil.rmtree(lent)
    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


def _copy(image: Image, text: str, context: Path, stages: Mapping[str, Image]) -> None:
    words = text.split()
    source_root = context
    if words[0].startswith("--from="):
        source_root = stages[words.pop(0).removeprefix("--from=")].root
    else:
        ignore = (context / ".dockerignore").read_text(encoding="utf-8").split()
        assert [f"!{source}" for source in words[:-1] if f"!{source}" not in ignore] == []
    *sources, target = words
    place = image.root / os.path.join(image.folder, target).lstrip("/")  # noqa: PTH118 - an absolute second part counts alone
    for source in sources:
        origin = source_root / source.lstrip("/")
        if origin.is_dir():
            copy_tree(origin, place)
        else:
            place.mkdir(parents=True, exist_ok=True) if target.endswith("/") else None
            shutil.copy2(origin, place)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder's content, with owners and links, as only `cp` can."""
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", str(target)], check=True, timeout=RUN_TIMEOUT)
