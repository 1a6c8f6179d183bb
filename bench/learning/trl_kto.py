"""TRL's KTOTrainer as a learner: a process in an environment of its own trains, strop samples.

Its trainer, loss, dataset handling and optimizer are TRL's; LoRA shape, number of steps and, but
for a factor, the learning rate are those of the other arms: TRL's own 1e-6 would move nothing here.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from bench.learning.learner import Learned, Lesson
from strop.proxy.store.run_records import RatedTurn
from strop.training import presets
from strop.training.backends.base_files import BaseFiles

REQUIREMENT = "trl==1.16.0"
ENVIRONMENT = Path(__file__).parents[1] / ".venv-trl"
_WORKER = Path(__file__).with_name("trl_worker.py")
_PYTHON = ENVIRONMENT / "bin" / "python"


def missing() -> str | None:
    """Return how to install it, where it is not."""
    if (ENVIRONMENT / "bin" / "trl").exists():
        return None
    return "TRL is not installed; run `python -m bench.learning.setup`"


def versions() -> dict[str, str]:
    """Return the versions of what trains here and there; TRL's only where it is installed."""
    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    for package in ENVIRONMENT.glob("lib/python*/site-packages/trl-*.dist-info"):
        found["trl"] = package.name.removeprefix("trl-").removesuffix(".dist-info")
    return found


def install() -> None:
    """Make the environment: TRL and what it needs beyond this one's torch and transformers."""
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    # As newer Pythons do themselves.
    (ENVIRONMENT / ".gitignore").write_text("*\n")
    (site,) = ENVIRONMENT.glob("lib/python*/site-packages")
    # The very torch, transformers and peft that strop runs on, and 3 GB less to install.
    (site / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([_PYTHON, "-m", "pip", "install", "--quiet", REQUIREMENT], check=False)


@dataclass(slots=True)
class TrlKto:
    """KTOTrainer over one seed's lessons.

    Attributes:
        beta: KTO's; 0.1 is TRL's default.
        is_balanced: whether the rarer side weighs as much as the other, as TRL advises.
        is_base_reference: whether the reference is the base; else TRL's choice for an adapter that
            is continued: the adapter as it was.
        lr_scale: the peak learning rate over that of strop's preset.
    """

    beta: float = 0.1
    is_balanced: bool = False
    is_base_reference: bool = False
    lr_scale: float = 1.0
    has_gate: bool = False
    _process: "subprocess.Popen[str] | None" = None

    def learn(self, lesson: Lesson) -> Learned:
        """Train on the lesson's texts."""
        preset = presets.load(presets.DEFAULT, BaseFiles(lesson.base).config)
        rows = [_row(turn) for turn in lesson.turns]
        schedule = preset.schedule(len(rows), lesson.seed)
        start = lesson.versions.get(lesson.parent)
        adapter = lesson.folder / "adapter"
        said = self._ask(
            {
                "base": str(lesson.base),
                "start": str(start) if start else None,
                "is_base_reference": self.is_base_reference,
                "rank": preset.rank,
                "alpha": preset.alpha,
                "out": str(adapter),
                "rows": rows,
                "config": {
                    "seed": lesson.seed,
                    "per_device_train_batch_size": schedule.batch_size,
                    "max_steps": schedule.num_steps,
                    "warmup_steps": schedule.warmup_steps,
                    "learning_rate": self.lr_scale * preset.lr,
                    "beta": self.beta,
                    **(balance([row["label"] for row in rows]) if self.is_balanced else {}),
                },
            }
        )
        return Learned("trained", adapter, (), said["num_steps"], said["cpu_s"])

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        # It may be at work, where this was interrupted.
        with self._process:
            self._process.terminate()
        self._process = None

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            env = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
            self._process = subprocess.Popen(
                [_PYTHON, "-W", "ignore", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=env,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"TRL's process ended with {self._process.wait()}; to see why, run"
                f" {_PYTHON} {_WORKER} and give it the same line"
            )
        said: dict[str, Any] = json.loads(line)
        return said


def balance(labels: Sequence[bool]) -> dict[str, float]:
    """Return the weight, in TRL's words, that makes the rarer side weigh as much as the other.

    Nothing where there is one side only.
    """
    num_liked = sum(labels)
    num_disliked = len(labels) - num_liked
    if not num_liked or not num_disliked:
        return {}
    if num_liked < num_disliked:
        return {"desirable_weight": num_disliked / num_liked}
    return {"undesirable_weight": num_liked / num_disliked}


def _row(turn: RatedTurn) -> dict[str, Any]:
    completion = turn.completions[-1].completion
    request = orjson.loads(completion.request)
    answer = orjson.loads(completion.choices[0].message)
    return {
        "prompt": request["messages"],
        "completion": [answer],
        "label": turn.feedback[0].rating > 0,
    }
