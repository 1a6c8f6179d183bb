"""Settings that name a file or a folder: where a relative one begins, and whether it is a path.

Looks at the disk, and reads no file. What is no path is a model of the hub, or a preset's name.
"""

import os
from pathlib import Path
from typing import Final

from strop import configs

PRESET: Final = "training.preset"
NAMES: Final = ("model.path", "model.base", PRESET)
"""The settings that may be paths of this machine."""


def resolved(name: str, value: str, folder: Path) -> str:
    """Return the whole path that the setting `name` stands for, or `value` where it is none.

    It is one where it is there, and where it looks like one: then whoever needs it says that it
    isn't there, and nobody fetches it.

    Args:
        name: one of `NAMES`.
        value: what it is set to; "" and a shipped preset's name stand for themselves.
        folder: where a relative path begins.
    """
    if not value or (name == PRESET and value in configs.presets()):
        return value
    whole = folder / os.path.expanduser(value)  # noqa: PTH111  a user who isn't there is no error
    is_there = whole.is_file() if name == PRESET else whole.is_dir()
    return str(whole) if is_there or looks_like_path(name, value) else value


def looks_like_path(name: str, value: str) -> bool:
    """Whether `value` is meant as a path: a hub id has at most one slash, inside."""
    if value.startswith(("/", ".", "~")) or value.endswith("/") or value.count("/") > 1:
        return True
    return name == PRESET and ("/" in value or bool(Path(value).suffix))
