"""Builds llama-server for the tests that need it, once for each machine: `make test-llamacpp`.

Knows no model and starts nothing. The sources are those that llama-cpp-python carries, pinned; what
is built stays in `.cache/llamacpp`, out of the repository. Half an hour on two cores.

    python tests/support/llamacpp_build.py [JOBS]
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
"""Carries llama.cpp v0.5.0-dev, commit 0c1e57098 of 2026-10-01."""

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "llamacpp" / VERSION
SERVER = CACHE / "llama-server"
SOURCE = CACHE / "source"

# No CUDA, no OpenMP, no web page, and nothing of this processor's own: what any x86-64 runs.
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "OFF",
    "GGML_AVX2": "ON",
    "GGML_FMA": "ON",
    "GGML_F16C": "ON",
    "GGML_BMI2": "ON",
    "GGML_OPENMP": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def build(num_jobs: int = 1) -> Path:
    """Return llama-server, built unless it is there; the sources stay beside it.

    A build that was broken off goes on where it was.
    """
    if SERVER.is_file():
        return SERVER
    missing = [tool for tool in ("cmake", "ninja", "g++") if shutil.which(tool) is None]
    if missing:
        raise SystemExit(f"building llama-server needs {', '.join(missing)}; install them")
    CACHE.mkdir(parents=True, exist_ok=True)
    _fetch()
    made = CACHE / "build"
    options = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    subprocess.run(["cmake", "-S", SOURCE, "-B", made, "-G", "Ninja", *options], check=True)
    subprocess.run(["ninja", "-C", made, f"-j{num_jobs}", "llama-server"], check=True)
    shutil.copy2(made / "bin" / "llama-server", SERVER.with_suffix(".new"))
    SERVER.with_suffix(".new").rename(SERVER)
    return SERVER


def _fetch() -> None:
    """Put llama.cpp's sources into `SOURCE`, whole or not at all."""
    if SOURCE.is_dir():
        return
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE]
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        subprocess.run([*pip, "--dest", scratch, f"{PACKAGE}=={VERSION}"], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (top,) = Path(scratch).glob("llama_cpp_python-*/vendor/llama.cpp")
        top.rename(SOURCE)


if __name__ == "__main__":
    print(build(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
