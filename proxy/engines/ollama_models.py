"""The models that strop has made in Ollama, one for each version, as a file in the home keeps them.

Asks Ollama nothing: what was noted may be gone there.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.adapters import durable

_OURS = "-strop"


@dataclass(frozen=True, slots=True)
class Made:
    """A model that was made.

    Attributes:
        tag: its name in Ollama.
        folder: of the version that it is of.
        base: Ollama's digest of the model that it was made of; empty where that isn't known.
    """

    tag: str
    folder: Path
    base: str = ""


class OllamaModels:
    """What was made, also by a strop that ran before.

    Args:
        file: says so; none that can be read means nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._made = _read(file)

    def all(self) -> Mapping[str, Made]:
        """Return them by served name."""
        return self._made

    def get(self, name: str) -> Made | None:
        """Return what was made for a served name."""
        return self._made.get(name)

    async def add(self, name: str, made: Made) -> None:
        """Note a model before it is made: it is found again, whatever happens then."""
        self._made[name] = made
        await self._write()

    async def remove(self, name: str) -> None:
        """Forget a model that is gone."""
        del self._made[name]
        await self._write()

    async def _write(self) -> None:
        made = {name: [one.tag, str(one.folder), one.base] for name, one in self._made.items()}
        text = json.dumps(made)

        def write() -> None:
            scratch = self._file.with_suffix(".new")
            scratch.write_text(text, encoding="utf-8")
            durable.publish(scratch, self._file)

        await asyncio.to_thread(write)


def cards_in(said: object) -> list[dict[str, Any]]:
    """Return the models in one of Ollama's lists."""
    cards = said.get("models") if isinstance(said, dict) else None
    return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []


def is_ours(tag: str) -> bool:
    """Whether strop made this model."""
    return tag.rpartition(":")[0].endswith(_OURS)


def tag_for(model: str, name: str, digest: str) -> str:
    """Return what the model of a version is called: never the same for other weights.

    Several homes may share one Ollama, and each has a v1: the file's digest tells them apart.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", model.removesuffix(":latest"))[:60]
    return f"{stem}{_OURS}:{name.rpartition('@')[2]}-{digest[:12]}"


def _read(file: Path) -> dict[str, Made]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return {
            # Without the base in what earlier versions noted.
            str(name): Made(str(tag), Path(folder), *map(str, base))
            for name, (tag, folder, *base) in said.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
