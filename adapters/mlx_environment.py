"""What MLX and Metal read from the environment, for the engine and the trainer alike.

Imports no mlx: it must be set before that is imported.
"""

import os
import sys
from typing import Final

VARIABLES: Final = {
    # On an M5, MLX else rounds float32 to 10 bits in products of more than one row. A token that
    # is decoded is one row, a prompt many: engine and trainer would differ by more than probes may.
    "MLX_ENABLE_TF32": "0",
    # macOS ends work on the GPU that the display has to wait for; less of it with this.
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
}
if sys.platform == "linux":
    # MLX else has g++ compile each new kernel for the CPU, which takes seconds for a few percent of
    # speed, into a folder of /tmp that all users share: it loads what another one has put there.
    VARIABLES["MLX_DISABLE_COMPILE"] = "1"


def set_defaults() -> None:
    """Set each of `VARIABLES` that isn't set."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
