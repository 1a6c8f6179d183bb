"""The tokens of a model that `models` made, as the fake Ollama reads and samples them."""

from collections.abc import Iterator
from pathlib import Path

from fake_ollama_answers import Vocabulary
from tokenizers import Tokenizer

END_ID = 2


def vocabulary_of(base: Path, *, has_parts: bool = False) -> Vocabulary:
    """Return how the model in `base` reads prompts, and the bytes of each of its tokens.

    Without `has_parts`, none that is a part of a character is ever sampled.
    """
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    byte_of = {char: byte for byte, char in _spelt_bytes()}
    pieces = []
    for token in range(tokenizer.get_vocab_size()):
        spelt = tokenizer.id_to_token(token)
        assert spelt is not None
        pieces.append(bytes(byte_of[char] for char in spelt) if token > END_ID else b"")
    return Vocabulary(lambda text: tokenizer.encode(text).ids, pieces, END_ID, has_parts=has_parts)


def _spelt_bytes() -> Iterator[tuple[int, str]]:
    """Yield how byte-level tokenizers spell each byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    for byte in range(256):
        yield byte, chr(byte) if byte in printable else chr(next(others))
