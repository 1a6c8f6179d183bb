"""What is called what in strop's home: `home / layout.DATABASE`.

Names alone: opens nothing, and makes nothing. Here, since the processes of runs need them too.
"""

from typing import Final

SETTINGS: Final = "strop.toml"
DATABASE: Final = "strop.db"
ADMIN_KEY: Final = "admin.key"
ADAPTERS: Final = "adapters"
"""The folder of adapter versions."""
MLX_ADAPTERS: Final = "adapters-mlx"
"""The folder of versions as mlx_lm reads them."""
RUNS: Final = "runs"
"""The folder of training runs, each in a folder of its own, called as its id."""
IDENTITIES: Final = "identities.json"
"""The identities of bases, so that their weights are hashed once."""
SERVE_LOCK: Final = "serve.lock"
"""Held by the process that serves from the home."""
ENGINE_LOG: Final = "engine.log"
"""What the embedded engine writes."""
OLLAMA_NOTES: Final = "ollama-models.json"
"""Which models strop has made in Ollama."""
