"""Installs TRL into an environment of its own, where it is missing.

Run as `python -m bench.learning.setup`.
"""

import sys

from bench.learning import trl_kto


def main() -> int:
    """Install it; returns 1 if it still is missing."""
    if trl_kto.missing():
        trl_kto.install()
    if obstacle := trl_kto.missing():
        print(obstacle, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
