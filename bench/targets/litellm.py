"""LiteLLM's proxy: an explicit model, no database, no callbacks, one worker.

Lives in an environment of its own.
"""

import json
import subprocess
from pathlib import Path

from bench.answers import MODEL
from bench.processes import Child, free_port
from bench.targets.base import Running, Site
from bench.workloads import API_KEY

ENVIRONMENT = Path(__file__).parents[1] / ".venv-litellm"
# Later ones pin a certifi that not every mirror holds.
REQUIREMENT = "litellm[proxy]==1.106.2"


class LiteLLM:
    """A `litellm` in front of the fake vLLM."""

    name = "litellm"

    def missing(self) -> str | None:
        """Return how to install it, where it is not."""
        if (ENVIRONMENT / "bin" / "litellm").exists():
            return None
        return "LiteLLM is not installed; run `python -m bench.setup`"

    def version(self) -> str:
        """Return the version in its environment."""
        question = "import importlib.metadata as m; print(m.version('litellm'))"
        said = subprocess.run(
            [ENVIRONMENT / "bin" / "python", "-c", question],
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout.strip()

    def start(self, site: Site) -> Running:
        """Write its configuration and start it."""
        port = free_port()
        config = site.folder / "config.json"
        config.write_text(
            json.dumps(
                {
                    "model_list": [
                        {
                            "model_name": MODEL,
                            "litellm_params": {
                                "model": f"hosted_vllm/{MODEL}",
                                "api_base": f"http://127.0.0.1:{site.upstream_port}/v1",
                                "api_key": "none",
                            },
                        }
                    ],
                    "general_settings": {"master_key": API_KEY},
                }
            )
        )
        child = Child(
            self.name,
            [
                *(str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config)),
                *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
                *("--telemetry", "False"),
            ],
            cores=set(site.cores),
            log=site.folder / "log",
            env={
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "LITELLM_LOG": "ERROR",
                "NO_PROXY": "127.0.0.1",
                "PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin",
            },
        )
        try:
            headers = {"Authorization": f"Bearer {API_KEY}"}
            child.wait_ready(port, "/v1/models", headers=headers, within_s=120)
        except BaseException:
            child.stop()
            raise
        return Running(self.name, port, port, child)
