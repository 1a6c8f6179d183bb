"""What people call the bases that versions are of: a name, and a few digits of the identity.

The name is that of the folder that a run trained, or the hub id. Identifies nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson

from strop.proxy.store.version_records import Version

if TYPE_CHECKING:
    # The store names bases in its errors.
    from strop.proxy.store.store import Store

_NUM_DIGITS: Final = 8
_SNAPSHOTS: Final = "snapshots"


def shown(identity: str, folder: str | Path | None) -> str:
    """Return a base with this identity for people; `folder` is where it is, or was, if known."""
    digits = identity.removeprefix("sha256:")[:_NUM_DIGITS]
    if folder is None or not (parts := Path(folder).parts):
        return digits
    name = parts[-1]
    # A model in the hub's cache: models--owner--name/snapshots/revision.
    if len(parts) >= 3 and parts[-2] == _SNAPSHOTS:
        name = parts[-3].removeprefix("models--").replace("--", "/")
    return f"{name} ({digits})"


async def names(store: "Store", versions: Sequence[Version]) -> dict[str, str]:
    """Return what to call the base of each of `versions`, by its identity."""
    found = {}
    for identity in dict.fromkeys(one.base for one in versions):
        runs = (one.run for one in versions if one.base == identity and one.run is not None)
        run = next(runs, None)
        made = None if run is None else await store.runs.get(run)
        config = {} if made is None else orjson.loads(made.config)
        found[identity] = shown(identity, config.get("base_path"))
    return found
