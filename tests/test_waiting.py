"""Waiting in tests: for what is seen, and no longer than its limit."""

import itertools

import pytest
from waiting import until


async def test_a_wait_returns_what_it_waited_for() -> None:
    """The first thing seen that holds; without a condition, the first that is true."""
    numbers = itertools.count()

    async def number() -> int:
        return next(numbers)

    assert 1 == await until(lambda: next(numbers))
    assert 4 == await until(lambda: next(numbers), lambda seen: seen > 3)
    assert 7 == await until(number, lambda seen: seen > 6)


async def test_a_wait_in_vain_says_for_what() -> None:
    """In the words of the test, with what was there instead."""
    versions = ["v1"]

    async def version() -> str:
        return versions[-1]

    with pytest.raises(AssertionError, match=r"in vain for: version\nlast seen: 'v1'"):
        await until(version, lambda seen: seen == "v2", limit_s=0)
    with pytest.raises(AssertionError, match=r'lambda: "v2" in versions.*\nlast seen: False'):
        await until(lambda: "v2" in versions, limit_s=0)


async def test_a_wait_ends_at_once_where_looking_fails() -> None:
    """What the look raises is the reason, not the limit."""

    async def ended() -> bool:
        raise ChildProcessError("the engine ended")

    with pytest.raises(ChildProcessError):
        await until(ended)
    with pytest.raises(ZeroDivisionError):
        await until(lambda: 1 // 0)
