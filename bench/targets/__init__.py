"""The targets: what the benchmark puts between the load and the fake engine.

Each is one module with one class; this one lists them in the order of a forward round.
"""

from bench.targets.base import Running, Site, Target
from bench.targets.direct import Direct
from bench.targets.litellm import LiteLLM
from bench.targets.nginx import Nginx
from bench.targets.starlette_httpx import StarletteHttpx
from bench.targets.strop import Strop

__all__ = ["ALL", "QUICK", "Running", "Site", "Target"]

ALL: tuple[Target, ...] = (
    Direct(),
    Nginx(),
    Strop("strop"),
    Strop("strop-no-capture", {"STROP_CAPTURE_MODE": "off"}),
    Strop("strop-2-workers", {"STROP_SERVER_WORKERS": "2"}, takes_all_cores=True),
    StarletteHttpx(),
    LiteLLM(),
)
QUICK = ("direct", "nginx", "strop", "strop-no-capture")
