"""A real vLLM for the tests: its CPU build, in an environment of its own, as a process.

Knows nothing of strop, or of what the model says. Installs what is not there yet (2.5 GB). A server
ends with the test process, however that ends.
"""

import fcntl
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-vllm"
PINS = Path(__file__).parent / "requirements-vllm.txt"
PYTHON = VENV / "bin" / "python"

NAME = "tiny"
KEY = "the-engines-key"
READY_TIMEOUT_S = 300
END_TIMEOUT_S = 30

# Without the first, the first request with logprobs compiles code for half a minute.
ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Routes for adapters, which load some with ADAPTERS only.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CACHE_ROOT": str(VENV / "cache"),
}
ADAPTERS = ("--enable-lora", "--max-loras", "32", "--max-cpu-loras", "32", "--max-lora-rank", "16")
"""The options of a server that loads adapters.

More slots than the tests fill: on a CPU, vLLM answers requests to the base with the adapter in the
last one, where they share a batch with requests to adapters.
"""

# Its own program, but for the signal that it gets when the tests are gone (PR_SET_PDEATHSIG).
_RUN = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.nice(5)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


class CannotInstallError(Exception):
    """vLLM can't be installed on this machine; the message says why."""


def install() -> None:
    """Make the environment, unless it is there with these pins.

    Raises:
        CannotInstallError: this machine, or the index that pip uses, has no build of it.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise CannotInstallError(
            f"the CPU build is for Linux on x86_64, this is {platform.system()} on"
            f" {platform.machine()}"
        )
    pins = f"{PINS.read_text(encoding='utf-8')}# Python {platform.python_version()}\n"
    stamp = VENV / ".installed"
    with (ROOT / ".venv-vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == pins:
            return
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, symlinks=True)
        # This environment's pip serves. Without dependencies: see PINS.
        pip = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-qq"]
        _call(*pip, "--disable-pip-version-check", "--no-deps", "-r", str(PINS))
        cuda = _call(str(PYTHON), "-c", "import torch; print(torch.version.cuda)").strip()
        if cuda != "None":
            raise CannotInstallError(
                f"pip found torch built for CUDA {cuda}; give it an index with torch's CPU builds"
            )
        stamp.write_text(pins, encoding="utf-8")


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise CannotInstallError(f"{' '.join(command[1:4])} ... failed: {said}")
    return done.stdout


class VllmServer:
    """A vLLM that serves `model` as `NAME`, in fp32, on a free port.

    Args:
        model: a folder in Hugging Face format.
        log: the file that gets what it says.
        options: further options of its command line.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *options: str,
    ) -> None:
        self.log = log
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(str(PYTHON), "-c", _RUN, "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", NAME),
            *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
            *("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "32"),
            *("--enforce-eager", "--enable-prompt-tokens-details", *options),
        ]
        self._environment = {**os.environ, **ENVIRONMENT}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is ready later."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return once it answers."""
        ends = time.monotonic() + READY_TIMEOUT_S
        assert self._process is not None
        while time.monotonic() < ends:
            assert self._process.poll() is None, f"vLLM ended while it started:\n{self.said()}"
            try:
                if httpx.get(f"{self.url}/health", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise AssertionError(f"vLLM was not ready within {READY_TIMEOUT_S} s:\n{self.said()}")

    def said(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def kill(self) -> None:
        """Kill it and its children at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """Stop it and its children; by force where it takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def client(self) -> httpx.AsyncClient:
        """Return a client of it, past any proxy."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.AsyncClient(base_url=self.url, timeout=120, headers=headers)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def vllm(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A vLLM that serves `qwen3`, and adapters of it."""
    yield from _running(
        VllmServer(
            qwen3,
            tmp_path_factory.mktemp("vllm") / "log",
            *ADAPTERS,
        )
    )


@pytest.fixture(scope="session")
def parsing_vllm(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A vLLM that serves `scripted`, parses tool calls and reasoning, and loads no adapters.

    Its logprobs are those after temperature and bias.
    """
    yield from _running(
        VllmServer(
            scripted,
            tmp_path_factory.mktemp("parsing-vllm") / "log",
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            *("--reasoning-parser", "qwen3", "--logprobs-mode", "processed_logprobs"),
        )
    )


def _running(server: VllmServer) -> Iterator[VllmServer]:
    install_or_skip()
    server.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()


def install_or_skip() -> None:
    """Install it, or skip whatever needs it, and say why."""
    try:
        install()
    except CannotInstallError as error:
        pytest.skip(str(error))
