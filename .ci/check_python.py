"""Says why this Python can't have what the Makefile installs, and then exits with 1.

Runs before anything is installed, so in older Pythons too. An argument is the Python of an
environment, which has to be of this one's version, and for this one's machine.
"""

import platform
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 14)
"""What the pinned packages have wheels for; newer ones would be compiled."""

OLDEST_MACOS = 14
_WHICH = "import platform, sys; print('%d.%d' % sys.version_info[:2], platform.machine())"


def why_not(version: tuple, system: str, machine: str, macos: str) -> str:
    """Return why MLX and the other pinned packages can't be installed; empty where they can."""
    if not OLDEST <= version <= NEWEST:
        return (
            f"strop needs Python {_dotted(OLDEST)} to {_dotted(NEWEST)}; got {_dotted(version)}."
            " Say which: make PYTHON=python3.13 install"
        )
    if system != "Darwin":
        return ""
    # Homebrew of an Intel Mac, brought along, has Pythons that run under Rosetta.
    if machine != "arm64":
        return (
            f"strop's own engine needs Apple Silicon, and a Python for it; this one is for"
            f" {machine}. Say which: make PYTHON=/opt/homebrew/bin/python3.13 install; README.md"
            " says how an Intel Mac gets strop without an engine of its own"
        )
    if int(macos.split(".")[0]) < OLDEST_MACOS:
        return (
            f"strop's own engine needs macOS {OLDEST_MACOS} or newer; got {macos}. README.md says"
            " how to get strop without an engine of its own"
        )
    return ""


def main() -> str:
    """Return what is wrong; empty for nothing."""
    wrong = why_not(
        sys.version_info[:2], platform.system(), platform.machine(), platform.mac_ver()[0]
    )
    if wrong or len(sys.argv) == 1:
        return wrong
    here, there = (
        subprocess.check_output([python, "-c", _WHICH]).decode().strip()
        for python in (sys.executable, sys.argv[1])
    )
    if here == there:
        return ""
    return f".venv has Python {there}, not {here}: make clean first, which deletes .venv"


def _dotted(version: tuple) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main() or None)
