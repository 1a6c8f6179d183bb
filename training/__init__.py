"""Learning from ratings, in processes of its own."""

import os

from strop.adapters import mlx_environment

# transformers says by it, and by nothing else, that torch is missing; with MLX none is needed.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Here, since whatever of this package imports mlx comes after it.
mlx_environment.set_defaults()
