"""Real llama-server processes for the tests, on GGUF files made of the fixture models.

Needs what `llamacpp_build` builds. Knows nothing of the answers.
"""

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import models
from llamacpp_build import SERVER, SOURCE
from ports import free_port

START_TIMEOUT_S = 60.0

# The fixtures' tokenizers split text as GPT-2's, which llama.cpp knows by a hash of theirs.
_CONVERT = """\
import sys
sys.path[:0] = [{source!r}, {source!r} + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv[0] = "convert_hf_to_gguf.py"
import runpy
runpy.run_path({source!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""

# Key and value caches in f32: in the default f16 they alone cost 4e-3 nats.
EXACT = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


@functools.cache
def gguf(folder: Path) -> Path:
    """Return a fixture model as a GGUF file in f32, made once."""
    made = models.cached(f"{folder.name}-gguf", lambda to: _make(folder, to))
    return made / "tiny.gguf"


def _make(folder: Path, to: Path) -> None:
    to.mkdir()
    code = _CONVERT.format(source=str(SOURCE))
    command = [sys.executable, "-c", code, str(folder), "--outtype", "f32"]
    command += ["--outfile", str(to / "tiny.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def llama_server(model: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Run llama-server on `model`, on a free port or `port`; yield its URL once it answers."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(SERVER), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", "1", "--ctx-size", "512", "--parallel", "2", *options]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _is_ready(url):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline, "llama-server did not start"
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
