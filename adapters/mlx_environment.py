"""What MLX and Metal read from the environment, for the engine and the trainer alike.

Imports no mlx: it must be set before that is imported.
"""

import os
from typing import Final

VARIABLES: Final = {
    # On an M5, MLX else rounds float32 to 10 bits in products of more than one row. A token that
    # is decoded is one row, a prompt many: engine and trainer would differ by more than probes may.
    "MLX_ENABLE_TF32": "0",
    # macOS ends work on the GPU that the display has to wait for; less of it with this.
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
}


def set_defaults() -> None:
    """Set each of `VARIABLES` that isn't set."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
