"""A server of adapter versions that nothing may be asked of.

For fakes that answer a part: what they leave out fails a test that needs it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from strop.proxy.engines.base import AdapterControl


class Unasked(AdapterControl):
    """The server."""

    async def prepare(self, name: str, folder: Path) -> None:
        """Fail."""
        raise AssertionError(name, folder)

    async def load(self, name: str, folder: Path) -> None:
        """Fail."""
        raise AssertionError(name, folder)

    async def unload(self, name: str) -> None:
        """Fail."""
        raise AssertionError(name)

    async def loaded(self) -> Mapping[str, str]:
        """Fail."""
        raise AssertionError

    async def generate(
        self, name: str, prompt_ids: Sequence[int], num_tokens: int, *, uses_cache: bool
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Fail."""
        raise AssertionError(name, prompt_ids, num_tokens, uses_cache)

    async def score(
        self, name: str, prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Fail."""
        raise AssertionError(name, prompt_ids, ids)
