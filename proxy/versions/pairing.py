"""What the engine's own base is: its folder, its identity, and whether the engine has changed it.

Proves nothing itself: a version that passes its probe proves the base under it, which is noted.
"""

import asyncio
import hashlib
import json
import logging
import os
from pathlib import Path

from strop import configs
from strop.adapters.identity import identify
from strop.adapters.probe import Judgement
from strop.proxy.engines.base import EngineState
from strop.proxy.errors import StoreUnavailable
from strop.proxy.settings.settings import Settings
from strop.proxy.store import layout
from strop.proxy.store.clock import now_ms
from strop.proxy.store.store import Store
from strop.proxy.store.version_records import Pairing

log = logging.getLogger(__name__)


def base_folder(settings: Settings) -> Path | None:
    """Return the folder of the base that is trained; None where none is set, or it isn't here.

    `model.base`, else what the embedded engine serves. A hub id is looked up in the hub's cache.
    """
    model = settings.model
    named = model.base
    if not named and settings.engine.kind in ("", "embedded"):
        named = model.path or str(configs.demo_model())
    if not named:
        return None
    folder = Path(named).expanduser()
    return folder.absolute() if folder.is_dir() else _downloaded(named)


def _downloaded(hub_id: str) -> Path | None:
    """Return the newest snapshot of a hub id in the hub's cache on this machine."""
    hub_home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{hub_home}/hub")).expanduser()
    model = cache / f"models--{hub_id.replace('/', '--')}"
    try:
        snapshot = model / "snapshots" / (model / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


async def identity_of(settings: Settings, home: Path) -> str | None:
    """Return the identity of the base that is trained; None where it isn't known.

    The first time all its weights are read; the home keeps what was found.
    """
    folder = base_folder(settings)
    if folder is None:
        return None
    try:
        return await asyncio.to_thread(identify, folder, cache=home / layout.IDENTITIES)
    except (OSError, ValueError) as error:
        log.error("the base can't be read", extra={"folder": str(folder), "reason": str(error)})
        return None


def digest_of(state: EngineState) -> str:
    """Return what stands for all that an engine says of its base, its first model.

    That is its name only where the engine says nothing better: the same weights may be served under
    another one.
    """
    named = [] if state.digest else state.models[:1]
    said = [named, state.version, state.max_model_len, state.digest]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class Pairings:
    """The proof that an engine's base is the one that is trained, as far as there is one.

    Args:
        store: where it is kept.
        engine: the engine's label.

    Attributes:
        error: how far its base's logprobs lie from those of the base that is trained, the mean
            absolute difference in nats; None where that was not, or could not be, measured.
        was_measured: whether it need not be measured again, be it that it can't.
    """

    def __init__(self, store: Store, engine: str) -> None:
        self._store = store
        self._engine = engine
        self._digest = ""
        self.error: float | None = None
        self.was_measured = False

    def measured(self, error: float | None) -> None:
        """Note how far the engine's base lies off; of several engines, the most."""
        self.was_measured = True
        known = [one for one in (self.error, error) if one is not None]
        self.error = max(known, default=None)

    async def check(self, state: EngineState, base: str | None) -> None:
        """Forget the proof where the engine says something else of its base than it did then.

        Args:
            state: what the engine says.
            base: the identity of the base that is trained.
        """
        digest = digest_of(state)
        if digest == self._digest:
            return
        self._digest, self.error, self.was_measured = digest, None, False
        pairing = await self._store.versions.pairing(self._engine)
        if pairing is not None and pairing.engine_digest != digest:
            # Whether it is the same model, and how far off, who measures it says.
            log.info(
                "the engine says something else of its base than before; it is measured again",
                extra={"engine": self._engine},
            )
            await self._store.versions.remove_pairing(self._engine)
        elif pairing is not None and pairing.base == base:
            self.measured(pairing.error)

    async def note(self, base: str | None, judgement: Judgement | None) -> None:
        """Keep what a probe has shown: an adapter of `base` does on it what it did in training.

        Where the store can't, that is logged: the version serves all the same.
        """
        is_proven = judgement is not None and judgement.outcome == "proven"
        if base is None or self.error is None or not is_proven:
            return
        shown = Pairing(self._engine, self._digest, base, self.error, now_ms())
        try:
            await self._store.versions.set_pairing(shown)
        except StoreUnavailable as error:
            log.warning("a pairing was not kept", extra={"reason": error.message})
