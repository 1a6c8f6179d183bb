"""The texts of a vocabulary's tokens, as engines show them that give no ids.

Reads a tokenizer of the `tokenizers` package; loads none, and knows no engine.
"""

import json
from collections.abc import Sequence
from typing import Any

# How byte-level tokenizers spell bytes: GPT-2's `bytes_to_unicode`.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + at): byte for at, byte in enumerate(_REST)
}


class TokenTexts:
    """The id of each token, by its text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        is_byte_level = "ByteLevel" in _kinds(json.loads(tokenizer.to_str())["decoder"])
        # None where several tokens are of the same bytes.
        self._ids: dict[bytes, int | None] = {}
        for spelt, token in tokenizer.get_vocab().items():
            raw = spelt.encode() if spelt in added else _bytes_of(spelt, is_byte_level)
            self._ids[raw] = None if raw in self._ids else token

    def ids_of(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the id of each token, given its text; None where one is not a token's alone."""
        found = [self._ids.get(text.encode("utf-8", "replace")) for text in texts]
        ids = [token for token in found if token is not None]
        return tuple(ids) if len(ids) == len(found) else None


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
