"""No proxy: the load speaks to the fake engine itself. The floor of every latency."""

from bench.targets.base import Running, Site


class Direct:
    """Nothing between."""

    name = "direct"

    def missing(self) -> str | None:
        """Return None: nothing to install."""
        return None

    def version(self) -> str:
        """Return nothing: there is no version."""
        return ""

    def start(self, site: Site) -> Running:
        """Return the engine's own port."""
        return Running(self.name, json_port=site.upstream_port, stream_port=site.upstream_port)
