"""The job that makes an imported adapter's probe: a child process that loads the base, once.

Does not know versions. What a probe is, and proves, is `strop.adapters.probe`'s.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strop.adapters import probe_codec
from strop.adapters.probe import Probe
from strop.configs import installation
from strop.proxy import run_requests
from strop.proxy.child import Child, last_words
from strop.proxy.settings.settings import Training
from strop.proxy.store import layout, run_lock

ProbeCommand = Callable[["ProbeJob", Path, Path, Path], Sequence[str]]
"""Returns the job's command line, from the job, the base, the adapter, and the file to write."""

_PROBE: Final = "probe.json"
_LOG: Final = "output.log"


def command(job: "ProbeJob", base: Path, adapter: Path, out: Path) -> list[str]:
    """Return the command line."""
    settings = job.settings
    return [
        *installation.module("strop.training.make_probe"),
        *("--base", str(base), "--adapter", str(adapter), "--out", str(out)),
        *("--runs", str(job.runs_folder)),
        *("--backend", settings.backend, "--device", settings.device),
        *(["--quantize-base"] if settings.quantize_base else []),
    ]


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """Makes probes in one home.

    Attributes:
        home: strop's home; no run trains there meanwhile.
        settings: with what to compute.
        command: see `ProbeCommand`.
    """

    home: Path
    settings: Training
    command: ProbeCommand = command

    @property
    def runs_folder(self) -> Path:
        """The folder of all runs."""
        return self.home / layout.RUNS

    @property
    def must_wait(self) -> bool:
        """Whether a run is under way."""
        return run_lock.is_held(self.runs_folder)

    async def make(self, base: Path | None, adapter: Path, scratch: Path) -> Probe | str:
        """Return the probe of an adapter, or why there is none: `AWAITS_RUN` while a run trains.

        Args:
            base: the folder of its base; None where that isn't on this machine.
            adapter: its PEFT folder.
            scratch: a folder for what the job writes.
        """
        if base is None:
            return run_requests.NO_BASE
        if not run_requests.has_backend():
            return run_requests.NO_BACKEND
        if self.must_wait:
            return run_requests.AWAITS_RUN
        out, log_path = scratch / _PROBE, scratch / _LOG
        try:
            child = await Child.start(self.command(self, base, adapter, out), log_path=log_path)
            try:
                status = await child.wait()
            finally:
                await child.stop()
            if status == os.EX_TEMPFAIL:
                return run_requests.AWAITS_RUN
            if status:
                return last_words(log_path) or f"its process ended with the status {status}"
            return await asyncio.to_thread(_read, out)
        except (OSError, ValueError) as error:
            return f"no probe could be made: {error}"


def _read(path: Path) -> Probe:
    return probe_codec.from_json(json.loads(path.read_text("utf-8")))
