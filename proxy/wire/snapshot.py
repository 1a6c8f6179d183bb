"""A snapshot: the ids of an answer's tokens and of its prompt, and a logprob for each token.

Does not know where in an answer they stand, or which engine wrote them.
"""

import math
import struct
from array import array
from collections.abc import Mapping, Sequence

import msgspec


class Snapshot(msgspec.Struct, frozen=True):
    """One choice's: as many ids as logprobs (nats), and at least one; None: no ids of the prompt.

    Packed: a thousand objects that wait for the writer would cost more than it takes to make them.
    """

    token_ids: "array[int]"
    logprobs: "array[float]"
    prompt_ids: "array[int] | None" = None

    @classmethod
    def read(cls, members: Mapping[str, memoryview]) -> "Snapshot | None":
        """Return what the JSON of these members says; None where they are not those of one."""
        if not members.keys() <= _MEMBERS:
            return None
        prompt_ids = None
        try:
            token_ids = ints(_decode_ids(members["token_ids"]))
            content = _decode_logprobs(members["logprobs"]).content
            logprobs = floats([token.logprob for token in content])
            if "prompt_token_ids" in members:
                prompt_ids = ints(_decode_ids(members["prompt_token_ids"]))
        except (KeyError, msgspec.DecodeError, RecursionError):
            return None
        if token_ids is None or logprobs is None or len(token_ids) != len(logprobs):
            return None
        return cls(token_ids, logprobs, prompt_ids)


class _Token(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Token]
    # A text completion's, which go before.
    token_logprobs: None = None


_MEMBERS = {"token_ids", "prompt_token_ids", "logprobs"}
_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_logprobs = msgspec.json.Decoder(_Logprobs).decode


def ints(ids: Sequence[int | None]) -> "array[int] | None":
    """Return `ids`; None where there are none, or one is a hole or no C int."""
    try:
        # An array takes twice as long to take them one by one.
        return array("i", struct.pack(f"{len(ids)}i", *ids)) if ids else None
    except struct.error:
        return None


def floats(values: Sequence[float | None]) -> "array[float] | None":
    """Return `values`; None where there are none, or one is a hole or not finite."""
    try:
        found = array("f", struct.pack(f"{len(values)}f", *values))
    except (struct.error, OverflowError):
        return None
    return found if found and math.isfinite(sum(found)) else None
