"""What a release is made of: both files are whole, and each works in an empty environment. docs/install.md, as far as it can be done today."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "trionat"
INSTALL = (ROOT / "docs/install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION_FILE = SOURCE / "version.py"
VERSION = str(runpy.run_path(str(VERSION_FILE))["VERSION"])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@attrs.frozen
class Distribution:
    wheel: Path
    sdist: Path


def run(words: Sequence[str | Path], **environ: str) -> str:
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """Those in the folder that `DIST` names, which are to be published; else new ones. The wheel is made out of the sdist, as an index's users may do it."""
    made = Path(os.environ.get("DIST") or tmp_path_factory.mktemp("dist"))
    if "DIST" not in os.environ:
        run([sys.executable, "-m", "build", "--outdir", made, ROOT])
    [wheel], [sdist] = made.glob("*.whl"), made.glob("*.tar.gz")
    return Distribution(wheel, sdist)


def empty_environment(folder: Path) -> Path:
    """Make an environment, and return the folder of its programs."""
    run([sys.executable, "-m", "venv", folder])
    return folder / ("Scripts" if os.name == "nt" else "bin")


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_installs_into_an_empty_environment(
    kind: str, distribution: Distribution, tmp_path: Path
) -> None:
    programs = empty_environment(tmp_path / "empty")
    run([programs / "pip", "install", "--quiet", getattr(distribution, kind)])
    assert "-> 200 OK" in run([programs / "trionat", "demo", "--check"])
    assert run([programs / "trionat", "--version"]) == f"trionat {VERSION}\n"
    run([programs / "pip", "check"])


def test_the_wheel_has_all_files_of_the_package(distribution: Distribution) -> None:
    own = {
        f"trionat/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(distribution.wheel) as packed:
        names = set(packed.namelist())
    about = f"trionat-{VERSION}.dist-info/"
    manual = f"trionat-{VERSION}.data/data/share/man/man1/trionat.1"
    assert {name for name in names if not name.startswith(about)} == {*own, manual}
    pages = "trionat/server/console/pages"
    for file in ("index.html", "languages/zh.js", "vendor/hashes", "vendor/preact.js"):
        assert f"{pages}/{file}" in own
    assert "trionat/py.typed" in own
    licences = {path.name for path in (SOURCE / "server/console/pages/vendor").glob("*.LICENSE")}
    assert len(licences) == 4
    told = {Path(name).name for name in names if name.startswith(f"{about}licenses/")}
    assert told == {"LICENSE", *licences}


def test_the_metadata(distribution: Distribution) -> None:
    with zipfile.ZipFile(distribution.wheel) as packed:
        about = f"trionat-{VERSION}.dist-info"
        told = Parser().parsestr(packed.read(f"{about}/METADATA").decode())
        programs = packed.read(f"{about}/entry_points.txt").decode()
    assert told["Version"] == VERSION
    assert told["License-Expression"] == "MIT AND Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    extras = {"cluster", "console", "names", "watch"}
    assert set(told.get_all("Provides-Extra") or []) == extras
    for extra in extras:
        assert f"| `{extra}` |" in INSTALL
    assert programs.split() == [
        *("[console_scripts]", "trionat", "=", "trionat.cli:main"),
        *("[pytest11]", "trionat", "=", "trionat.testing.plugin"),
    ]


def test_the_sdist_has_what_its_tests_need(distribution: Distribution) -> None:
    with tarfile.open(distribution.sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    for file in (
        *("Dockerfile", "compose.yml", "noxfile.py", "mkdocs.yml", "tools/site.py"),
        *("tests/conftest.py", "docs/install.md", "README.md", "README.zh-CN.md"),
    ):
        assert file in names
    assert not {
        name for name in names if "__pycache__" in name or name.startswith((".nox", "dist"))
    }


def test_the_version_stands_in_one_place() -> None:
    literal = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    found = [path for path in SOURCE.rglob("*.py") if literal.search(path.read_text("utf-8"))]
    assert found == [VERSION_FILE]
    assert "version" in PROJECT["dynamic"]


@pytest.mark.skipif(
    os.name == "nt" or not os.environ.get("ALL_WAYS"), reason="takes minutes: nox -s release"
)
@pytest.mark.timeout(900)
def test_the_page_as_far_as_it_can_be_done_today(tmp_path: Path) -> None:
    """Each way in a home folder of its own, with nothing but itself, pipx and uv on the path."""
    section = INSTALL.split("## From a checkout, today\n", 1)[1].split("\n## ", 1)[0]
    ways = re.findall(r"```sh\n(.+?)```", section, re.DOTALL)
    assert len(ways) == 4
    tools = empty_environment(tmp_path / "tools")
    run([tools / "pip", "install", "--quiet", "pipx", "uv"])
    base = Path(sys.base_prefix) / "bin"
    for number, way in enumerate(ways):
        home = tmp_path / f"home{number}"
        home.mkdir()
        path = f"{home}/.local/bin:{tools}:{base}:/usr/bin:/bin"
        told = run(
            ["sh", "-exc", way],
            HOME=str(home),
            PATH=path,
            UV_PYTHON_DOWNLOADS="never",
            XDG_DATA_HOME=f"{home}/.local/share",
        )
        assert "-> 200 OK" in told, way
