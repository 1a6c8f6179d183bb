"""The scenarios: which requests, over how many connections or at which rate.

Starts nothing and measures nothing.
"""

from dataclasses import dataclass

from bench.answers import Ask
from bench.workloads import Workload

# About 1 KB, and 250 KB with the five best logprobs of each token.
_SHORT = Ask(max_tokens=80)
_LONG = Ask(max_tokens=540, top_logprobs=5)
_STREAM = Ask(max_tokens=64, stream=True, top_logprobs=5)
_STREAM_PLAIN = Ask(max_tokens=64, stream=True)
_STREAM_SHORT = Ask(max_tokens=16, stream=True, top_logprobs=5)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to load a target.

    Attributes:
        name: its name in results.
        title: what it is, for tables.
        workload: the requests.
        connections: of a closed loop; 0 for an open one.
        rate: requests a second of an open loop.
        is_quick: whether `--quick` runs it.
        ramp_s: over how long the connections of a closed loop send their first request.
        slow_readers: how many clients take endless streams in sips meanwhile.
        leaves_out: targets that can't do it, by name.
    """

    name: str
    title: str
    workload: Workload
    connections: int = 0
    rate: float = 0.0
    is_quick: bool = False
    ramp_s: float = 0.0
    slow_readers: int = 0
    leaves_out: tuple[str, ...] = ()


ALL = (
    Scenario("json-1", "JSON, 1 connection", Workload(_SHORT), 1, is_quick=True),
    Scenario("json-16", "JSON, 16 connections", Workload(_SHORT), 16),
    Scenario("json-64", "JSON, 64 connections", Workload(_SHORT), 64, is_quick=True),
    Scenario("json-open", "JSON, 50 requests/s", Workload(_SHORT), rate=50.0),
    Scenario("prompt-100k", "100 KB prompt, 16 connections", Workload(_SHORT, 100_000), 16),
    Scenario("answer-250k", "250 KB answer, 16 connections", Workload(_LONG), 16, is_quick=True),
    Scenario("stream", "stream, logprobs asked, 32", Workload(_STREAM), 32, is_quick=True),
    Scenario(
        "stream-plain", "stream, nothing asked, 32", Workload(_STREAM_PLAIN), 32, is_quick=True
    ),
    Scenario(
        "stream-paced",
        "stream, an event each 5 ms, 32",
        Workload(_STREAM, pause_ms=5),
        32,
        is_quick=True,
    ),
    Scenario(
        "stream-slow", "stream, beside 8 slow readers, 32", Workload(_STREAM), 32, slow_readers=8
    ),
    # As many events a second as of 128 streams at 30 tokens/s: the load must keep up on its core.
    Scenario(
        "stream-1000",
        "stream, an event each 250 ms, 1,000",
        Workload(_STREAM_SHORT, pause_ms=250),
        1000,
        ramp_s=1.0,
        # Neither ends them within half a minute.
        leaves_out=("starlette-httpx", "litellm"),
    ),
)
