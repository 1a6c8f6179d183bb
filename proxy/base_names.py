"""What people call the bases that versions are of: a name, and a few digits of the identity.

The name is that of the folder that a run trained, or the hub id. Identifies nothing.
"""

from pathlib import Path
from typing import Final

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
