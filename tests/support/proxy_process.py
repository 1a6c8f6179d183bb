"""A proxy started as a person starts it, `strop serve`, and read as its owner reads it.

Knows nothing of the engine behind it.
"""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from waiting import LIMIT_S


@dataclass(frozen=True)
class ProxyProcess:
    """A running proxy: where clients find it, and its home."""

    base_url: str
    home: Path

    def _get(self, path: str, **query: str) -> Any:
        admin_key = (self.home / "admin.key").read_text(encoding="utf-8").strip()
        answer = httpx.get(
            self.base_url.removesuffix("/v1") + path,
            params=query,
            headers={"authorization": f"Bearer {admin_key}"},
            timeout=LIMIT_S,
        )
        assert 200 == answer.status_code, answer.text
        return answer.json()

    def newest(self) -> str | None:
        """Return the newest completion's id."""
        found = self._get("/admin/completions", limit="1")["data"]
        return found[0]["id"] if found else None

    def completions_since(self, identity: str | None) -> list[dict[str, Any]]:
        """Return the completions after the one with this id, whole, oldest first."""
        new = []
        for one in self._get("/admin/completions", limit="100")["data"]:
            if one["id"] == identity:
                break
            new.append(self._get(f"/admin/completions/{one['id']}"))
        return new[::-1]


@contextlib.contextmanager
def serving(home: Path, *options: str) -> Iterator[ProxyProcess]:
    """Run `strop serve` with these options on a free port, until the block ends."""
    home.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "strop.proxy.cli", "serve", "--home", str(home)]
    with (
        (home / "proxy.log").open("w") as log,
        subprocess.Popen(
            [*command, "--port", "0", *options], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            told = (re.search(r"OPENAI_BASE_URL=(\S+)", line) for line in lines)
            found = next((one for one in told if one), None)
            assert found is not None, (home / "proxy.log").read_text(encoding="utf-8")
            yield ProxyProcess(found[1], home)
        finally:
            process.terminate()
    assert 0 == process.returncode
