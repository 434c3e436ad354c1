"""The checks of this project. `nox` runs what has to hold before every commit; `nox -l` lists all there is.

A quick round while developing: `nox -s tests-3.11 -- -m "not slow"` (arguments after `--` go to pytest).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = nox.project.python_versions(PYPROJECT)

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"


def find_interpreters() -> list[str]:
    """Return the supported Python versions that this machine has, and see to it that nox and uv find the same ones.

    An executable of that name is not enough: pyenv has one for every version that it knows, and most only tell what to
    install. Nothing is ever downloaded.
    """
    os.environ["UV_PYTHON_DOWNLOADS"] = "never"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(pyenv.glob("versions/*/bin"), reverse=True)
    found = []
    for version in SUPPORTED:
        if works(f"python{version}", version):
            found.append(version)
            continue
        for folder in installed:
            if works(str(folder / f"python{version}"), version):
                os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
                found.append(version)
                break
    if not found:
        raise SystemExit(
            f"No Python of {', '.join(SUPPORTED)} is installed here: install one of them."
        )
    return found


def works(program: str, version: str) -> bool:
    if shutil.which(program) is None:
        return False
    command = [program, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() == version


TELLING = ("first_steps", "examples", "trust")
"""The end-to-end tests in which another Python could make a difference: they install, check certificates and run the examples."""

LONG = ("_pages.py", "_cluster_page.py", "_distribution.py", "_behind_proxies.py", "_service.py")
"""The end-to-end tests that begin first: those of a file run one after another, and who came to them late would be waited for in the end."""

SUITE = (
    "tests",
    *(f"--ignore=tests/{folder}" for folder in ("containers", "faults", "load", "soak")),
)
"""What `minimums` and `coverage` run."""

INTERPRETERS = find_interpreters()
MISSING = [version for version in SUPPORTED if version not in INTERPRETERS]
ENDS = list(dict.fromkeys((INTERPRETERS[0], INTERPRETERS[-1])))
"""The oldest and the newest: what passes on both passes between. `nox -s tests` runs all."""

nox.options.sessions = ["lint", "typing", *(f"tests-{version}" for version in ENDS), "demo", "docs"]


def install(session: nox.Session, *groups: str) -> None:
    """Install trionat as a user would, never the source folder, and the tools of some dependency groups."""
    # As pip does it for a user: what compiles at its start holds a MiB more, and its first visitors wait half a round trip longer.
    environ = {"UV_COMPILE_BYTECODE": "1"}
    session.install(".", *nox.project.dependency_groups(PYPROJECT, *groups), env=environ)


def results(session: nox.Session, part: str = "") -> str:
    """Return the option that has pytest write its totals to `.nox/.cache/results-<session><part>.xml`."""
    return f"--junit-xml={session.cache_dir / f'results-{session.name}{part}.xml'}"


@nox.session(python=INTERPRETERS)
def tests(session: nox.Session) -> None:
    """Run all tests but `failover`, `faults` and `load` on the oldest interpreter, on all those in which it could make a difference: without processes, and on the newest the most telling ones with them.

    Three or four at a time, since most of them wait now and then, and two processors are to be busy.
    """
    if MISSING:
        session.warn(f"not tested, for want of the interpreter: Python {', '.join(MISSING)}")
    install(session, "test")
    if session.posargs:
        session.run("pytest", results(session), *session.posargs)
        return
    left_out = ["browser", "containers", "e2e", "failover", "faults", "load", "soak"]
    if session.python != INTERPRETERS[0]:
        # They mostly wait: for Redis, MariaDB, an authority, for guesses to be punished, on any Python alike.
        left_out += ["certificates", "cluster", "console", "registry", "unit/test_store_mysql.py"]
        # They read the sources, or pages, and say the same on each.
        left_out += [file.name for file in Path("tests").glob("test_*.py")]
        pages = ("docs", "docs_commands", "docs_in_chinese", "troubleshooting", "bench", "cost")
        left_out += [f"unit/test_{name}.py" for name in pages]
    apart = [f"--ignore=tests/{folder}" for folder in left_out]
    several_at_a_time(session, "-inside", "-n3", "--dist=worksteal", *apart)
    # File by file: many share the processes that a file starts.
    if session.python == INTERPRETERS[0]:
        end_to_end = [str(file) for file in sorted(Path("tests/e2e").glob("test_*.py"))]
        end_to_end.sort(key=lambda file: not file.endswith(LONG))
        in_order = ["--dist=loadfile", "--no-loadscope-reorder"]
        several_at_a_time(session, "-outside", "-n4", *in_order, "tests/browser", *end_to_end)
    elif session.python == INTERPRETERS[-1]:
        telling = [f"tests/e2e/test_{name}.py" for name in TELLING]
        several_at_a_time(session, "-outside", "-n3", "--dist=loadfile", "-m", "not slow", *telling)


def several_at_a_time(session: nox.Session, part: str, number: str, *arguments: str) -> None:
    """Run these tests, and those that fail once more, alone: what passes then has a race, in itself or in trionat, which `.ci/run` names. The run has failed in either case."""
    try:
        session.run("pytest", results(session, part), number, *arguments)
    except nox.command.CommandFailed:
        session.warn("what failed is run once more, alone, to tell a race from other faults")
        left = [each for each in arguments if not each.startswith(("--dist", "--no-loadscope"))]
        session.run(
            *("pytest", results(session, f"{part}-again"), "-x", "--last-failed"),
            *("--last-failed-no-failures=none", *left),
            success_codes=range(256),
        )
        raise


@nox.session(python=INTERPRETERS[0])
def minimums(session: nox.Session) -> None:
    """Run the tests with the oldest release of every direct dependency that pyproject.toml allows."""
    session.install("uv")
    # Acme's newest pyOpenSSL would bring a newer cryptography than ours has to be.
    packages = [".", "pyopenssl>=25", *nox.project.dependency_groups(PYPROJECT, "test")]
    session.run("uv", "pip", "install", "--upgrade", "--resolution=lowest-direct", *packages)
    session.run("pytest", results(session), *(session.posargs or SUITE))


@nox.session(python=INTERPRETERS[0])
def lint(session: nox.Session) -> None:
    """Check style, the rules of structured concurrency that ruff does not know, and spelling."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run(*FLAKE8, f"--disable={LEFT_OUT}", "src", "examples", "bench", "tools")
    session.run("codespell")


FLAKE8 = ("flake8", "--isolated", "--select=ASYNC")
LEFT_OUT = "ASYNC114,ASYNC300,ASYNC910,ASYNC911"
"""What flake8-async need not look for: it reads a file anew for each of some rules, up to half a second of processor. 910 and 911 (a checkpoint on every path) are for libraries; 114 does not apply; ruff knows 300 (as RUF006) and 100."""


@nox.session(name="lint-tests", python=INTERPRETERS[0])
def lint_tests(session: nox.Session) -> None:
    """Check the rules of structured concurrency that ruff does not know in the tests as well; more than two minutes of processor, so not by default.

    Hooks of other libraries have to be asynchronous (124), and loops end with the test's own deadline (912, 913).
    """
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    disabled = f"--disable={LEFT_OUT},ASYNC100,ASYNC124,ASYNC912,ASYNC913"
    session.run(*FLAKE8, disabled, "tests")


NOT_THERE = ("transport/readiness.py", "server/workers/", "server/upgrade/", "cli/screen/")
"""What is not looked at when types are checked as if this were macOS or Windows: epoll, several processes, an upgrade, the screen, for which docs/platforms.md has the other way."""


@nox.session(python=INTERPRETERS[0])
def typing(session: nox.Session) -> None:
    """Check types with mypy, and with pyright, which disagrees now and then; then as if this were another system, so that a call is found which that has not."""
    install(session, "typing", "test", "bench")
    session.install("nox")
    # pyright is a program for Node.js: without one on this machine it wants to download it.
    try:
        session.run("pyright", "--version", silent=True)
    except nox.command.CommandFailed:
        session.warn(
            "pyright is left out: it needs Node.js, which is not here and could not be downloaded"
        )
        session.run("mypy")
        return
    commands = [["pyright"], ["mypy"]]
    folder = Path(session.create_tmp())
    sources = os.path.relpath("src", folder)  # pyright takes no others
    for system in ("Darwin", "Windows"):
        told = {
            "include": [sources],
            "extraPaths": [sources],
            "ignore": [f"{sources}/trionat/{name}" for name in NOT_THERE],
            "typeCheckingMode": "standard",
            "pythonPlatform": system,
        }
        file = folder / f"{system}.json"
        file.write_text(json.dumps(told))
        commands.append(["pyright", f"--project={file}", f"--pythonpath={session.bin}/python"])
    # Two at a time: each keeps little more than one processor busy.
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(session.run, *command) for command in commands]:
            done.result()


@nox.session(python=INTERPRETERS[0])
def demo(session: nox.Session) -> None:
    """Install trionat into an empty environment, and have it show that a tunnel works."""
    session.install(".")
    session.run("trionat", "demo", "--check")


@nox.session(python=INTERPRETERS[0])
def containers(session: nox.Session) -> None:
    """Build the image, and follow docs/containers.md and docs/service.md, without an engine: in folders with a Debian from debootstrap. Linux, as root."""
    install(session, "test")
    session.run(
        "pytest",
        results(session),
        *("-s", "-o", "faulthandler_timeout=600"),  # a Debian takes a minute
        *(session.posargs or ["tests/containers"]),
        env={"CONTAINERS": "1"},
    )


@nox.session(python=INTERPRETERS[0])
def release(session: nox.Session) -> None:
    """Build what a release is made of, into dist/, and try each file in an empty environment, and each way of docs/install.md; `nox -s release -- 1.2.3` checks first that all is ready for that number."""
    if session.posargs and (faults := missing_for_release(*session.posargs)):
        session.error("\n".join(faults))
    install(session, "test")
    session.run("pytest", "-q", "tests/unit/test_docs.py", "-k", "versions")
    session.install("twine")
    made = Path("dist")
    shutil.rmtree(made, ignore_errors=True)
    session.run("python", "-m", "build", f"--outdir={made}")
    session.run("twine", "check", "--strict", *map(str, made.iterdir()))
    session.run(
        *("pytest", results(session), "-o", "faulthandler_timeout=600"),
        "tests/e2e/test_distribution.py",
        env={"ALL_WAYS": "1", "DIST": str(made.resolve())},
    )


VERSION_FILE = "src/trionat/version.py"


def missing_for_release(wanted: str) -> list[str]:
    """Return what is not as docs/releasing.md wants it."""
    version = runpy.run_path(VERSION_FILE)["VERSION"]
    faults = []
    if wanted != version:
        faults.append(f"{VERSION_FILE}: has version {version}, and the tag is for {wanted}")
    changes = Path("CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        faults.append(f"CHANGELOG.md: has no heading [{version}] with its day")
    if "urls" not in PYPROJECT["project"]:
        faults.append("pyproject.toml: has no [project.urls]")
    return faults


@nox.session(python=INTERPRETERS[0])
def docs(session: nox.Session) -> None:
    """Build the site of all pages into site/, where every warning is an error; `nox -s docs -- serve` shows it while it is written."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "docs"))
    environ = {"NO_MKDOCS_2_WARNING": "1"}
    if session.posargs:
        session.run("mkdocs", *session.posargs, env=environ)
        return
    session.run("mkdocs", "build", "--strict", env=environ)


@nox.session(python=INTERPRETERS[0])
def bench(session: nox.Session) -> None:
    """Measure trionat beside other programs and write docs/benchmarks.md, then names beside ports and nginx; `nox -s bench -- --quick` shows that all of the first works."""
    install(session, "bench", "test")
    session.run("python", "-m", "bench", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "bench.names")


@nox.session(python=INTERPRETERS[0])
def scale(session: nox.Session) -> None:
    """Measure how far one Redis goes for a cluster: thousands of nodes, a million leases; `nox -s scale -- --quick` shows that it works."""
    install(session, "test")
    large = [
        "--nodes=4000",
        "--leases=1000000",
        "--claims=5000",
        "--subscribers=500",
        "--held=10000",
    ]
    session.run("python", "-m", "bench.scale", *(session.posargs or large))


@nox.session(python=INTERPRETERS[0])
def coverage(session: nox.Session) -> None:
    """Measure which lines and branches the tests reach, also in the processes that they start."""
    install(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or SUITE))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=INTERPRETERS[0])
def fuzz(session: nox.Session) -> None:
    """Look for input that breaks a decoder, a tunnel or a session: `nox -s fuzz -- --minutes 30`; 5 minutes unless told."""
    install(session, "test", "fuzz")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session(python=INTERPRETERS[0])
def soak(session: nox.Session) -> None:
    """Let visitors come and go and cut sessions at random: `nox -s soak -- --minutes 20`; 5 minutes and 1,000 visitors unless told."""
    install(session, "test")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(python=INTERPRETERS[0])
def faults(session: nox.Session) -> None:
    """Take networks, processes, descriptors and disks away, for minutes. Linux; docs/reliability.md has what can be set."""
    install(session, "test")
    session.run(
        "pytest",
        results(session),
        *(session.posargs or ["tests/faults"]),
        env={"ALL_FAULTS": "1"},
    )


@nox.session(python=INTERPRETERS[0])
def failover(session: nox.Session) -> None:
    """Kill, freeze, drain, cut off and upgrade workers, nodes and servers while visitors come and go; a quarter of an hour. docs/reliability.md."""
    install(session, "test")
    if session.posargs:
        session.run("pytest", results(session), *session.posargs)
        return
    several_at_a_time(session, "", "-n3", "--dist=loadfile", "tests/failover", "tests/soak")


@nox.session(python=INTERPRETERS[0])
def load(session: nox.Session) -> None:
    """Bring thousands of visitors and hundreds of clients to one server, and print what that takes. Linux; docs/reliability.md."""
    install(session, "test")
    patience = "faulthandler_timeout=180"  # idle tunnels take a minute to go home
    session.run(
        "pytest",
        results(session),
        *("-s", "-o", patience),
        *(session.posargs or ["tests/load"]),
        env={"ALL_LOAD": "1"},
    )


PAGES = Path("src/trionat/server/console/pages")
VENDOR = PAGES / "vendor"
VENDORED = {
    "preact@11.2.0": {
        "dist/preact.mjs": "preact.js",
        "hooks/dist/hooks.mjs": "preact-hooks.js",
        "LICENSE": "preact.LICENSE",
    },
    "htm@3.1.1": {"dist/htm.mjs": "htm.js", "LICENSE": "htm.LICENSE"},
    "uplot@1.6.32": {
        "dist/uPlot.esm.js": "uplot.js",
        "dist/uPlot.min.css": "uplot.css",
        "LICENSE": "uplot.LICENSE",
    },
    "lean-qr@2.7.4": {"index.mjs": "lean-qr.js", "LICENSE": "lean-qr.LICENSE"},
}
"""What the console's pages use of others: the package at its version, and which of its files are kept under which names."""

# A bare name needs an import map, and a strict Content-Security-Policy lets none in.
BARE_IMPORT = (b'from"preact"', b'from"./preact.js"')


@nox.session(python=False)
def vendor(session: nox.Session) -> None:
    """Fetch what the console's pages use of others anew, and check it against vendor/hashes; `nox -s vendor -- --accept` after another version was chosen here.

    Needs npm, which is asked for packages only: nothing of theirs is run.
    """
    folder = Path(session.create_tmp())
    hashes = []
    for package, files in VENDORED.items():
        said = session.run(
            *("npm", "pack", "--silent", f"--pack-destination={folder}", package),
            external=True,
            silent=True,
        )
        with tarfile.open(folder / str(said).split()[-1]) as packed:
            for source, target in files.items():
                found = packed.extractfile(f"package/{source}")
                if found is None:
                    session.error(f"{package} has no file {source}")
                content = found.read()
                if target.endswith(".js"):
                    content = content.replace(*BARE_IMPORT)
                    # A map of the source is not kept, and a browser with its tools open would ask for it.
                    content = b"\n".join(
                        line for line in content.split(b"\n") if not line.startswith(b"//# source")
                    )
                (VENDOR / target).write_bytes(content)
                hashes.append(f"{hashlib.sha256(content).hexdigest()}  {target}\n")
    text = "".join(sorted(hashes, key=lambda line: line.split()[1]))
    if "--accept" in session.posargs:
        (VENDOR / "hashes").write_text(text)
    elif text != (VENDOR / "hashes").read_text():
        session.error(
            f"{VENDOR}/hashes: what came is not what is written there: look at `git diff`, then `nox -s vendor -- --accept`"
        )
