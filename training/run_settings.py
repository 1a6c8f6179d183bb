"""What is in force for one run, as its row says it.

Pure. Does not say what a preset means.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.proxy.store.run_records import Run


@dataclass(frozen=True, slots=True)
class RunSettings:
    """A run's settings; those that `[training]` has too mean the same here.

    Attributes:
        base_path: the folder of the base, in Hugging Face format.
        objective: `training.objective`.
        preset: `training.preset`.
        backend: `training.backend`.
        device: `training.device`.
        quantize_base: `training.quantize_base`.
        seed: of everything that is drawn; it follows from the run's id where the row has none.
    """

    base_path: Path
    objective: str
    preset: str
    backend: str = "auto"
    device: str = "auto"
    quantize_base: bool = False
    seed: int = 0

    @classmethod
    def of(cls, run: Run) -> "RunSettings":
        """Return what `run` asks for.

        Raises:
            ValueError: its config doesn't say where the base is.
        """
        config: dict[str, Any] = json.loads(run.config)
        if not isinstance(config.get("base_path"), str):
            raise ValueError(f"expected the config of {run.id} to have a base_path, got {config}")
        known = {name: config[name] for name in cls.__slots__ if name in config}
        default = {"seed": zlib.crc32(run.id.encode())}
        return cls(
            **default
            | known
            | {
                "base_path": Path(config["base_path"]),
                "objective": run.objective,
                "preset": run.preset,
            }
        )

    def to_json(self) -> dict[str, object]:
        """Return the settings as a run's config has them."""
        return asdict(self) | {"base_path": str(self.base_path)}
