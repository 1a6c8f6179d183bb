"""The metrics of several processes as one: what each counts, added up.

Counts nothing. What a process counted that is gone is kept, so that no counter ever falls.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as Line

from strop.proxy.workers.frames import Sample

_LEAST: Final = "strop_store_ok"
_CREATED: Final = "_created"


def read(registry: CollectorRegistry) -> list[Sample]:
    """Return what the metrics of one process say now."""
    return [
        Sample(metric.name, line.name, tuple(sorted(line.labels.items())), line.value)
        for metric in registry.collect()
        for line in metric.samples
    ]


def counted(registry: CollectorRegistry, samples: Iterable[Sample]) -> list[Sample]:
    """Return those of `samples` that stay true of a process that is gone: all but the gauges."""
    gauges = {metric.name for metric in registry.collect() if metric.type == "gauge"}
    return [one for one in samples if one.metric not in gauges]


def add(kept: Iterable[Sample], more: Iterable[Sample]) -> list[Sample]:
    """Return the sums of both."""
    sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
    for one in (*kept, *more):
        key = (one.metric, one.name, one.labels)
        known = sums.get(key)
        if known is None:
            sums[key] = one.value
        elif one.name == _LEAST or one.name.endswith(_CREATED):
            sums[key] = min(known, one.value)
        else:
            sums[key] = known + one.value
    return [Sample(*key, value) for key, value in sums.items()]


def exposition(registry: CollectorRegistry, samples: Iterable[Sample]) -> bytes:
    """Return `samples` in Prometheus' text format; `registry` says what each metric is."""
    metrics = {
        metric.name: Metric(metric.name, metric.documentation, metric.type)
        for metric in registry.collect()
    }
    for one in samples:
        metrics[one.metric].samples.append(Line(one.name, dict(one.labels), one.value))
    found = CollectorRegistry()
    found.register(_Found(metrics.values()))
    return generate_latest(found)


class _Found(Collector):
    """Metrics that were gathered before."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics
