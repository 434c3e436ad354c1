"""`trionat cluster`: several servers that work as one."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar

import attrs
import trio
import typer

from trionat.cli.command_line import App
from trionat.cli.local_server import FOLDER, AsJson, ConfigFile, State, StateDir, told
from trionat.cli.output import say
from trionat.cli.target import TARGET
from trionat.config.cluster import ClusterConfig
from trionat.config.load import Configuration, load
from trionat.config.values import PORTS
from trionat.errors import ConfigError, Problem, RegistryAwayError, StartupError
from trionat.fingerprint import format_fingerprint
from trionat.log import escape
from trionat.server.admin.messages import AskWhere, Holding, Whereabouts
from trionat.server.state_folder import prepare_state
from trionat.store.private_file import is_there

T = TypeVar("T")

_NEEDS: Final = (
    *("Cluster", "Server.StateDir"),
    *("Server.PublicAddr", "Server.Certificate"),  # what the key is for that init makes
)
"""What these commands need of the configuration."""

cluster_app = App(help="Several servers that work as one.")


@cluster_app.command()
def init(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Make a new cluster: its key file, where there is none, and this server's key and certificate for all nodes, in Redis.

    Run again, it changes nothing.
    """
    with told():
        configuration, cluster = _find(config, state_dir)
        from trionat.server.cluster import membership, seal  # noqa: PLC0415 - after the library

        if not is_there(cluster.key_file):
            _ask(partial(membership.refuse_foreign, cluster))
        if seal.make_key_file(cluster.key_file):
            say(f"made the key of the cluster: {cluster.key_file}")
        key = seal.read_key_file(cluster.key_file)
        server = configuration.server
        folder = server.effective_state_dir
        names = tuple(dict.fromkeys((server.public_host or "localhost", "localhost")))
        founding = _ask(partial(membership.found, cluster, key, folder, names=names))
        shown = prepare_state(folder, names=names).fingerprint
    where_from = {
        membership.ServerKey.KEPT: "has the server's key, which was there before",
        membership.ServerKey.MADE: "had no key of a server: it has a NEW one",
        membership.ServerKey.TAKEN: "has the cluster's key now, out of Redis",
    }
    say(f"the state folder {folder} {where_from[founding.key]}")
    if founding.key is membership.ServerKey.MADE:
        say(
            "If a server has run here before, that was with another folder, and its clients will refuse this key: empty Redis, remove"
            f" {cluster.key_file}, and run this again with that server's --state-dir."
        )
    if server.certificate is None:  # else clients see that one
        say(f"fingerprint {format_fingerprint(shown)}")
    say(
        f"Redis at {cluster.address} has the cluster {key.cluster_id}"
        + (", new." if founding.is_new else " already.")
    )
    say(f"Copy {cluster.key_file} to every other node, over a safe way.")


@cluster_app.command()
def join(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Take the cluster's key, certificate and ticket key into this server's state folder; those of before are kept beside them.

    A server with an empty folder needs none of this: it takes them when it starts. The server must not be running.
    """
    with told():
        configuration, cluster = _find(config, state_dir)
        from trionat.server.cluster import membership, seal  # noqa: PLC0415 - the same
        from trionat.server.state_folder import lock_state  # noqa: PLC0415 - the same

        key = seal.read_key_file(cluster.key_file)
        folder = configuration.server.effective_state_dir
        with lock_state(folder):
            _ask(partial(membership.join, cluster, key, folder, replace=True))
    say(f"{folder} is that of a node of the cluster {key.cluster_id} now.")


@cluster_app.command()
def status(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the nodes that are there, as Redis knows them. No server has to run here."""
    with told():
        _, cluster = _find(config, None)
        from trionat.server.cluster import membership, seal  # noqa: PLC0415 - the same

        key = seal.read_key_file(cluster.key_file)
        nodes = _ask(partial(membership.look_at_nodes, cluster, key))
    if as_json:
        say(
            json.dumps({"cluster": key.cluster_id, "nodes": [attrs.asdict(each) for each in nodes]})
        )
        return
    say(f"cluster {key.cluster_id}, Redis at {cluster.address}, nodes: {len(nodes)}")
    for node in nodes:
        beat = "no beat" if node.silent is None else f"beat {node.silent:g} s ago"
        figures = (
            ""
            if node.sessions is None
            else f", sessions: {node.sessions}, visitors: {node.visitors}"
        )
        drained = ", is drained" if node.drained else ""
        say(f"  {node.name}  {node.address}  {beat}{figures}{drained}")


@cluster_app.command()
def where(
    user: Annotated[str, typer.Argument(metavar="USER", help="A user's name.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show at which nodes a user's clients are, and with which ports and names, as the server knows it that runs here, or that --server names."""
    with told():
        state = State.find(state_dir, config, needs=FOLDER)
        values = state.ask_server(AskWhere(user))
        found = Whereabouts.of(values)
        if found.node is None:
            raise StartupError(
                f"{state.place}: this server is no node of a cluster: trionat status shows its sessions"
            )
        if as_json:
            say(json.dumps(values))
            return
        if found.away is not None:
            say(escape(f"{found.node} may know old things only: Redis is away: {found.away}"))
        if not found.holdings:
            raise ConfigError(Problem("USER", f"no client of a user {user!r} is known at any node"))
    for holding in found.holdings:
        say(f"{holding.node}  {_held(holding)}")
    if found.more:
        say(f"… and {found.more} more")


def _held(holding: Holding) -> str:
    ports = PORTS.write(sorted(each for each in holding.points if isinstance(each, int)))
    names = (each for each in holding.points if isinstance(each, str))
    text = escape(", ".join(filter(None, [ports, *names])))
    return f"{text} (a group)" if holding.is_group else text or "a client of a group"


def _find(config: Path | None, state_dir: Path | None) -> tuple[Configuration, ClusterConfig]:
    if TARGET.get() is not None:
        raise ConfigError(Problem("--server", "of these commands only cluster where goes with it"))
    flags = {"Server.StateDir": None if state_dir is None else str(state_dir)}
    configuration = load("server", file=config, flags=flags, environ=os.environ, needs=_NEEDS)
    if configuration.cluster is None:
        reason = "there is no cluster here: add the section to server.yml (docs/cluster.md)"
        raise ConfigError(Problem("configuration", reason, "Cluster"))
    from trionat.server.cluster.redis_link import require_library  # noqa: PLC0415 - memory

    require_library()
    return configuration, configuration.cluster


def _ask(question: Callable[[], Awaitable[T]]) -> T:
    try:
        return trio.run(question)
    except RegistryAwayError as error:
        raise StartupError(str(error)) from error
