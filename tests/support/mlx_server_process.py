"""A stock mlx_lm.server for the tests, started as a person starts it.

Knows nothing of the answers.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from ports import held_port

START_TIMEOUT_S = 90.0


@contextlib.contextmanager
def mlx_server(model: Path, *options: str, hub: Path, port: int = 0) -> Iterator[str]:
    """Run mlx_lm.server on `model`, on a free port or `port`; yield its URL once it listens.

    `hub` is its hub cache; where there is no such folder, its list of models is broken.
    """
    if not port:
        with held_port() as own, mlx_server(model, *options, hub=hub, port=own) as url:
            yield url
        return
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "MLX_DISABLE_COMPILE": "1",
        "HF_HUB_CACHE": str(hub),
    }
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _listens(url):
                assert process.poll() is None, "mlx_lm.server ended"
                assert time.monotonic() < deadline, "mlx_lm.server did not start"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def _listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
