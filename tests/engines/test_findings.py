"""What one driver finds out of an engine, taken over by another of the same."""

from dataclasses import replace

from strop.proxy.engines.vllm import Vllm
from strop.proxy.upstream.upstream import Upstream


async def test_what_one_process_finds_out_another_takes_over() -> None:
    """Workers ask the engine nothing themselves."""
    found, told = Vllm(Upstream("http://127.0.0.1:9")), Vllm(Upstream("http://127.0.0.1:9"))
    found.capabilities = replace(found.capabilities, token_ids=False)
    found.shortfalls, found.hides_ids = ("no ids",), True

    told.adopt(found.findings())

    assert (found.capabilities, ("no ids",), True) == (
        told.capabilities,
        told.shortfalls,
        told.hides_ids,
    )
