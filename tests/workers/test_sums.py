"""The metrics and the stores of several processes, as one."""

import re

from strop.proxy.metrics import Metrics
from strop.proxy.store.records import StoreHealth
from strop.proxy.workers import sums
from strop.proxy.workers.census import together

WELL = StoreHealth(ok=True, reason=None, since_ms=5, num_queued=2, queued_bytes=30)
ILL = StoreHealth(ok=False, reason="full", since_ms=9, num_queued=1, queued_bytes=7)


def of(*, complete: int, in_flight: int, is_ok: bool) -> Metrics:
    """Return the metrics of a process that has done so much."""
    metrics = Metrics()
    metrics.completions["complete"].inc(complete)
    metrics.in_flight.set_function(lambda: in_flight)
    metrics.store_ok.set(is_ok)
    metrics.refused.labels(f"code_{complete}").inc()
    metrics.overhead.observe(0.002)
    return metrics


def value(text: bytes, name: str) -> float:
    """Return the value of a metric in Prometheus' text format."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_what_each_counts_is_added_up() -> None:
    """Histograms and labels too; the store is well where all are."""
    one, other = of(complete=3, in_flight=1, is_ok=True), of(complete=4, in_flight=2, is_ok=False)

    both = sums.add(sums.read(one.registry), sums.read(other.registry))
    text = sums.exposition(Metrics().registry, both)

    assert 7 == value(text, 'strop_completions_total{state="complete"}')
    assert 3 == value(text, "strop_in_flight")
    assert 0 == value(text, "strop_store_ok")
    assert 2 == value(text, "strop_overhead_seconds_count")
    assert 2 == value(text, 'strop_overhead_seconds_bucket{le="0.0025"}')
    assert 1 == value(text, 'strop_refused_requests_total{code="code_3"}')
    assert b"# TYPE strop_completions_total counter" in text


def test_alone_they_are_what_the_process_says_itself() -> None:
    """Line by line."""
    metrics = of(complete=3, in_flight=1, is_ok=True)

    text = sums.exposition(metrics.registry, sums.add(sums.read(metrics.registry), []))

    assert metrics.render().decode().splitlines() == text.decode().splitlines()


def test_what_a_process_counted_outlives_it() -> None:
    """What it had in flight does not."""
    gone = of(complete=3, in_flight=1, is_ok=False)
    left = sums.counted(gone.registry, sums.read(gone.registry))
    both = sums.add(left, sums.read(of(complete=4, in_flight=2, is_ok=True).registry))

    text = sums.exposition(Metrics().registry, both)

    assert 7 == value(text, 'strop_completions_total{state="complete"}')
    assert 2 == value(text, "strop_in_flight")
    assert 1 == value(text, "strop_store_ok")


def test_the_stores_are_as_the_worst_of_them() -> None:
    """What waits is that of all."""
    expected = StoreHealth(ok=False, reason="full", since_ms=9, num_queued=5, queued_bytes=67)

    assert expected == together([WELL, ILL, WELL])
    assert together([WELL]) == WELL
