"""The metrics: what each is called, what it means, and where its value comes from. The table in docs/metrics.md has the same names."""

from __future__ import annotations

from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import attrs
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from trionat.server.cluster.scripts import DEAD_AFTER
from trionat.server.refusals import Bound
from trionat.server.tally import DONE, FAILED, MOST_SHOWN, OTHERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from trionat.server.admin.readings import Readings
    from trionat.server.admin.snapshot import ClusterView
    from trionat.server.tally import HistogramFigures, SumFigures

_DIRECTIONS: Final = ("received", "sent")
_STATUSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
_CERTIFICATE_STATES: Final = (
    "valid",
    "late",
    "expired",
    "missing",
    "ordering",
    "own",
)
_WORKER_STATES: Final = ("starting", "up", "away")
_NODE_STATES: Final = ("up", "silent", "drained")


@attrs.frozen(eq=False, kw_only=True)
class ServerCollector(Collector):
    """Makes metrics of readings. `certificate_ends` is when that of the control port does, in seconds since 1970, where it is the operator's.

    Blocks: it reads what the kernel tells of processes.
    """

    readings: Readings
    store_is_up: bool
    certificate_ends: float | None = None

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        readings = self.readings
        yield InfoMetricFamily(
            "trionat_build",
            "Which trionat this is.",
            value={"version": readings.server.version},
        )
        yield from self._clients()
        yield from self._visitors()
        yield from self._traffic()
        if readings.has_names:
            yield from self._names()
        yield from self._health()
        if readings.cluster is not None:
            yield from _cluster(readings.cluster)
        if readings.workers:
            yield from self._workers()
        yield from ProcessCollector(registry=None).collect()

    def _clients(self) -> Iterator[Metric]:
        readings, server, present = self.readings, self.readings.server, self.readings.present
        yield _gauge("trionat_sessions", "Clients that are connected.", present.sessions)
        yield _gauge(
            "trionat_session_slots", "Clients that may be connected at once.", server.session_limit
        )
        yield _counter(
            "trionat_sessions_started",
            "Sessions of clients that have begun; one that comes back counts again.",
            readings.sessions,
        )
        yield _gauge("trionat_queued_clients", "Clients in the queue.", present.queued)
        yield _gauge(
            "trionat_queue_places", "Clients that may be in the queue.", server.queue_places
        )
        yield _gauge(
            "trionat_reserved_leases",
            "Lost clients whose ports and names are kept for them.",
            present.reserved,
        )
        yield _gauges(
            "trionat_visit_ports",
            "Visit ports.",
            "state",
            {"free": server.ports_free or 0, "held": server.ports_held or 0},
        )
        yield _gauges(
            "trionat_tunnels",
            "Tunnels of all clients: idle ones wait for a visitor.",
            "state",
            {"idle": present.idle, "busy": present.busy},
        )
        yield _gauge(
            "trionat_handshakes_pending",
            "Connections to the control and tunnel ports that have not said yet who they are.",
            present.handshakes,
        )
        yield _counters(
            "trionat_handshakes",
            "Connections to the control and tunnel ports, by whether they have said who they are.",
            "result",
            {result: readings.handshakes.get(result, 0) for result in (DONE, FAILED)},
        )
        yield _gauge(
            "trionat_draining",
            "1 while clients are sent to other servers, or the server stops.",
            int(server.stopping or server.drained),
        )

    def _visitors(self) -> Iterator[Metric]:
        readings, present = self.readings, self.readings.present
        yield _gauges(
            "trionat_visitors",
            "Visitors that are here: served by a tunnel, or waiting for one.",
            "state",
            {"served": present.served, "waiting": present.waiting},
        )
        yield _histogram(
            "trionat_time_to_first_byte_seconds",
            "From the arrival of a visitor to the first byte of its answer.",
            readings.first_byte,
        )
        yield _histogram(
            "trionat_visitor_duration_seconds",
            "From the arrival of a visitor until it has left; counts those that have left.",
            readings.visitor_duration,
        )
        yield _counters(
            "trionat_refusals",
            "Visitors and connections that were refused, by the bound that did it.",
            "reason",
            {bound.value: readings.refused.get(bound.value, 0) for bound in Bound},
        )
        yield _gauge("trionat_banned_networks", "Addresses that are banned.", readings.banned)

    def _traffic(self) -> Iterator[Metric]:
        traffic = self.readings.traffic
        yield _counters(
            "trionat_relayed_bytes",
            "Bytes that visitors have sent (received) and got (sent), of all users together.",
            "direction",
            dict(zip(_DIRECTIONS, traffic.total, strict=True)),
        )
        yield _sums(
            "trionat_user_relayed_bytes",
            f"The same by user: the {MOST_SHOWN} with the most; what the others had while they were not among them is one figure.",
            ("user", "direction"),
            _DIRECTIONS,
            traffic,
        )
        used = GaugeMetricFamily(
            "trionat_user_quota_used_bytes",
            f"What connected users have used of their quota this month: the {MOST_SHOWN} who are nearest to its end.",
            labels=["user"],
        )
        quota = GaugeMetricFamily(
            "trionat_user_quota_bytes", "The monthly quota of the same users.", labels=["user"]
        )
        nearest = sorted(self.readings.quotas.items(), key=lambda each: -_part(*each[1]))
        for user, (bytes_used, most) in nearest[:MOST_SHOWN]:
            used.add_metric([user], bytes_used)
            quota.add_metric([user], most)
        yield used
        yield quota

    def _names(self) -> Iterator[Metric]:
        readings = self.readings
        yield _sums(
            "trionat_http_requests",
            f"Requests to names by the class of the answer's status: the {MOST_SHOWN} names with the most; the others, and requests for names that nobody has, are one figure.",
            ("name", "status"),
            _STATUSES,
            readings.requests,
        )
        yield _histogram(
            "trionat_http_request_duration_seconds",
            "How long services have taken to answer requests to names.",
            readings.request_duration,
        )
        states = {str(state): 0 for state in _CERTIFICATE_STATES}
        for certificate in readings.certificates:
            states[certificate.state] = states.get(certificate.state, 0) + 1
        yield _gauges(
            "trionat_certificates", "Certificates of names that are in use.", "state", states
        )
        ends = sorted(
            (datetime.fromisoformat(certificate.ends).timestamp(), certificate.name)
            for certificate in readings.certificates
            if certificate.ends is not None
        )
        yield _gauges(
            "trionat_certificate_expiry_timestamp_seconds",
            f"When the certificate of a name ends: the {MOST_SHOWN} that end first.",
            "name",
            {name: end for end, name in ends[:MOST_SHOWN]},
        )

    def _health(self) -> Iterator[Metric]:
        yield _gauge(
            "trionat_store_up",
            "1 while the store of users and traffic answers.",
            int(self.store_is_up),
        )
        yield _histogram(
            "trionat_event_loop_lag_seconds",
            "How late the event loop was, looked at twice a second in each process.",
            self.readings.loop_lag,
        )
        if self.certificate_ends is not None:
            yield _gauge(
                "trionat_server_certificate_expiry_timestamp_seconds",
                "When the certificate of the control port ends (Server.Certificate).",
                self.certificate_ends,
            )

    def _workers(self) -> Iterator[Metric]:
        workers = self.readings.workers
        states = {str(state): 0 for state in _WORKER_STATES}
        for worker in workers:
            states[worker.state] += 1
        yield _gauges("trionat_workers", "Worker processes.", "state", states)
        yield _counters(
            "trionat_worker_restarts",
            "Worker processes that have ended, and were replaced.",
            "worker",
            {worker.name: worker.restarts for worker in workers},
        )
        memory = GaugeMetricFamily(
            "trionat_worker_resident_memory_bytes", "Memory of a worker process.", labels=["worker"]
        )
        cpu = CounterMetricFamily(
            "trionat_worker_cpu_seconds",
            "Processor time of a worker process, since it was started.",
            labels=["worker"],
        )
        files = GaugeMetricFamily(
            "trionat_worker_open_fds",
            "Descriptors that a worker process has open.",
            labels=["worker"],
        )
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "process_resident_memory_bytes": memory,
            "process_cpu_seconds": cpu,
            "process_open_fds": files,
        }
        for worker in workers:
            if (pid := worker.pid) is None:
                continue
            of_worker = ProcessCollector(pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
            for metric in of_worker.collect():
                if (family := families.get(metric.name)) is not None:
                    family.add_metric([worker.name], metric.samples[0].value)
        yield from families.values()


def _cluster(cluster: ClusterView) -> Iterator[Metric]:
    yield _gauge(
        "trionat_redis_up",
        "1 while this node can ask the cluster's Redis.",
        int(cluster.away is None),
    )
    states = {str(state): 0 for state in _NODE_STATES}
    for node in cluster.nodes:
        if node.silent is not None and node.silent > DEAD_AFTER:
            states["silent"] += 1
        else:
            states["drained" if node.drained else "up"] += 1
    yield _gauges(
        "trionat_cluster_nodes", "Nodes of the cluster, as this one sees them.", "state", states
    )
    yield _gauge(
        "trionat_cluster_claims", "Clients that have ports or names, at all nodes.", cluster.claims
    )


def _part(used: int, quota: int) -> float:
    return used / quota if quota else 1.0


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _sums(
    name: str, meaning: str, labels: tuple[str, str], words: tuple[str, ...], sums: SumFigures
) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for whose, amounts in [*sums.shown.items(), (OTHERS, sums.others)]:
        for word, amount in zip(words, amounts, strict=True):
            family.add_metric([whose, word], amount)
    return family


def _histogram(name: str, meaning: str, figures: HistogramFigures) -> Metric:
    borders = [*map(str, figures.bounds), "+Inf"]
    up_to = accumulate(figures.counts)
    return HistogramMetricFamily(
        name,
        meaning,
        buckets=list(zip(borders, up_to, strict=True)),
        sum_value=figures.seconds,
    )
