"""What a run computes with, and how far it goes: its settings, and what follows from the base.

Knows no rating and no store. Loads no model before `open`.
"""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from strop.adapters.identity import identify
from strop.training import objectives, presets
from strop.training.backends import Choice, choose, confirmed, open_policy
from strop.training.backends.base import BackendUnavailable, Policy
from strop.training.backends.base_files import BaseFiles
from strop.training.objectives.base import Objective
from strop.training.presets import Preset
from strop.training.run_settings import RunSettings


class Recipe:
    """How one run is made. Each part is worked out when it is first asked for.

    Args:
        settings: what was in force when the run was asked for.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    @cached_property
    def chosen(self) -> Choice:
        """The backend and its device.

        Raises:
            BackendUnavailable: nothing here can train this base.
        """
        settings = self.settings
        chosen = choose(settings.backend, settings.device, base=settings.base_path)
        return confirmed(chosen, settings.device)

    @cached_property
    def files(self) -> BaseFiles:
        """The base's folder."""
        return BaseFiles(self.settings.base_path)

    @cached_property
    def preset(self) -> Preset:
        """How far the run may go with a base of this size.

        Raises:
            InvalidPreset: there is none of this name, or its file is broken.
        """
        return presets.load(self.settings.preset, self.files.config)

    @cached_property
    def objective(self) -> Objective:
        """The loss."""
        return objectives.make(self.settings.objective, self.preset.objective)

    def check_base(self, wanted: str, *, cache: Path) -> None:
        """Check that the base is still the one with the identity `wanted`.

        Raises:
            BackendUnavailable: its files are other ones now.
        """
        path = self.settings.base_path
        if not path.is_dir():
            raise BackendUnavailable(
                f"the base of this run was in {path}, and is not there any more: the run is given"
                " up. No rating was used up; set model.base to where it is now, and start a new"
                " run"
            )
        found = identify(path, cache=cache)
        if found != wanted:
            raise BackendUnavailable(
                f"the base in {path} is not the one that this run is for: its files changed"
                f" (expected {wanted[:19]}…, found {found[:19]}…). Put the old files back, or start"
                " a new run"
            )

    def open(self, parent: Path | None) -> Policy:
        """Load the base with the LoRA in folder `parent`, or with a fresh one.

        Raises:
            BackendUnavailable: it can't be loaded here.
            InvalidAdapter: what is in `parent` is no adapter of this base.
            OutOfMemory: the device can't hold it.
        """
        return open_policy(
            self.settings.base_path,
            start=parent,
            lora=self.preset.lora(self.settings.seed),
            adamw=self.preset.adamw,
            backend=self.chosen.name,
            device=self.settings.device,
            quantize_base=self.settings.quantize_base,
        )

    def in_force(self, policy: Policy) -> dict[str, object]:
        """Return all that `policy` is trained with, for the record."""
        return self.settings.to_json() | {
            "backend": self.chosen.name,
            "why": self.chosen.why,
            "dtype": policy.dtype,
            "values": asdict(self.preset),
            "adamw": asdict(self.preset.adamw),
        }
