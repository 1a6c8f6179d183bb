"""Adapter versions on Ollama: each is a model of its own, made of the base and a GGUF adapter.

All models over one base share one place in memory: loading a version ends the process that runs the
former, when nobody asks it any more, and starts another. Read from its source at v0.33.0-rc2.
"""

import asyncio
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from strop.adapters.base_model import InvalidBase
from strop.adapters.peft import InvalidAdapter
from strop.proxy.engines.calls import LOAD_TIMEOUT_S, Calls, reason_in
from strop.proxy.engines.ollama_models import Made, OllamaModels, cards_in, tag_for
from strop.proxy.engines.tokens import TokenText
from strop.proxy.errors import Unavailable, UpstreamError
from strop.proxy.upstream.engine_connection import EngineConnection

log = logging.getLogger(__name__)

Convert = Callable[[Path, Path, Path], None]
"""Writes the adapter at the first path, of the base at the second, to a new GGUF file."""

# A model's samplers unless it says otherwise: a top_k of 40, a min_p, and before 0.33 a penalty on
# repetition. What is learned from is sampled from the whole distribution.
_PARAMETERS: Mapping[str, float] = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
# With a keep_alive of -1 a model is said to stay until 2318: as long as Go can count.
_FOREVER = 2200
_GREEDY: Mapping[str, float] = {**_PARAMETERS, "temperature": 0.0, "top_p": 1.0}


class OllamaAdapters:
    """The adapter control of one server.

    Args:
        calls: to the server.
        base: the folder of the base, in Hugging Face format.
        convert: writes Ollama's format.
        notes: a file that says which of its models were made, also by a strop that ran before.
        lacking: what `convert` needs and isn't here, and how to get it; empty if nothing.

    Attributes:
        lacking: the same.
    """

    def __init__(
        self, calls: Calls, *, base: Path, convert: Convert, notes: Path, lacking: str = ""
    ) -> None:
        self.lacking = lacking
        self._calls = calls
        self._base = base
        self._convert = convert
        self._made = OllamaModels(notes)
        self._held: str | None = None
        self._digest = ""
        self._is_lost = False
        self._was_out = False
        self._line: EngineConnection | None = None
        self._model = ""
        self._tokens = TokenText(base)

    @property
    def can_serve_any(self) -> bool:
        """Whether there can be a version to serve; what was made before is not converted again."""
        return not self.lacking or bool(self._made.all())

    def serves(self, model: str) -> None:
        """Note which of its models is the base."""
        self._model = model

    def tag_of(self, name: str) -> str | None:
        """Return the model that a served name stands for; None where none was made for it."""
        made = self._made.get(name)
        return made.tag if made is not None else None

    def members(self) -> "Mapping[str, OllamaAdapters]":
        """Return this one."""
        return {"ollama": self}

    async def prepare(self, name: str, folder: Path) -> None:
        """Convert `folder`, upload it, and make the model that `name` stands for.

        One that was made of the base as it is now is left as it is.

        Raises:
            UpstreamError: it can't be converted, or Ollama doesn't make of it what it should.
        """
        if not self._model:
            raise UpstreamError("Ollama has not answered yet, so its models aren't known")
        digests = await self._digests()
        base = digests.get(self._model, "")
        made = self._made.get(name)
        if made is not None and (made.folder, made.base) == (folder, base) and made.tag in digests:
            digest = made.tag.rpartition("-")[2]
            if made.tag == tag_for(self._model, name, digest):
                return await self._verify(made.tag, digest)
        content = await self._converted(name, folder)
        digest = hashlib.sha256(content).hexdigest()
        blob = f"/api/blobs/sha256:{digest}"
        if (await self._calls.ask("HEAD", blob)).is_error:
            await self._calls.must("POST", blob, content=content, timeout_s=LOAD_TIMEOUT_S)
        tag = tag_for(self._model, name, digest)
        # Asked about first: a base that isn't there would be downloaded.
        await self._calls.must("POST", "/api/show", {"model": self._model})
        # Noted first: what is made is found again, whatever happens now. Of what base is not known
        # before it is made: there may be one of that name already.
        await self._made.add(name, Made(tag, folder))
        answer = await self._calls.ask(
            "POST",
            "/api/create",
            {
                "model": tag,
                "from": self._model,
                "adapters": {"adapter.gguf": f"sha256:{digest}"},
                "parameters": _PARAMETERS,
                # In a stream, errors would come after a status of 200.
                "stream": False,
            },
            timeout_s=LOAD_TIMEOUT_S,
        )
        if (why := _why_not_made(answer)) is not None:
            raise UpstreamError(f"Ollama does not make {tag}: {why}")
        await self._made.add(name, Made(tag, folder, base))
        return await self._verify(tag, digest)

    async def load(self, name: str, folder: Path) -> None:
        """Let Ollama load the model of `name` in the place of the one over the same base."""
        await self.prepare(name, folder)
        self._held = None
        if self._line is None or self._line.is_lost:
            self._line = await self._calls.hold()
        tag = self._made.all()[name].tag
        self._digest = (await self._digests()).get(tag, "")
        await self._warm(tag)
        self._held, self._is_lost, self._was_out = name, False, False

    async def unload(self, name: str) -> None:
        """Delete the model of `name`, and load the base if it was what is loaded.

        Nothing is unloaded by its name: that would hit whichever version is loaded.
        """
        tag = self.tag_of(name)
        if tag is None:
            return
        if self._held == name:
            await self._warm(self._model)
            self._held = None
        answer = await self._calls.ask("DELETE", "/api/delete", {"model": tag})
        if answer.is_error and tag in await self._digests():
            raise UpstreamError(f"Ollama does not delete {tag}: {answer.text[:200]}")
        await self._made.remove(name)

    async def loaded(self) -> Mapping[str, str]:
        """Return the version in use, and the others that Ollama has models for.

        The one in use is left out until it is loaded again where Ollama may have been started anew
        since, or makes something else of its name: it must be proven again.
        """
        digests = await self._digests()
        if self._held is not None and not self._is_lost:
            tag = self._made.all()[self._held].tag
            is_same = digests.get(tag, "") == self._digest
            self._is_lost = not (is_same and await self._is_in_place(tag))
        return {
            name: str(made.folder)
            for name, made in self._made.all().items()
            if made.tag in digests and not (self._is_lost and name == self._held)
        }

    async def generate(
        self,
        name: str,
        prompt_ids: Sequence[int],
        num_tokens: int,
        *,
        uses_cache: bool,  # noqa: ARG002  # it has no such switch
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return a greedy continuation, up to an end-of-text token: it can't be told to go on.

        The prompt goes as the text that is read as `prompt_ids`, and Ollama must not count more;
        where there is no such text, nothing can be asked and nothing is returned. Ids are found
        again by each token's text, up to the first that is a part of a character: it leaves those
        out. It can't be told to leave its cache alone: a version's first answer comes from a
        process just started.
        """
        tag = self.tag_of(name) or (self._model if "@" not in name else None)
        if tag is None:
            raise UpstreamError(f"Ollama has no model for {name}")
        prompt = await asyncio.to_thread(self._tokens.text_of, prompt_ids)
        if prompt is None:
            return (), ()
        said = await self._calls.must(
            "POST",
            "/api/generate",
            {
                "model": tag,
                "prompt": prompt,
                "raw": True,
                "stream": False,
                "logprobs": True,
                "keep_alive": -1,
                "options": {**_GREEDY, "num_predict": num_tokens},
            },
            timeout_s=LOAD_TIMEOUT_S,
        )
        return self._read(said, len(prompt_ids))

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
        raise Unavailable("Ollama gives no logprobs of given tokens")

    def _read(self, said: Any, num_prompt: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        try:
            read, text = said["prompt_eval_count"], str(said["response"])
            texts = [str(entry["token"]) for entry in said["logprobs"]]
            logprobs = [float(entry["logprob"]) for entry in said["logprobs"]]
        except (LookupError, TypeError, ValueError) as error:
            raise UpstreamError(
                f"expected counts and logprobs from Ollama, got something else: {error!r}"
            ) from error
        # The first releases that run llama-server leave out the tokens that they have cached.
        if read > num_prompt:
            raise UpstreamError(
                f"expected Ollama to read the prompt as {num_prompt} tokens, got {read}; is"
                " model.base the model that it serves?"
            )
        texts = texts[: _num_whole(texts, text)]
        ids = self._tokens.ids_of(texts) or ()
        return ids, tuple(logprobs[: len(ids)])

    async def _converted(self, name: str, folder: Path) -> bytes:
        def convert() -> bytes:
            with tempfile.TemporaryDirectory(prefix="strop-gguf-") as scratch:
                file = Path(scratch) / "adapter.gguf"
                self._convert(folder, self._base, file)
                return file.read_bytes()

        try:
            return await asyncio.to_thread(convert)
        except (InvalidAdapter, InvalidBase, ImportError) as error:
            raise UpstreamError(f"{name} can't be converted for Ollama: {error}") from error

    async def _verify(self, tag: str, digest: str) -> None:
        """Raise UpstreamError unless a model has the adapter whose digest begins so, alone."""
        shown = await self._calls.must("POST", "/api/show", {"model": tag})
        modelfile = str(shown.get("modelfile", "")) if isinstance(shown, dict) else ""
        found = re.findall(r"^ADAPTER .*?([0-9a-f]{64})\s*$", modelfile, re.MULTILINE)
        if len(found) != 1 or not found[0].startswith(digest):
            raise UpstreamError(
                f"expected Ollama's {tag} to have the adapter {digest[:12]}, got"
                f" {', '.join(one[:12] for one in found) or 'none'}; adapters need Ollama 0.30 or"
                " newer"
            )

    async def _is_in_place(self, tag: str) -> bool:
        """Whether what Ollama answers as `tag` is what was proven, as far as it shows.

        It need not be in memory: the process that was asked then loads the same files again, in
        the same way. That it is the same one is told by the connection, and by a model that is
        kept. One that a request brought back leaves again after minutes.
        """
        is_same_process = self._line is not None and not self._line.is_lost
        loaded = cards_in(await self._calls.must("GET", "/api/ps"))
        card = next((card for card in loaded if card.get("name") == tag), None)
        if card is None:
            # Others have pushed it out, and it comes back with the next request.
            return is_same_process or bool(loaded)
        if _is_kept(card):
            return True
        if is_same_process:
            if not self._was_out:
                log.info("a version is back that had left Ollama's memory", extra={"model": tag})
                self._was_out = True
            await self._warm(tag)
        return is_same_process

    async def _warm(self, tag: str) -> None:
        """Load a model, and keep it: without it the next request pays for that."""
        fields = {"model": tag, "keep_alive": -1, "stream": False}
        await self._calls.must("POST", "/api/generate", fields, timeout_s=LOAD_TIMEOUT_S)

    async def _digests(self) -> Mapping[str, str]:
        """Return what each of its models is made of, as a digest of all that."""
        cards = cards_in(await self._calls.must("GET", "/api/tags"))
        return {str(card.get("name")): str(card.get("digest", "")) for card in cards}


def _is_kept(card: Mapping[str, object]) -> bool:
    """Whether a loaded model stays until it is told to leave."""
    year = re.match(r"\d{4}", str(card.get("expires_at", "")))
    return year is None or int(year[0]) >= _FOREVER


def _why_not_made(answer: httpx.Response) -> str | None:
    """Return what went wrong with a model that was to be made; with a 200 it may be in any line."""
    if answer.is_error:
        return f"status {answer.status_code}: {reason_in(answer)}"
    last: object = None
    for line in answer.text.splitlines():
        try:
            last = json.loads(line)
        except ValueError:
            return f"expected JSON, got {line[:200]!r}"
        if isinstance(last, dict) and "error" in last:
            return str(last["error"])
    if isinstance(last, dict) and last.get("status") == "success":
        return None
    return f"expected its answer to end with success, got {answer.text[-200:]!r}"


def _num_whole(tokens: Sequence[str], text: str) -> int:
    """Return how many tokens begin `text`, none left out between them."""
    at = 0
    for number, token in enumerate(tokens):
        if not token or not text.startswith(token, at):
            return number
        at += len(token)
    return len(tokens)
