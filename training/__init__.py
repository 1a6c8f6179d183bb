"""Learning from ratings, in processes of its own."""

import os

# transformers says by it, and by nothing else, that torch is missing; with MLX none is needed.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
