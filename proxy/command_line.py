"""Commands of strop's that people copy from what it prints.

Runs none, and doesn't know which there are.
"""

from pathlib import Path

from strop.configs import installation
from strop.proxy.settings.settings import home_hint


def to_copy(words: str, home: Path) -> str:
    """Return `strop` and `words` as they can be typed here, for this home.

    With the path of strop where no PATH has it, and the home where it isn't the default.
    """
    return f"{installation.strop()} {words}{home_hint(home)}"
