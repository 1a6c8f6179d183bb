"""strop itself, from the environment that runs the benchmark, with a fresh home."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.answers import MODEL
from bench.processes import Child, free_port
from bench.targets.base import Running, Site

_COMMAND = Path(sys.executable).with_name("strop")


class Strop:
    """A `strop serve` in front of the fake vLLM.

    Args:
        name: the target's name.
        environment: settings that differ from the defaults.
        takes_all_cores: whether it runs on the load's core too, for want of others.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        *,
        takes_all_cores: bool = False,
    ) -> None:
        self._name = name
        self._environment = dict(environment or {})
        self._takes_all_cores = takes_all_cores

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""
        return self._name

    def missing(self) -> str | None:
        """Return how to install it, where it is not."""
        return None if _COMMAND.exists() else f"{_COMMAND} is missing; `pip install -e .`"

    def version(self) -> str:
        """Return the installed version."""
        try:
            return version("strop")
        except PackageNotFoundError:
            return "unknown"

    def start(self, site: Site, home: Path | None = None, ready_at: str = "/v1/models") -> Running:
        """Start it on this home, by default a fresh one below the site's folder.

        It counts as started once a GET of `ready_at` is answered.
        """
        port, home = free_port(), home or site.folder / "home"
        child = Child(
            self.name,
            [
                *(str(_COMMAND), "serve", "--home", str(home)),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--engine", "vllm", "--engine-url", f"http://127.0.0.1:{site.upstream_port}"),
                *("--model-name", MODEL),
            ],
            cores=set(range(os.cpu_count() or 1)) if self._takes_all_cores else set(site.cores),
            log=site.folder / "log",
            env=self._environment,
        )
        try:
            child.wait_ready(port, ready_at, headers={}, within_s=30)
        except BaseException:
            child.stop()
            raise
        records = self._environment.get("STROP_CAPTURE_MODE") != "off"
        return Running(self.name, port, port, child, home=home, records=records)
