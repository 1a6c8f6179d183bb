"""Text and token ids of one model, for engines that take text and give no ids.

Reads a `tokenizer.json` with the `tokenizers` package, which comes with strop[mlx] and strop[torch]
and is imported when the first version is probed. Knows no chat template and no engine.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.adapters.token_texts import TokenTexts
from strop.configs import installation
from strop.proxy.errors import Unavailable


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
        return self._texts.ids_of(texts)

    @functools.cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer)
