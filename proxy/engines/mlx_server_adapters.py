"""Adapter versions on a stock mlx_lm.server: one at a time, named in each request by their folder.

Converts a PEFT folder to mlx_lm's format first. Loading one drops the base from memory and reads it
again; one that can't be loaded leaves nothing loaded, so it is converted and checked before.
"""

import asyncio
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.adapters.base_model import InvalidBase
from strop.adapters.peft import InvalidAdapter
from strop.proxy.engines.calls import LOAD_TIMEOUT_S, Calls
from strop.proxy.engines.tokens import TokenText
from strop.proxy.errors import Unavailable, UpstreamError
from strop.proxy.upstream.engine_connection import EngineConnection

DEFAULT_MODEL = "default_model"
"""What the server calls the model of its command line. With it, it ignores `adapters`."""

NOT_NAMED = (
    "it lists models of the hub, or none for want of a hub cache, and doesn't say which is its own,"
    " so it can't be asked for adapters; name the folder that it serves, or its id in /v1/models:"
    " strop serve --engine mlx_server --model MODEL"
)

Convert = Callable[[Path, Path, Path], None]
"""Writes the adapter at the first path, of the base at the second, to the third."""


class MlxServerAdapters:
    """The adapter control of one server, on the machine where strop runs.

    Args:
        calls: to the server.
        base: the folder of the base, in Hugging Face format.
        folder: where converted versions are kept, each in a folder of its own: the server keeps
            its caches by path, so a path is never used for other weights.
        convert: writes the server's format.
    """

    def __init__(self, calls: Calls, *, base: Path, folder: Path, convert: Convert) -> None:
        self.active: str | None = None
        self._calls = calls
        self._base = base
        self._folder = folder
        self._convert = convert
        self._sources: dict[str, Path] = {}
        self._model = ""
        self._base_name = ""
        self._tokens = TokenText(base)
        self._line: EngineConnection | None = None

    def serves(self, model: str, name: str) -> None:
        """Note what the server calls the base, and what strop does.

        Started anew with another, it would be asked for versions on that one, and answer.
        """
        if self._model not in ("", model):
            self.forget()
        self._model, self._base_name = model, name

    def forget(self) -> None:
        """Take nothing for loaded: the server was away, so what it answers must be proven again."""
        self._sources, self.active = {}, None

    def path_of(self, name: str) -> str | None:
        """Return the folder to name in a request for `name`; None unless that is loaded."""
        return str(self._converted(self._sources[name])) if name in self._sources else None

    def members(self) -> "Mapping[str, MlxServerAdapters]":
        """Return this one."""
        return {"mlx_server": self}

    async def prepare(self, name: str, folder: Path) -> None:
        """Convert `folder`, unless that was done before.

        Raises:
            UpstreamError: it can't be converted.
        """
        converted = self._converted(folder)
        if converted.is_dir():
            return
        converted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self._convert, folder, self._base, converted)
        except (InvalidAdapter, InvalidBase, ImportError) as error:
            raise UpstreamError(f"{name} can't be converted for mlx_lm.server: {error}") from error

    async def load(self, name: str, folder: Path) -> None:
        """Let the server load `folder` in the place of what it holds, and answer with a token."""
        if (await self.loaded()).get(name) == str(folder):
            return
        await self.prepare(name, folder)
        if self._line is None or self._line.is_lost:
            self._line = await self._calls.hold()
        adapters = str(self._converted(folder))
        await self._complete({**self._weights(adapters), "prompt": "1", "max_tokens": 1})
        former, self._sources = self._sources, {name: folder}
        self.active = name
        await asyncio.to_thread(self._keep_only, {folder, *former.values()})

    async def unload(self, name: str) -> None:
        """Forget `name`, and let the server load its base again if it is what it holds."""
        if self._sources.pop(name, None) is None:
            return
        self.active = None
        await self._complete({**self._weights(None), "prompt": "1", "max_tokens": 1})

    async def loaded(self) -> Mapping[str, str]:
        """Return the version in use, unless the server was restarted since it was loaded.

        Such a server would load it by itself when it is asked, and nothing has shown that it did.
        """
        if self._line is not None and self._line.is_lost:
            self.forget()
        return {name: str(folder) for name, folder in self._sources.items()}

    async def generate(
        self,
        name: str,
        prompt_ids: Sequence[int],
        num_tokens: int,
        *,
        uses_cache: bool,  # noqa: ARG002  # it has no such switch
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return a greedy continuation, up to an end-of-text token: it can't be told to go on.

        The prompt goes as the text that the server's tokenizer reads as `prompt_ids`, and it counts
        them; where there is no such text, nothing can be asked and nothing is returned. It can't be
        told to leave its cache alone, and keeps one for each adapter's path: the first time that a
        version is asked for a prompt is the cold one.
        """
        adapters = None if name == self._base_name else self.path_of(name)
        if adapters is None and name != self._base_name:
            raise UpstreamError(f"mlx_lm.server holds one version at a time, and not {name}")
        prompt = await asyncio.to_thread(self._tokens.text_of, prompt_ids)
        if prompt is None:
            return (), ()
        said = await self._complete(
            {
                **self._weights(adapters),
                "prompt": prompt,
                "max_tokens": num_tokens,
                "temperature": 0.0,
                "logprobs": True,
            }
        )
        try:
            num_prompt = said["usage"]["prompt_tokens"]
            entries = said["choices"][0]["logprobs"]["content"]
            ids = tuple(int(entry["id"]) for entry in entries)
            logprobs = tuple(float(entry["logprob"]) for entry in entries)
        except (LookupError, TypeError, ValueError) as error:
            raise UpstreamError(
                f"expected ids and logprobs from mlx_lm.server, got something else: {error!r}"
            ) from error
        if num_prompt != len(prompt_ids):
            raise UpstreamError(
                f"expected mlx_lm.server to read the prompt as {len(prompt_ids)} tokens, got"
                f" {num_prompt}; is model.base the model that it serves?"
            )
        return ids, logprobs

    async def score(
        self,
        name: str,  # noqa: ARG002
        prompt_ids: Sequence[int],  # noqa: ARG002
        ids: Sequence[int],  # noqa: ARG002
    ) -> tuple[float, ...]:
        """Refuse: it has no way to give the logprobs of given tokens.

        Raises:
            Unavailable: always.
        """
        raise Unavailable("mlx_lm.server gives no logprobs of given tokens")

    def _converted(self, folder: Path) -> Path:
        return self._folder / folder.name

    def _keep_only(self, folders: Collection[Path]) -> None:
        """Remove what was converted of other versions: it can be made again."""
        kept = {self._converted(folder) for folder in folders}
        for one in set(self._folder.iterdir()) - kept:
            shutil.rmtree(one, ignore_errors=True)

    def _weights(self, adapters: str | None) -> dict[str, str]:
        if not self._model:
            raise UpstreamError("mlx_lm.server has not answered yet, so its model isn't known")
        if adapters is not None and self._model == DEFAULT_MODEL:
            raise UpstreamError(f"mlx_lm.server falls short: {NOT_NAMED}")
        return {"model": self._model, **({"adapters": adapters} if adapters else {})}

    async def _complete(self, fields: Mapping[str, object]) -> dict[str, Any]:
        said = await self._calls.must("POST", "/v1/completions", fields, timeout_s=LOAD_TIMEOUT_S)
        if not isinstance(said, dict):
            raise UpstreamError("expected a text completion from mlx_lm.server, got no JSON object")
        return said
