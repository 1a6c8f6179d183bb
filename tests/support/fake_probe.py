"""A probe job's process that loads no model: it writes a given file as the probe, or says no."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from strop.proxy.versions.probe_job import ProbeJob

NO_PROBE = "no probe could be made: it was not wanted"


def command(
    behaviour: str = "refuses", probe: Path | None = None
) -> Callable[[ProbeJob, Path, Path, Path], Sequence[str]]:
    """Return the command line of a job that `refuses`, `dies`, `waits`, or `writes` the file.

    One that `trains` finds a run under way.
    """
    return lambda job, base, adapter, out: [  # noqa: ARG005
        *(sys.executable, __file__, behaviour, str(probe), str(out))
    ]


def main(behaviour: str, probe: str, out: str) -> int:
    """Behave so; return the exit status."""
    if behaviour == "writes":
        shutil.copyfile(probe, out)
        return 0
    if behaviour == "waits":
        Path(out).with_name("begun").touch()
        time.sleep(600)
    if behaviour == "refuses":
        print(NO_PROBE, file=sys.stderr)
        return 1
    return os.EX_TEMPFAIL if behaviour == "trains" else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
