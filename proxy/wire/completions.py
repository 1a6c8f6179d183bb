"""The text completions dialect: answers in JSON and streams.

Pure. Fields and events: OpenAI API reference, "Completions"; vLLM's ids beside them. With `echo`
the logprobs cover the prompt too and don't pair with the ids: such an answer is kept without them.
"""

from collections.abc import Iterable

from strop.proxy.wire.answer import Answer


def read_json(answer: bytes) -> Answer:
    """Return what a JSON body answered."""
    return read_stream([answer] if answer else [])


def read_stream(chunks: Iterable[bytes]) -> Answer:
    """Return what the chunks of a stream, complete or cut off, answered together."""
    result = Answer()
    texts: dict[int, list[str]] = {}
    for choice, entry in result.entries(chunks):
        if isinstance(entry.text, str):
            texts.setdefault(choice.index, []).append(entry.text)
    for index, pieces in texts.items():
        result.choices[index].message["text"] = "".join(pieces)
    return result
