"""Text and token ids of one model, for engines that take text and give no ids.

Reads a `tokenizer.json` with the `tokenizers` package, which comes with strop[mlx] and strop[torch]
and is imported when the first version is probed. Knows no chat template and no engine.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.configs import installation
from strop.proxy.errors import Unavailable

# How byte-level tokenizers spell bytes: GPT-2's `bytes_to_unicode`.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + at): byte for at, byte in enumerate(_REST)
}


class TokenText:
    """A model's tokenizer, read when it is first asked.

    That raises Unavailable where there is no tokenizer, or nothing to read it with.

    Args:
        folder: the model's, in Hugging Face format.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise Unavailable(
                "this engine takes text, so strop needs the base's tokenizer to probe it, and the"
                f" package tokenizers is missing: {installation.install_backend()}"
            ) from error
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise Unavailable(
                "this engine takes text, so strop needs the base's tokenizer to probe it; there is"
                f" no {path}: set model.base to a folder in Hugging Face format"
            )
        return tokenizers.Tokenizer.from_file(str(path))

    def text_of(self, ids: Sequence[int]) -> str | None:
        """Return the text that an engine with this tokenizer reads as exactly `ids`, if any is.

        An engine reads special tokens in it, and adds those that the model begins every text with.
        Ids that were cut in the middle of a word have no such text, for instance.
        """
        # Without the first: the one that the engine adds by itself.
        for part in (ids, ids[1:]):
            text: str = self._tokenizer.decode(list(part), skip_special_tokens=False)
            if self._tokenizer.encode(text).ids == list(ids):
                return text
        return None

    def ids_of(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the id of each token, given its text; None where one is not a token's alone."""
        known = self._ids
        found = [known.get(text.encode("utf-8", "replace")) for text in texts]
        ids = [token for token in found if token is not None]
        return tuple(ids) if len(ids) == len(found) else None

    @functools.cached_property
    def _ids(self) -> Mapping[bytes, int | None]:
        """The id of each token's bytes; None where several have the same."""
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        is_byte_level = "ByteLevel" in _kinds(json.loads(self._tokenizer.to_str())["decoder"])
        ids: dict[bytes, int | None] = {}
        for spelt, token in self._tokenizer.get_vocab().items():
            raw = spelt.encode() if spelt in added else _bytes_of(spelt, is_byte_level)
            ids[raw] = None if raw in ids else token
        return ids


def _bytes_of(spelt: str, is_byte_level: bool) -> bytes:
    """Return the bytes of a token, given how a vocabulary spells it."""
    if is_byte_level:
        return bytes(_BYTES[char] for char in spelt if char in _BYTES)
    # SentencePiece: bytes that are no token of their own, and spaces.
    if len(spelt) == 6 and spelt.startswith("<0x") and spelt.endswith(">"):
        return bytes([int(spelt[3:5], 16)])
    return spelt.replace("▁", " ").encode()


def _kinds(decoder: Any) -> set[str]:
    """Return the types of a decoder and of those that it is made of."""
    if not isinstance(decoder, dict):
        return set()
    inner = (_kinds(one) for one in decoder.get("decoders", ()))
    return {str(decoder.get("type"))}.union(*inner)
