"""What the processes that answer say of themselves: what runs, what was lost, what they counted.

Asks, and judges nothing: `routes.health` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from strop.proxy.metrics import Metrics
from strop.proxy.relay import Relay
from strop.proxy.store.records import StoreHealth
from strop.proxy.store.store import Store


@dataclass(frozen=True, slots=True)
class WorkerTally:
    """One of several processes that answer, by its number, from 1 on."""

    number: int
    pid: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What all of them say.

    Attributes:
        in_flight: how many completions are being relayed.
        lost: how many could not be recorded.
        store: how their stores are, together.
        workers: each of them; empty where one process does all.
        replicas: how many requests they have under way to each of several engines, by its address,
            beside those of the process that is asked.
    """

    in_flight: int
    lost: int
    store: StoreHealth
    workers: tuple[WorkerTally, ...] = ()
    replicas: Mapping[str, int] = field(default_factory=dict)


class Census(Protocol):
    """Asks the processes that answer."""

    @property
    def is_draining(self) -> bool:
        """Whether strop is stopping."""
        ...

    async def take(self) -> Tally:
        """Return what they say now."""
        ...

    async def exposition(self) -> bytes:
        """Return what they have counted, in Prometheus' text format."""
        ...


class OwnCensus:
    """The census where one process does all."""

    def __init__(self, relay: Relay, store: Store, metrics: Metrics) -> None:
        self._relay = relay
        self._store = store
        self._metrics = metrics

    @property
    def is_draining(self) -> bool:
        """Whether strop is stopping."""
        return self._relay.is_draining

    async def take(self) -> Tally:
        """Return how things are here."""
        return Tally(self._relay.num_calls, num_lost(self._metrics), self._store.health)

    async def exposition(self) -> bytes:
        """Return what was counted here."""
        note_store(self._metrics, self._store.health)
        return self._metrics.render()


def num_lost(metrics: Metrics) -> int:
    """Return how many completions could not be recorded."""
    return int(metrics.registry.get_sample_value("strop_completions_lost_total") or 0)


def note_store(metrics: Metrics, health: StoreHealth) -> None:
    """Let the metrics say how the store is now."""
    metrics.queue.set(health.num_queued)
    metrics.store_ok.set(health.ok)
