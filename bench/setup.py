"""Installs the targets that strop itself doesn't depend on: nginx, wrk, LiteLLM.

Run as `python -m bench.setup`. nginx and wrk come from the distribution; LiteLLM gets an
environment of its own under bench/, because its pins would fight ours.
"""

import os
import shutil
import subprocess
import sys

from bench import wrk
from bench.targets.litellm import ENVIRONMENT, REQUIREMENT, LiteLLM
from bench.targets.nginx import Nginx


def main() -> int:
    """Install what is missing; returns 1 if something still is."""
    wanted = [] if Nginx().missing() is None else ["nginx-core"]
    wanted += [] if wrk.is_installed() else ["wrk"]
    if wanted and not _install_packages(wanted):
        print(f"install by hand: {' '.join(wanted)} (Debian's names)", file=sys.stderr)
    if LiteLLM().missing() is not None:
        print(f"installing {REQUIREMENT} into {ENVIRONMENT}")
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        # As newer Pythons do themselves.
        (ENVIRONMENT / ".gitignore").write_text("*\n")
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, REQUIREMENT], check=False)
    missing = [m for m in (Nginx().missing(), LiteLLM().missing()) if m]
    if not wrk.is_installed():
        missing.append("wrk is not installed: nginx under JSON is then limited by the load")
    for each in missing:
        print(each, file=sys.stderr)
    return 1 if missing else 0


def _install_packages(names: list[str]) -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *names]
    if subprocess.run(install, check=False).returncode == 0:
        return True
    subprocess.run(["apt-get", "update"], check=False)
    return subprocess.run(install, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
