"""The servers: `strop serve` before its embedded engine or a vLLM, and a stock mlx_lm.server.

Each is started as a person starts it. Measures nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from bench import cores
from bench.processes import Child, free_port
from bench.swap.figures import Reply
from bench.swap.streams import ask, post
from strop.adapters import mlx_environment
from strop.proxy.configured_engine import EMBEDDED_ADAPTERS

MODEL = "bench"
VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
_COMMAND = Path(sys.executable).with_name("strop")
_START_S = 120.0
_VLLM_START_S = 300.0
# What strop lets stay loaded, so that going back costs nothing.
_NUM_HELD_EMBEDDED, _NUM_HELD_VLLM = EMBEDDED_ADAPTERS, 2
_STREAM = {"stream": True, "temperature": 1.0}
# What strop's own engine sets, for the stock server too.
_MLX = {**mlx_environment.VARIABLES, "HF_HUB_OFFLINE": "1"}
if sys.platform == "linux":
    # Compiled, each new kernel costs seconds of a C++ compiler.
    _MLX["MLX_DISABLE_COMPILE"] = "1"
# Without the first, the first request with logprobs compiles code for half a minute.
_VLLM = {
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}


class Refused(RuntimeError):
    """The server answered an administrator's request with an error."""


class Strop:
    """strop on a home that has versions.

    Args:
        home: its home.
        base: the model's folder.
        versions: the ids of the versions.
        engine: the URL of a vLLM; empty for the embedded engine.

    Attributes:
        name: in tables.
        num_held: how many versions stay loaded.
        current: the version that is active, as far as its clients know.
        child: its process, the parent of the embedded engine's.
    """

    keeps_versions = True

    def __init__(self, home: Path, base: Path, versions: Sequence[str], engine: str = "") -> None:
        self.name = "strop, vLLM" if engine else "strop"
        self.num_held = _NUM_HELD_VLLM if engine else _NUM_HELD_EMBEDDED
        self.versions = versions
        self.current = "base"
        self.port = free_port()
        self.home = home
        command = [str(_COMMAND), "serve", "--home", str(home), "--port", str(self.port)]
        command += ["--model-name", MODEL, "--set", "training.enabled=false"]
        if engine:
            command += ["--engine", "vllm", "--engine-url", engine]
            command += ["--set", f"model.base={base}"]
        else:
            command += ["--engine", "embedded", "--model", str(base)]
        log = home.with_suffix(".log")
        self.child = Child(self.name, command, cores=cores.allowed(), log=log, env=_MLX)

    def wait_ready(self) -> None:
        """Return once it serves; raises StartError."""
        self.child.wait_ready(self.port, "/readyz", headers={}, within_s=_START_S)
        self._key = (self.home / "admin.key").read_text().strip()

    def request(self, text: str, num_tokens: int) -> bytes:
        """Return a request that pins no version."""
        return post(self.port, "/v1/chat/completions", _chat(MODEL, text, num_tokens))

    async def switch(self, version: str) -> dict[str, Any]:
        """Activate a version; return the activation object once it serves.

        Raises:
            Refused: it was not done.
        """
        key, path = f"Authorization: Bearer {self._key}", "/admin/adapters/active"
        asked = post(self.port, path, {"version": version}, key, method="PUT")
        said: Reply = await ask(self.port, asked)
        if said.status != 200:
            raise Refused(f"{version}: {said.status} {said.body.decode()} {said.trouble}")
        self.current = version
        done: dict[str, Any] = orjson.loads(said.body)
        return done


class Stock:
    """A stock mlx_lm.server: a request names the model's folder and the adapter's.

    Args:
        base: the model's folder.
        adapters: the folders of its adapters, in mlx-lm's format; without any it serves the base.
        log: where its output goes; its hub cache is a folder beside that.

    Attributes:
        current: the folder of the adapter that its clients name now; empty for the base.
        child: its process.
    """

    name = "mlx_lm.server"
    keeps_versions = False

    def __init__(self, base: Path, adapters: Sequence[Path], log: Path) -> None:
        self.versions = [str(adapter) for adapter in adapters]
        self.current = self.versions[0] if self.versions else ""
        self.port = free_port()
        self._base = str(base)
        hub = log.parent / "hub"
        # Without such a folder its list of models is broken.
        hub.mkdir()
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(base)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "ERROR"]
        env = {**_MLX, "HF_HUB_CACHE": str(hub)}
        self.child = Child(self.name, command, cores=cores.allowed(), log=log, env=env)

    def wait_ready(self) -> None:
        """Return once it listens; it has loaded nothing then. Raises StartError."""
        self.child.wait_ready(self.port, "/health", headers={}, within_s=_START_S)

    def request(self, text: str, num_tokens: int) -> bytes:
        """Return a request that names the current adapter."""
        fields = _chat(self._base, text, num_tokens)
        if self.current:
            fields["adapters"] = self.current
        return post(self.port, "/v1/chat/completions", fields)

    async def switch(self, version: str) -> dict[str, Any]:
        """Let clients name another adapter from here on; that is all there is to do."""
        self.current = version
        return {}


def start_vllm(base: Path, log: Path) -> tuple[Child, str]:
    """Start vLLM's CPU build on `base`, with room for adapters; return it and its URL.

    Raises:
        StartError: it does not serve.
    """
    port = free_port()
    command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(base), "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "48", "--enforce-eager"]
    command += ["--enable-lora", "--max-loras", "8", "--max-cpu-loras", "16"]
    child = Child("vLLM", command, cores=cores.allowed(), log=log, env=_VLLM)
    child.wait_ready(port, "/health", headers={}, within_s=_VLLM_START_S)
    return child, f"http://127.0.0.1:{port}"


def _chat(model: str, text: str, num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": num_tokens, **_STREAM}
