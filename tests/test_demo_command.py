"""`strop demo` shows the real thing, from start to rating."""

import re
import subprocess
import sys

import pytest


@pytest.mark.engine
def test_the_demo_chats_records_and_rates() -> None:
    """Each of the three answers is recorded with its ids, and rated once, in its own way."""
    shown = subprocess.run(
        [sys.executable, "-m", "strop.proxy.cli", "demo"],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    ).stdout

    chat, snapshot, rating, kept = re.split(
        r"\n(?:Snapshot|Rating|Kept): ", shown.partition("\nChat: ")[2]
    )
    answered = re.findall(r"cmp_[0-9a-f]{32}", chat)
    assert 3 == len(set(answered))
    sizes = [int(size) for size in re.findall(r"\((\d+)\)", snapshot)]
    assert 3 == len(sizes)
    assert sizes[1] == sizes[2] > 0
    assert answered == re.findall(r"cmp_[0-9a-f]{32}", rating)
    rated = re.findall(r"(cmp_[0-9a-f]{32})  ([+-]1)  by (\w+)", kept)
    assert [
        (answered[2], "+1", "inline"),
        (answered[1], "-1", "header"),
        (answered[0], "+1", "api"),
    ] == rated
