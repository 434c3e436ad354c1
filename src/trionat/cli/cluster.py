"""`trionat cluster`: several servers that work as one."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from trionat.cli.command_line import App
from trionat.cli.local_server import AsJson, ConfigFile, StateDir, told
from trionat.cli.output import say
from trionat.config.cluster import ClusterConfig
from trionat.config.load import Configuration, load
from trionat.errors import ConfigError, Problem, RegistryAwayError, StartupError

T = TypeVar("T")

cluster_app = App(help="Several servers that work as one.")


@cluster_app.command()
def init(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Make a new cluster: its key file, where there is none, and this server's key and certificate for all nodes, in Redis.

    Run again, it changes nothing.
    """
    with told():
        configuration, cluster = _find(config, state_dir)
        from trionat.server.cluster import membership, seal  # noqa: PLC0415 - after the library

        if seal.make_key_file(cluster.key_file):
            say(f"made the key of the cluster: {cluster.key_file}")
        key = seal.read_key_file(cluster.key_file)
        server = configuration.server
        names = tuple(dict.fromkeys((server.public_host or "localhost", "localhost")))
        found = partial(membership.found, cluster, key, server.effective_state_dir, names=names)
        made = _ask(found)
    say(
        f"Redis at {cluster.address} has the cluster {key.cluster_id}"
        + (", new." if made else " already.")
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
        say(f"  {node.name}  {node.address}  {beat}{figures}")


def _find(config: Path | None, state_dir: Path | None) -> tuple[Configuration, ClusterConfig]:
    flags = {"Server.StateDir": None if state_dir is None else str(state_dir)}
    configuration = load("server", file=config, flags=flags, environ=os.environ)
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
