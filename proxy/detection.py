"""Which inference servers run on this machine, told apart by what each says of itself.

Asks only, and loads nothing. Says how strop would serve each, and which it takes of itself.
"""

import asyncio
import contextlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import httpx

from strop.configs import installation
from strop.proxy.auth import scrub_url
from strop.proxy.engines.ollama_models import is_ours
from strop.proxy.errors import ConfigError
from strop.proxy.settings.settings import Settings

Kind = Literal["vllm", "mlx_server", "ollama", "llama_server", "openai"]

USUAL: Final = (
    "http://127.0.0.1:8000",  # vLLM
    "http://127.0.0.1:11434",  # Ollama
    "http://127.0.0.1:8080",  # mlx_lm.server, llama-server
    "http://127.0.0.1:30000",  # SGLang
    "http://127.0.0.1:1234",  # LM Studio
)
"""Where local servers listen unless they are told otherwise."""

TIMEOUT_S = 3.0
# A list of models is the longest that an engine says.
MAX_ANSWER_BYTES = 4 * 2**20
_LOCKED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_PATHS = ("/v1/models", "/version", "/api/version", "/props", "/model_info", "/api/v0/models")

_DOES: Mapping[Kind, str] = {
    "vllm": "token ids and logprobs, streams too; versions if started with --enable-lora, where"
    " model.base is set",
    "mlx_server": "token ids and logprobs in JSON, in streams with engine.rechunk_streams; one"
    " version at a time where model.base is set",
    "ollama": "logprobs, ids found again from the text; one version at a time from 0.30 on, where"
    " model.base is set",
    "llama_server": "token ids and logprobs, streams too; no versions",
    "openai": "recorded and rated; not trained on, unless its kind is named",
}
_LM_STUDIO: Final = "LM Studio"
_OWN: Final = "strop's engine"
_ELSE_DOES: Mapping[str, str] = {
    _LM_STUDIO: "recorded and rated; not trained on: for that, strop's own engine serves the folder"
    " of a model in MLX format, as in: strop serve --model FOLDER",
    "SGLang": "recorded and rated; not trained on",
    _OWN: "token ids and logprobs, streams too; versions where model.base is set",
}
"""What the driver of their kind gets from these, by what they are."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its status, its Server header, and its JSON (None: none)."""

    status: int
    server: str = ""
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Found:
    """A server that runs.

    Attributes:
        kind: the driver for it.
        label: what it is, for people.
        url: where it listens.
        version: what it says it is, if anything.
        models: what it serves, those that only embed texts last.
    """

    kind: Kind
    label: str
    url: str
    version: str | None
    models: tuple[str, ...]

    @property
    def does(self) -> str:
        """What strop gets from it."""
        return _ELSE_DOES.get(self.label, _DOES[self.kind])

    @property
    def learns(self) -> bool:
        """Whether what it answers is learned from, where `model.base` is set."""
        return "model.base" in self.does

    @property
    def command(self) -> str:
        """The line that serves it."""
        # These may serve all that they have; the others, what they were started with.
        num_open = {"ollama": 0, "openai": 1}.get(self.kind, len(self.models))
        is_to_choose = len(self.models) > num_open
        model = f" --model {shlex.quote(self.models[0])}" if is_to_choose else ""
        strop = installation.strop()
        return f"{strop} serve --engine {self.kind} --engine-url {self.url}{model}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What listens at the places that were asked, in their order.

    Attributes:
        found: the servers.
        locked: the URLs of those that list their models to nobody without a key, or with that one.
    """

    found: list[Found]
    locked: list[str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve where the settings name no engine, and what to tell a person about it."""

    settings: Settings
    says: tuple[str, ...] = ()


async def detect(settings: Settings, *, at: str = "") -> Choice:
    """Return the settings with the engine that they leave open, as far as one is found.

    They leave it open where they name no kind, and no model for strop's own engine. `at` is the
    option that names the home in a command to copy.

    Raises:
        ConfigError: what answers at the settings' URL says what it is to nobody without its key.
    """
    engine = settings.engine
    if engine.kind:
        return Choice(settings)
    if engine.url:
        seen = await look([engine.url], key=engine.key)
        if seen.locked and not seen.found:
            wants = "another key than engine.key" if engine.key else "a key"
            raise ConfigError(
                f"engine.url: what answers at {scrub_url(engine.url)} wants {wants} before it says"
                " which engine it is; set engine.key, best as STROP_ENGINE_KEY"
            )
        return _taken(settings, seen.found[0], at) if seen.found else Choice(settings)
    return Choice(settings) if settings.model.path else choose(settings, await find(USUAL), at=at)


async def find(urls: Iterable[str], *, key: str = "") -> list[Found]:
    """Return the servers that `look` finds."""
    return (await look(urls, key=key)).found


async def look(urls: Iterable[str], *, key: str = "") -> Seen:
    """Return what listens at `urls`, asked all at once with `key`.

    A `/v1` at the end, as in OPENAI_BASE_URL, is left out: the paths asked for begin with it.
    """
    # Bytes that are no UTF-8 reach the environment as surrogates.
    bearer = b"Bearer " + key.encode(errors="surrogateescape")
    headers = {b"authorization": bearer} if key else {}
    places = [url.rstrip("/").removesuffix("/v1") for url in urls]
    async with httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers, trust_env=False) as client:
        answers = await asyncio.gather(*(_ask_all(client, place) for place in places))
    seen = Seen([], [])
    for place, said in zip(places, answers, strict=True):
        if (one := identify(place, said)) is not None:
            seen.found.append(one)
        if said.get("/v1/models", Said(0)).status in _LOCKED:
            seen.locked.append(place)
    return seen


def choose(settings: Settings, found: list[Found], *, at: str = "") -> Choice:
    """Return the settings with the only local engine among `found`, if there is exactly one.

    Of several none is taken: to guess wrong would record and train another model than was meant.
    """
    usable = [one for one in found if one.kind != "openai" and one.models]
    if not usable:
        return Choice(settings)
    if len(usable) > 1:
        return Choice(
            settings,
            (
                f"{len(usable)} engines run here, so strop starts its own; to serve one of them:",
                *(f"  {one.command}{at}" for one in usable),
            ),
        )
    chosen = _serving(settings, usable[0])
    own = f"  strop's own engine instead: {installation.strop()} serve --engine embedded{at}"
    return Choice(chosen.settings, (*chosen.says, own))


def _taken(settings: Settings, one: Found, at: str) -> Choice:
    """Return what serves the one at the settings' URL; where its first would, how to choose."""
    choice = _serving(settings, one)
    is_open = not settings.engine.model and settings.model.name not in one.models
    if one.kind != "openai" or len(one.models) < 2 or not is_open:
        return choice
    hint = f"  it lists {len(one.models)} models; to say which one serves: {one.command}{at}"
    return replace(choice, says=(*choice.says, hint))


def _serving(settings: Settings, one: Found) -> Choice:
    # `url` as it was given: it may have a path that the engine needs.
    engine = replace(settings.engine, kind=one.kind, url=settings.engine.url or one.url)
    return Choice(replace(settings, engine=engine), (f"found {one.label} at {one.url}",))


def identify(url: str, said: Mapping[str, Said]) -> Found | None:
    """Return what listens at `url`, given what it said to each path; None if it is no engine."""
    listed = said.get("/v1/models", Said(0))
    cards = _cards(listed)
    owners = [card.get("owned_by") for card in cards]
    told = _cards(said.get("/api/v0/models", Said(0)))
    embedders = {card["id"] for card in told if card.get("type") == "embeddings"}
    ids = [str(card["id"]) for card in cards if not card.get("parent")]

    def found(kind: Kind, label: str, version: object = None) -> Found:
        # What strop made of a model in Ollama is no model to serve.
        usable = (one for one in ids if kind != "ollama" or not is_ours(one))
        models = tuple(sorted(usable, key=lambda one: one in embedders))
        return Found(kind, label, url, version if isinstance(version, str) else None, models)

    # Open WebUI, for one, has that path too, and answers the other with a page.
    if (version := _member(said, "/api/version", "version")) and isinstance(listed.payload, dict):
        return found("ollama", "Ollama", version)
    if listed.server == "llama.cpp" or _member(said, "/props", "default_generation_settings"):
        return found("llama_server", "llama-server", _member(said, "/props", "build_info"))
    if "sglang" in owners or _member(said, "/model_info", "model_path"):
        return found("openai", "SGLang")
    if "vllm" in owners:
        return found("vllm", "vLLM", _member(said, "/version", "version"))
    if "strop" in owners and (version := _member(said, "/version", "version")):
        # Started by itself, with `strop engine`.
        return found("vllm", _OWN, version)
    if listed.server.startswith("BaseHTTP/"):
        return found("mlx_server", "mlx_lm.server")
    if said.get("/api/v0/models", Said(0)).status == httpx.codes.OK and cards:
        return found("openai", _LM_STUDIO)
    return found("openai", "an OpenAI-compatible server") if cards else None


async def _ask_all(client: httpx.AsyncClient, url: str) -> dict[str, Said]:
    said = await asyncio.gather(*(_ask(client, url + path) for path in _PATHS))
    return {p: one for p, one in zip(_PATHS, said, strict=True) if one is not None}


async def _ask(client: httpx.AsyncClient, url: str) -> Said | None:
    said = bytearray()
    try:
        # httpx's own limit is for each read, and what listens there may go on for ever.
        async with asyncio.timeout(2 * TIMEOUT_S), client.stream("GET", url) as answer:
            async for part in answer.aiter_bytes():
                said += part
                if len(said) > MAX_ANSWER_BYTES:
                    return None
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ExceptionGroup):
        # The last: what anyio makes of a port that there can't be.
        return None
    payload = None
    if answer.status_code == httpx.codes.OK:
        with contextlib.suppress(ValueError, RecursionError):
            payload = json.loads(said)
    return Said(answer.status_code, answer.headers.get("server", ""), payload)


def _cards(said: Said) -> list[Mapping[str, object]]:
    data = said.payload.get("data") if isinstance(said.payload, dict) else None
    if not isinstance(data, list):
        return []
    return [card for card in data if isinstance(card, dict) and "id" in card]


def _member(said: Mapping[str, Said], path: str, name: str) -> object:
    payload = said.get(path, Said(0)).payload
    return payload.get(name) if isinstance(payload, dict) else None
