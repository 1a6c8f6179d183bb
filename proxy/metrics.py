"""What strop counts, for Prometheus.

Names no message, no key and no session: labels come from closed lists.
"""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from strop.proxy.store.records import State

_LATENCY_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
)


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        completions = Counter(
            "strop_completions",
            "Completions that reached an engine, by how they ended.",
            ["state"],
            registry=self.registry,
        )
        # Children are looked up once: labels() costs more than the increment.
        self.completions = {state: completions.labels(state) for state in get_args(State)}
        self.lost = Counter(
            "strop_completions_lost",
            "Completions that were answered, or cut off, and could not be recorded.",
            registry=self.registry,
        )
        self.passed = Counter(
            "strop_passed_requests",
            "Requests passed through without a record, such as embeddings.",
            registry=self.registry,
        )
        self.refused = Counter(
            "strop_refused_requests",
            "Requests that strop answered with an error of its own.",
            ["code"],
            registry=self.registry,
        )
        self.feedback = Counter(
            "strop_feedback",
            "Ratings taken, by the way they came.",
            ["source"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "strop_sampled_tokens",
            "Tokens sampled, where the engine gave ids.",
            registry=self.registry,
        )
        # Its value is asked for when it is read: `set_function`.
        self.in_flight = Gauge(
            "strop_in_flight", "Completions being relayed now.", registry=self.registry
        )
        self.overhead = Histogram(
            "strop_overhead_seconds",
            "Time that strop added before the first byte of an answer.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "strop_first_byte_seconds",
            "Time from a request to the first byte of its answer's body.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.queue = Gauge(
            "strop_store_queue", "Writes waiting for the store.", registry=self.registry
        )
        self.store_ok = Gauge(
            "strop_store_ok", "1 while the store takes writes.", registry=self.registry
        )
        self.store_bytes = Gauge(
            "strop_store_bytes", "Size of the database.", registry=self.registry
        )
        self.store_free_bytes = Gauge(
            "strop_store_free_bytes",
            "Of the database's size, what is not in use, and is used again.",
            registry=self.registry,
        )
        self.engine_ready = Gauge(
            "strop_engine_ready", "1 while the engine answers.", registry=self.registry
        )
        self.replica_ready = Gauge(
            "strop_replica_ready",
            "1 while requests go to this one of several servers.",
            ["url"],
            registry=self.registry,
        )
        self.replica_in_flight = Gauge(
            "strop_replica_in_flight",
            "Requests under way to this one of several servers.",
            ["url"],
            registry=self.registry,
        )

        self.activations = Counter(
            "strop_activations",
            "Activations of adapter versions, by how they ended.",
            ["outcome"],
            registry=self.registry,
        )
        # Its value is asked for when it is read: `set_function`.
        self.active_version = Gauge(
            "strop_active_version",
            "The number of the active adapter version; 0 for the base.",
            registry=self.registry,
        )
        self.pause = Histogram(
            "strop_swap_pause_seconds",
            "Time that requests were held while an engine with one slot changed its version.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)
