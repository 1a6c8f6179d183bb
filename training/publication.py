"""How a run's candidate becomes a version: its id reserved, its folder written, its row published.

Decides nothing: the verdict is given. Each of the three steps can be the last one before a kill,
and the next start goes on from there.
"""

import json
from collections.abc import Callable
from pathlib import Path

from strop.adapters import manifest as manifests
from strop.adapters.library import Library
from strop.adapters.manifest import Manifest
from strop.adapters.probe_values import Probe
from strop.proxy.store.clock import now_ms
from strop.proxy.store.run_records import RunState, RunUpdate
from strop.training.gate import Figures, Verdict
from strop.training.run_row import RunRow, to_json
from strop.training.training_set import TrainingSet


class Publication:
    """The version of one run.

    Args:
        row: the run's row, and the store.
        library: where versions lie.
    """

    def __init__(self, row: RunRow, library: Library) -> None:
        self._row = row
        self._library = library

    def written_before(self) -> Manifest | None:
        """Return the manifest of what was written, but perhaps not published, before a kill.

        Raises:
            InvalidAdapter: it isn't as it was written.
        """
        version = self._row.run.version
        if version is None or not self._library.path_of(version).is_dir():
            return None
        return self._library.verify(version)

    def write(
        self,
        save: Callable[[Path], None],
        whole: TrainingSet,
        metrics: dict[str, object],
        measured: Figures,
        verdict: Verdict,
        probe: Probe | None,
    ) -> Manifest:
        """Reserve the version's id and write its folder.

        Args:
            save: writes the adapter's files into a folder.
            whole: what it learned from.
            metrics: what was measured while it was trained.
            measured: what the gate decided by.
            verdict: what it decided.
            probe: how to tell it from others.

        Raises:
            OSError: it can't be written; nothing is left.
        """
        run = self._row.run
        versions = self._row.store.versions
        reserved = self._row.wait(versions.reserve(base=run.base, parent=run.parent, run=run.id))
        manifest = Manifest(
            version=reserved.id,
            base=run.base,
            origin="run",
            created_ms=now_ms(),
            parent=run.parent,
            run=run.id,
            objective=run.objective,
            feedback=whole.feedback,
            metrics=json.loads(to_json(metrics | _shown(measured))),
            verdict=json.loads(to_json(verdict.to_json())),
            probe=probe,
        )
        self._library.create(reserved.id, save, manifest)
        return self._library.read_manifest(reserved.id)

    def publish(self, manifest: Manifest) -> tuple[RunState, list[str]]:
        """Show the version with what it learned from, in one transaction; then end the run.

        Returns:
            How the run ended, and why, for people.
        """
        row, versions = self._row, self._row.store.versions
        verdict = manifest.verdict or {}
        is_rejected = verdict["outcome"] == "rejected"
        reasons = [str(reason) for reason in verdict["reasons"]]
        known = row.wait(versions.get(manifest.version))
        if known is not None and known.state == "candidate":
            publishing = versions.publish(
                manifest.version,
                manifests.dumps(manifest),
                manifest.feedback,
                state="rejected" if is_rejected else "ready",
                reason="; ".join(reasons) if is_rejected else None,
                actor="run",
            )
            known = row.wait(publishing)
        if known is not None and known.stale is not None:
            reasons.append(f"not promoted: {known.stale}")
        state: RunState = "rejected" if is_rejected else "passed"
        if row.run.state == "running":
            row.update(RunUpdate(state="gating"))
        metrics = {**manifest.metrics, "verdict": verdict["outcome"]}
        row.update(RunUpdate(state=state, reasons=to_json(reasons), metrics=to_json(metrics)))
        return state, reasons


def _shown(measured: Figures) -> dict[str, object]:
    """Return what the gate decided by, flat, as people read it."""
    shown: dict[str, object] = {}
    for name, behaviour in (("candidate", measured.candidate), ("base", measured.base)):
        shown |= {
            f"{name}_nll_under_base": behaviour.base_nll,
            f"{name}_length": behaviour.length,
            f"{name}_entropy": behaviour.entropy,
        }
    return shown | {
        "gate_kl_parent": measured.parent_kl,
        "num_samples": measured.candidate.num_samples,
        "num_held_out": len(measured.held_out),
    }
