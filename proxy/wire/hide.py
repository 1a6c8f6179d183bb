"""Takes the reasoning out of an answer, with the ids and logprobs that would spell it.

What vLLM 0.32 writes for `include_reasoning: false`, where one of its parsers is on. Works on
parsed values: the JSON is written again, compactly. Does not know why it should be hidden.
"""

from dataclasses import dataclass

from strop.proxy.errors import BadRequest
from strop.proxy.wire import body, sse

# The second was vLLM's name for it until 0.11.
_REASONING = ("reasoning", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Hide:
    """What to take out of an answer that has its reasoning.

    Attributes:
        keeps_prompt_ids: whether the client asked for ids: those of the prompt are its own.
    """

    keeps_prompt_ids: bool

    def apply(self, data: bytes, num_choices: int | None = None) -> bytes:  # noqa: ARG002
        """Return a JSON body, or whole events, without; what is neither stays as it is."""
        if data[:1] == b"{":
            return self._without(data) or b""
        return b"".join(self._event(event) for event in sse.events(data))

    def split(self, body: bytes) -> None:
        """Return None: what the client gets is written anew."""

    def _event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data[:1] != b"{":
            return event
        kept = self._without(data)
        return sse.event(kept) if kept is not None else b""

    def _without(self, data: bytes) -> bytes | None:
        """Return a body or a chunk without; None for a chunk that would not have been sent."""
        try:
            answer = body.parse(data)
        except BadRequest:
            return data
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                return data
            for name in ("logprobs", "token_ids"):
                if name in choice:
                    choice[name] = None
            message, delta = choice.get("message"), choice.get("delta")
            if isinstance(message, dict):
                message.update({name: None for name in _REASONING if name in message})
            elif isinstance(delta, dict) and "role" not in delta:
                if delta.get("content") or delta.get("tool_calls"):
                    choice["delta"] = _hidden(delta)
                elif choice.get("finish_reason"):
                    choice["delta"] = {}
                else:
                    return None
        if not self.keeps_prompt_ids and "prompt_token_ids" in answer:
            answer["prompt_token_ids"] = None
        return body.dumps(answer)


def _hidden(delta: dict[str, object]) -> dict[str, object]:
    """Return a delta with null for the reasoning, where vLLM writes it: behind the content."""
    rest = {name: value for name, value in delta.items() if name not in _REASONING}
    content = {"content": rest.pop("content")} if "content" in rest else {}
    return {**content, "reasoning": None, **rest}
