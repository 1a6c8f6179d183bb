"""What was seen of streams, and arithmetic on it. Pure values: times are monotonic, in ns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import median


@dataclass(slots=True)
class Reply:
    """One answer as it came.

    Attributes:
        wanted: the version that was current when it was asked for.
        version: the version that its head names; of a server that names none, `wanted`.
        status: of HTTP; 0 before the head came.
        sent_ns: when the request was written.
        arrivals_ns: when each event with text came.
        is_whole: whether its end was seen.
        is_over: whether nothing more of it comes.
        trouble: why it is not whole, where that is known.
        completion: strop's id of it.
        body: of an answer that is no stream.
    """

    wanted: str = ""
    version: str = ""
    status: int = 0
    sent_ns: int = 0
    arrivals_ns: list[int] = field(default_factory=list)
    is_whole: bool = False
    is_over: bool = False
    trouble: str = ""
    completion: str = ""
    body: bytes = b""

    @property
    def has_failed(self) -> bool:
        """Whether it is over and was refused, cut off, or empty."""
        is_right = self.status == 200 and self.is_whole and bool(self.arrivals_ns)
        return self.is_over and not is_right

    @property
    def first_ms(self) -> float:
        """How long its first token took."""
        return (self.arrivals_ns[0] - self.sent_ns) / 1e6


@dataclass(frozen=True, slots=True)
class Latency:
    """Streams during a while, in ms; `first` is of the answers that were waited for then.

    A wait that is only in part within the while counts whole. `num_waiting` is how many requests
    waited for their first token at once, at most.
    """

    num_gaps: int
    gap_p50: float
    gap_p99: float
    gap_most: float
    first_p50: float | None
    first_most: float | None
    num_waiting: int

    @property
    def longest(self) -> float:
        """The longest that any client saw nothing, whether before its first token or after."""
        return max(self.gap_most, self.first_most or 0.0)


def latency(replies: Iterable[Reply], begin_ns: int, end_ns: int) -> Latency:
    """Return how streams did from `begin_ns` to `end_ns`."""
    gaps: list[float] = []
    firsts: list[float] = []
    waits: list[tuple[int, int]] = []
    for reply in replies:
        if not reply.arrivals_ns or reply.sent_ns > end_ns or reply.arrivals_ns[-1] < begin_ns:
            continue
        if reply.arrivals_ns[0] >= begin_ns:
            firsts.append(reply.first_ms)
            waits += [(reply.sent_ns, 1), (reply.arrivals_ns[0], -1)]
        gaps += [
            (later - earlier) / 1e6
            for earlier, later in pairwise(reply.arrivals_ns)
            if later >= begin_ns and earlier <= end_ns
        ]
    return Latency(
        len(gaps),
        quantile(gaps, 0.5) if gaps else 0.0,
        quantile(gaps, 0.99) if gaps else 0.0,
        max(gaps, default=0.0),
        quantile(firsts, 0.5) if firsts else None,
        max(firsts, default=None),
        max(accumulate(change for _, change in sorted(waits)), default=0),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of at least one lies at or below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(above: float | None, below: float | None) -> float | None:
    """Return above / below, None where either is not known or `below` is 0."""
    return above / below if above is not None and below else None


def middle(values: Iterable[float | None]) -> float | None:
    """Return the median of the known values, None of none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
