"""What all workers say of themselves, together; see `tally.Census`.

Judges nothing, and starts none.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from strop.proxy.metrics import Metrics
from strop.proxy.store.records import StoreHealth
from strop.proxy.store.store import Store
from strop.proxy.tally import Tally, WorkerTally, note_store
from strop.proxy.workers import sums
from strop.proxy.workers.crew import Crew, Member
from strop.proxy.workers.frames import Sample


class CrewCensus:
    """Asks the workers.

    Args:
        crew: all of them.
        store: that of the process that decides.
        metrics: what that one counts.
    """

    def __init__(self, crew: Crew, store: Store, metrics: Metrics) -> None:
        self._crew = crew
        self._store = store
        self._metrics = metrics
        self._of_gone: list[Sample] = []
        self._lost_by_gone = 0
        crew.on_gone = self._keep

    @property
    def is_draining(self) -> bool:
        """Whether strop is stopping."""
        return self._crew.is_draining

    async def take(self) -> Tally:
        """Return what they say now."""
        members = await self._crew.look()
        looks = [(one, one.looks) for one in members if one.looks is not None]
        return Tally(
            sum(said.in_flight for _, said in looks),
            sum(said.lost for _, said in looks) + self._lost_by_gone,
            together([self._store.health, *(said.store for _, said in looks)]),
            tuple(WorkerTally(one.number, one.pid, said.in_flight) for one, said in looks),
            sum((Counter(said.replicas) for _, said in looks), Counter()),
        )

    async def exposition(self) -> bytes:
        """Return what all have counted, in Prometheus' text format."""
        note_store(self._metrics, self._store.health)
        registry = self._metrics.registry
        found = sums.add(sums.read(registry), self._of_gone)
        for member in await self._crew.look():
            found = sums.add(found, member.looks.samples if member.looks is not None else ())
        return sums.exposition(registry, found)

    def _keep(self, member: Member) -> None:
        if member.looks is not None:
            left = sums.counted(self._metrics.registry, member.looks.samples)
            self._of_gone = sums.add(self._of_gone, left)
            self._lost_by_gone += member.looks.lost


def together(healths: Sequence[StoreHealth]) -> StoreHealth:
    """Return how the stores of several processes are: as the worst of them, and all that waits."""
    worst = next((one for one in healths if not one.ok), healths[0])
    return replace(
        worst,
        num_queued=sum(one.num_queued for one in healths),
        queued_bytes=sum(one.queued_bytes for one in healths),
    )
