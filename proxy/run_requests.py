"""What a training run is asked for with: the base, its row in the store, its process's command.

Starts no process. Whoever asks makes the row; the process finds in it all that it needs.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from strop import configs
from strop.configs import installation
from strop.proxy.errors import BadRequest, Unavailable
from strop.proxy.settings.settings import Training
from strop.proxy.store.run_records import Run, RunUpdate

if TYPE_CHECKING:
    # Commands check a preset with this, and open no store for it.
    from strop.proxy.store.store import Store

TrainCommand = Callable[[Path, str], Sequence[str]]
"""Returns the command line of a run's process, from the home and the run's id."""

NO_BASE: Final = (
    "nothing can be trained before model.base is set: a folder or a downloaded hub id of the same"
    " model in Hugging Face format"
)
NEVER_LEARNED: Final = "what is answered until then is never learned from, however it is rated"
"""What follows where the base that answers isn't known: it could be any other."""
NO_BACKEND: Final = (
    f"training needs torch or mlx, and neither is installed: {installation.install_backend()}"
)
MAX_SEED: Final = 2**32 - 1
AWAITS_RUN: Final = "its probe is made when the training run that is under way has ended"
"""Why an imported version has no probe yet."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base that is served and trained: its folder in Hugging Face format, its identity."""

    folder: Path
    identity: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a run; None is what the settings say, the active version, any seed."""

    objective: str | None = None
    preset: str | None = None
    parent: str | None = None
    seed: int | None = None


def no_base(named: str) -> str:
    """Return why there is no base to train, where `model.base` says `named`."""
    if not named:
        return NO_BASE
    return (
        f"nothing can be trained: model.base is {named}, and there is no such folder here, nor a"
        " downloaded hub id; set it to where that model is now"
    )


def has_backend() -> bool:
    """Whether anything that can train is installed."""
    return any(importlib.util.find_spec(name) is not None for name in ("torch", "mlx"))


async def create(
    store: "Store", settings: Training, base: Base, wanted: Wanted, *, actor: str
) -> Run:
    """Queue a run.

    Args:
        store: where its row goes.
        settings: what stands where nothing is asked for.
        base: what it trains.
        wanted: what is asked for.
        actor: who asks.

    Raises:
        BadRequest: there is no such preset.
        NotFound: there is no such parent.
        Conflict: a run is unfinished, or the parent can't be continued from.
        Unavailable: nothing is installed that can train.
    """
    if not has_backend():
        raise Unavailable(NO_BACKEND)
    config = {
        "base_path": str(base.folder),
        "backend": settings.backend,
        "device": settings.device,
        "quantize_base": settings.quantize_base,
    }
    if wanted.seed is not None:
        config["seed"] = wanted.seed
    return await store.runs.create(
        objective=wanted.objective or settings.objective,
        preset=preset(wanted.preset or settings.preset),
        parent=wanted.parent or (await store.versions.activation()).version,
        base=base.identity,
        requested_by=actor,
        config=orjson.dumps(config),
    )


async def follow_base(store: "Store", run: Run, base: Base) -> Run:
    """Return a run that is to go on, with its base in the folder where that is now."""
    config = orjson.loads(run.config)
    moved = config | {"base_path": str(base.folder)}
    if run.base != base.identity or config == moved:
        return run
    return await store.runs.update(run.id, RunUpdate(config=orjson.dumps(moved)))


def preset(named: str) -> str:
    """Return a preset's name, or the absolute path of its file: the process may start elsewhere.

    Raises:
        BadRequest: there is none.
    """
    path, shipped = configs.preset_file(named), configs.presets()
    if path is None:
        raise BadRequest(
            f"expected `preset` to be one of {', '.join(shipped)}, or the path of a TOML file; got"
            f" {named[:200]!r}",
            param="preset",
        )
    return named if named in shipped else str(path)


def command(home: Path, run: str) -> list[str]:
    """Return the command line of a run's process."""
    return [*installation.module("strop.training.run"), "--home", str(home), "--run", run]
