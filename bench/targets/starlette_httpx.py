"""The proxy that most teams write first: Starlette and httpx, no capture. One uvicorn worker."""

import sys
from importlib.metadata import version

from bench.processes import Child, free_port
from bench.targets.base import Running, Site


class StarletteHttpx:
    """A uvicorn with `starlette_httpx_app` in front of the fake vLLM."""

    name = "starlette-httpx"

    def missing(self) -> str | None:
        """Return None: strop depends on both."""
        return None

    def version(self) -> str:
        """Return both versions."""
        return f"starlette {version('starlette')}, httpx {version('httpx')}"

    def start(self, site: Site) -> Running:
        """Start it."""
        port = free_port()
        child = Child(
            self.name,
            [
                *(sys.executable, "-m", "uvicorn", "bench.targets.starlette_httpx_app:app"),
                *("--host", "127.0.0.1", "--port", str(port), "--no-access-log"),
                *("--loop", "uvloop", "--http", "httptools", "--timeout-keep-alive", "3600"),
            ],
            cores=set(site.cores),
            log=site.folder / "log",
            env={"UPSTREAM": f"http://127.0.0.1:{site.upstream_port}"},
        )
        try:
            child.wait_ready(port, "/v1/models", headers={}, within_s=20)
        except BaseException:
            child.stop()
            raise
        return Running(self.name, port, port, child)
