"""How this strop is installed: the commands that run it, and that add to it, from where one is.

Installs nothing, and doesn't know what is in an extra: pyproject.toml does.
"""

import contextlib
import importlib.util
import os
import platform
import shlex
import shutil
import site
import sys
import sysconfig
from pathlib import Path

# In a clone, beside the folders of strop; of a wheel there is none.
_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def strop() -> str:
    """Return what runs this strop from the current folder: `strop` if PATH has it, else a path."""
    script, on_path = Path(sys.executable).with_name("strop"), shutil.which("strop")
    if not script.is_file() or (on_path is not None and script.samefile(on_path)):
        return "strop"
    # It may lie elsewhere, or the folder be gone.
    with contextlib.suppress(ValueError, FileNotFoundError):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))


def module(name: str) -> tuple[str, ...]:
    """Return the command line that runs a module of strop's.

    What lies in the current folder, a project's own `random.py` or a clone of strop, is none of it.
    """
    return (sys.executable, "-P", "-m", name)


def install(requirement: str) -> str:
    """Return the shell command that adds `requirement`, as `strop[torch]`, to this very Python.

    It works from any folder, and for a strop that no index has: the one that is here counts as
    installed, and only what its extra names is fetched. Where this user can't add to this Python,
    as in an image, it returns who can, and how.
    """
    folder = sysconfig.get_path("purelib")
    # pip goes to the user's own folder where there is one.
    if not os.access(folder, os.W_OK) and not site.ENABLE_USER_SITE:
        return (
            f"add {requirement} as a user who may write to {folder}; or in a container, build the"
            " image with it, as docker/Dockerfile.trainer does with torch"
        )
    # An environment that uv made has no pip.
    has_pip = importlib.util.find_spec("pip") is not None
    words = [sys.executable, "-m", "pip", "install"]
    if not has_pip:
        words = ["uv", "pip", "install", "--python", sys.executable]
    if _CONSTRAINTS.is_file():
        words += ["-c", str(_CONSTRAINTS)]
    return shlex.join([*words, requirement])


def install_backend() -> str:
    """Return the shell command that adds what trains fastest on such a machine."""
    is_apple_silicon = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return install("strop[mlx]" if is_apple_silicon else "strop[torch]")
