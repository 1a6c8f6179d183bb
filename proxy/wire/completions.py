"""The text completions dialect: answers in JSON and streams.

Pure. Fields and events: OpenAI API reference, "Completions"; vLLM's ids beside them. With `echo`
the logprobs cover the prompt too and don't pair with the ids: such an answer is kept without them.
"""

from collections.abc import Iterable, Mapping
from typing import cast

from strop.proxy.wire.answer import Answer


def read_json(answer: Mapping[str, object]) -> Answer:
    """Return what a JSON body answered."""
    return read_stream([answer])


def read_stream(chunks: Iterable[Mapping[str, object]]) -> Answer:
    """Return what the chunks of a stream, complete or cut off, answered together."""
    result = Answer()
    for chunk in chunks:
        result.read_head(chunk)
        entries = chunk.get("choices")
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            result.read_prompt_ids(entry)
            choice = result.choice(entry)
            text, reason = entry.get("text"), entry.get("finish_reason")
            if isinstance(text, str):
                choice.message["text"] = cast("str", choice.message.get("text", "")) + text
            if isinstance(reason, str):
                choice.finish_reason = reason
            choice.add_ids(entry.get("token_ids"))
            logprobs = entry.get("logprobs")
            values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
            if isinstance(values, list) and values:
                choice.add_logprobs(values)
    result.close()
    return result
