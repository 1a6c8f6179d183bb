"""One engine as a switch sees it: loads a version, is asked whether it serves it, and unloads it.

Chooses no version and moves no traffic; `strop.adapters.swap` says what follows what.
"""

from dataclasses import dataclass

from strop.adapters.probe import Judgement, Probe, judge
from strop.adapters.swap import Release
from strop.adapters.tolerances import tolerance_of
from strop.proxy.engines.base import AdapterControl
from strop.proxy.versions.pairing import Pairings
from strop.proxy.versions.probing import base_error, measure, with_base


@dataclass(slots=True)
class Target:
    """One engine.

    Attributes:
        base: the served name of the base.
        others: names whose prefix caches must not be used for the version.
        can_score: whether the engine gives the logprobs of given ids.
        dtype: what the engine says that it computes in, if it does.
        pairings: how far its base lies from the one that is trained.
        has_one_slot: whether asking the base displaces the version.
    """

    control: AdapterControl
    base: str
    others: tuple[str, ...]
    can_score: bool
    dtype: str
    pairings: Pairings
    has_one_slot: bool = False

    async def prepare(self, release: Release) -> None:
        """Convert its files, where there are any."""
        if release.folder is not None:
            await self.control.prepare(release.name, release.folder)

    async def load(self, release: Release) -> None:
        """Load it; the base at one slot by unloading what displaced it."""
        if release.folder is not None:
            if release.probe is not None:
                await self._measure_base(release.probe)
            await self.control.load(release.name, release.folder)
        elif self.has_one_slot:
            for name in await self.control.loaded():
                await self.control.unload(name)

    async def prove(self, release: Release) -> Judgement:
        """Run its probe."""
        assert release.probe is not None
        probe = release.probe
        others = [name for name in self.others if name != release.name]
        measured = await measure(
            self.control, release.name, probe, scores=self.can_score, others=others
        )
        tolerance = tolerance_of(*self._dtypes(probe), base_error=self.pairings.error or 0.0)
        judgement = judge(probe, measured, tolerance=tolerance)
        if judgement.outcome == "proven" or self.has_one_slot or not self.can_score:
            return judgement
        # The engine's own base may be off by as much: then it is what to compare with.
        measured = await with_base(self.control, self.base, probe, measured)
        return judge(probe, measured, tolerance=tolerance_of(*self._dtypes(probe)))

    async def unload(self, release: Release) -> None:
        """Unload it; the base stays."""
        if release.folder is not None:
            await self.control.unload(release.name)

    def _dtypes(self, probe: Probe) -> list[str]:
        return [probe.dtype, *([self.dtype] if self.dtype else [])]

    async def _measure_base(self, probe: Probe) -> None:
        """Pair the engine's base, once, and before it is displaced where there is one slot."""
        if self.pairings.was_measured or (self.has_one_slot and self.can_score):
            return
        self.pairings.measured(
            await base_error(self.control, self.base, probe, scores=self.can_score)
        )
