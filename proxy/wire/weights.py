"""The fields of a request that choose weights or files on an engine's side.

Pure. Only strop's own model names choose weights, whichever engine serves.
"""

from collections.abc import Mapping
from typing import Final

from strop.proxy.errors import BadRequest

FIELDS: Final = ("adapters", "draft_model", "lora", "lora_request", "lora_path")


def refuse(fields: Mapping[str, object]) -> None:
    """Raise BadRequest where a request tries to choose weights or files itself."""
    for name in FIELDS:
        if name in fields:
            raise BadRequest(
                f"`{name}` is not accepted: strop decides which weights answer; choose a version by"
                ' the model name, for instance "model": "<name>@base"',
                param=name,
            )
