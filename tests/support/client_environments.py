"""Stock clients, each in an environment of its own under `.cache/clients`, made on first use.

Knows nothing of strop, or of what the clients say. Downloads what is not there yet.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

SCRIPTS = Path(__file__).parents[1] / "clients"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "clients"

# OpenClaw takes twenty seconds for each message.
RUN_TIMEOUT_S = 300


@dataclass(frozen=True)
class Client:
    """A client and the script that uses it.

    Attributes:
        script: in `SCRIPTS`, without its ending.
        runtime: what runs it.
        packages: names and versions to install, the client's own first.
        tool: the one that the model is to call.
        has_side_requests: whether it asks for more than its user did, such as a title, without
            tools.
    """

    script: str
    runtime: Literal["python", "node"]
    packages: Mapping[str, str]
    tool: str = "get_weather"
    has_side_requests: bool = False

    @property
    def version(self) -> str:
        """The client's own version."""
        return next(iter(self.packages.values()))

    @property
    def folder(self) -> Path:
        """Its environment."""
        return CACHE / f"{self.script}-{self.version}"

    def run(self, *arguments: str, env: Mapping[str, str], cwd: Path) -> str:
        """Run the script, with nothing in its environment but `env` and PATH; return its output."""
        if self.runtime == "python":
            # Isolated: a script named like its package must not be taken for it.
            command = [str(self.folder / "bin" / "python"), "-I", f"{SCRIPTS / self.script}.py"]
        else:
            # Node looks for packages beside the script.
            script = shutil.copy(f"{SCRIPTS / self.script}.mjs", str(self.folder))
            own = self._own_node
            command = ["node" if own is None else str(own / "node"), script]
        done = subprocess.run(
            [*command, *arguments],
            env={"PATH": os.environ["PATH"], **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        assert 0 == done.returncode, done.stderr + done.stdout
        return done.stdout

    def install(self) -> None:
        """Make the environment, unless it is there with these packages.

        Skips the test where the client's runtime is missing.
        """
        if self.runtime == "node":
            missing = [name for name in ("node", "npm") if shutil.which(name) is None]
            if missing:
                pytest.skip(f"{self.script} NOT TRIED: it needs node and npm; not found: {missing}")
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stamp, pins = self.folder / ".installed", json.dumps(self.packages)
            if stamp.is_file() and stamp.read_text(encoding="utf-8") == pins:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            if self.runtime == "python":
                self._install_python()
            else:
                self._install_node()
            stamp.write_text(pins, encoding="utf-8")

    def _install_python(self) -> None:
        venv.create(self.folder, symlinks=True)
        pins = [f"{name}=={version}" for name, version in self.packages.items()]
        # This environment's pip serves: a new one in each costs more than some of the clients.
        python = str(self.folder / "bin" / "python")
        self._call(
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
            *("--disable-pip-version-check", *pins),
        )

    def _install_node(self) -> None:
        if "node" in self.packages:
            # What is installed after it looks which Node installs it.
            self._npm_install({"node": self.packages["node"]})
        self._npm_install(self.packages)

    def _npm_install(self, packages: Mapping[str, str]) -> None:
        package = {"private": True, "dependencies": packages}
        (self.folder / "package.json").write_text(json.dumps(package), encoding="utf-8")
        self._call("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")

    @property
    def _own_node(self) -> Path | None:
        """The folder of a Node that is among the packages, once it is installed."""
        folder = self.folder / "node_modules" / ".bin"
        return folder if (folder / "node").exists() else None

    def _call(self, *command: str) -> None:
        path = os.environ["PATH"]
        if self._own_node is not None:
            path = f"{self._own_node}{os.pathsep}{path}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, f"could not install {self.script}:\n{done.stderr}"


OPENAI_RESPONSES = Client("openai_responses", "python", {"openai": "3.52.0"})
"""The package of the first of `AGENTS`, by its newer API."""

ANTHROPIC = Client("anthropic_python", "python", {"anthropic": "2.11.0"})

AGENTS = (
    Client("openai_python", "python", {"openai": "3.52.0"}),
    OPENAI_RESPONSES,
    Client("openai_node", "node", {"openai": "6.49.0"}),
    Client("ai_sdk", "node", {"ai": "6.0.326", "@ai-sdk/openai-compatible": "2.0.87"}),
    Client("ai_sdk_openai", "node", {"ai": "6.0.326", "@ai-sdk/openai": "3.0.141"}),
    Client("langchain_openai", "python", {"langchain-openai": "1.7.3"}),
    Client("pydantic_ai", "python", {"pydantic-ai-slim[openai]": "2.68.0"}),
    Client("openai_agents", "python", {"openai-agents": "0.24.0"}),
    Client("llm", "python", {"llm": "0.36"}),
    ANTHROPIC,
)
"""Clients that let the model choose its tools."""

INSTRUCTOR = Client("instructor", "python", {"instructor": "1.17.0"})
"""It forces a tool, which not every engine can."""

CODING_AGENTS = (
    Client("pi", "node", {"@earendil-works/pi-coding-agent": "0.74.2"}, tool="bash"),
    Client("opencode", "node", {"opencode-ai": "1.18.33"}, tool="bash", has_side_requests=True),
    Client("codex", "node", {"@openai/codex": "0.169.0"}, tool="exec_command"),
    Client("claude_code", "node", {"@anthropic-ai/claude-code": "2.1.197"}, tool="Bash"),
    Client("openclaw", "node", {"openclaw": "2026.9.6", "node": "26.10.0"}, tool="exec"),
)
"""They are large, and so are their prompts."""
