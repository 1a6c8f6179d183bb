"""A home that is served with another base for a while: what served before serves again after."""

import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fake_adapters import FakeAdapters, Gate
from store_values import MODEL, OTHER_MODEL, database_in, learnable, version
from swapped import Swapped, swapped
from worked import ask_on, question, worked

from strop.adapters.identity import identify
from strop.adapters.library import Library
from strop.configs import demo_model
from strop.proxy import parts
from strop.proxy.errors import StoreUnavailable
from strop.proxy.settings.settings import Settings
from strop.proxy.store.store import Store
from strop.proxy.store.version_store import VersionStore
from strop.proxy.versions.displaced import displaced, to_continue
from strop.proxy.versions.pairing import identity_of

OWN = demo_model()
"""The base that the versions here are of."""


async def make(home: Path, *, num_adapters: int = 2) -> None:
    """Make a home in which v2 serves, after v1."""
    async with swapped(home, base=OWN, num_adapters=num_adapters) as it:
        for version in ("v1", "v2"):
            await it.publish(base=identify(OWN, cache=None))
            await it.swapper.activate(version, actor="api")


async def previous(it: Swapped) -> str | None:
    """Return where a rollback goes."""
    return (await it.proxy.services.store.versions.activation()).previous


async def serve_with(home: Path, base: Path | None) -> tuple[str | None, str]:
    """Start strop with a base; return what answers, and what the store says is active."""
    async with swapped(home, base=base) as it:
        return await it.served(), await it.active()


@pytest.mark.parametrize("num_adapters", [1, 2])
async def test_with_its_own_base_the_version_serves_again(
    qwen3: Path, llama: Path, tmp_path: Path, num_adapters: int
) -> None:
    """After any number of starts with others; a rollback goes where it went before them."""
    home = tmp_path / "home"
    await make(home, num_adapters=num_adapters)
    for base in (qwen3, qwen3, llama):
        async with swapped(home, base=base, num_adapters=num_adapters) as it:
            assert ("base", "base") == (await it.served(), await it.active())
            assert 2 == len(await it.events("base"))
    for _ in range(2):
        async with swapped(home, base=OWN, num_adapters=num_adapters) as it:
            assert ("v2", "v2", "v1") == (await it.served(), await it.active(), await previous(it))
            assert ["tiny@v2"] == it.fake.loads
            assert "tiny@v2" in it.fake.probed
            # Written down once, however often strop starts.
            assert 1 == (await it.events("v2")).count("rolled_back")
    async with swapped(home, base=OWN, num_adapters=num_adapters) as it:
        back = [(await it.swapper.rollback(actor="api")).version for _ in range(2)]
        assert (["v1", "base"], "base", None) == (back, await it.served(), await previous(it))


async def test_nobody_gets_the_base_in_its_place_meanwhile(qwen3: Path, tmp_path: Path) -> None:
    """Until it is loaded and proven requests get 503, as at every start."""
    home, gate = tmp_path / "home", Gate()
    await make(home)
    await serve_with(home, qwen3)

    fake = FakeAdapters(before_answer=gate)
    async with swapped(home, base=OWN, fake=fake, ready=False) as it:
        await gate.reached.wait()

        answer = await it.proxy.chat()

        assert (503, "engine_not_ready") == (answer.status_code, answer.json()["error"]["code"])
        assert 503 == (await it.proxy.client.get("/readyz")).status_code
        gate.opened.set()
        await it.proxy.services.serving.wait_until_ready()
        assert "v2" == await it.served()


async def test_what_it_can_not_be_proven_to_serve_is_said_and_not_replaced(
    qwen3: Path, tmp_path: Path
) -> None:
    """As at every start; activating the base mends it."""
    home, fake = tmp_path / "home", FakeAdapters(weights_of=lambda _name, _folder: "other")
    await make(home)
    await serve_with(home, qwen3)

    async with swapped(home, base=OWN, fake=fake, ready=False) as it:
        await it.proxy.services.serving.wait_until_asked()
        answer = await it.proxy.chat()
        assert (503, "v2") == (answer.status_code, await it.active())
        await it.swapper.activate("base", actor="api")

        assert "base" == await it.served()


async def test_what_is_written_down_is_not_written_again(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base serves at a second start with another base though the store takes no writes."""
    home = tmp_path / "home"
    await make(home)
    await serve_with(home, qwen3)

    async def fails(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    # Of that start, no other write is to fail.
    monkeypatch.setattr(VersionStore, "activate", fails)

    async with swapped(home, base=qwen3, ready=False) as it:
        await it.proxy.services.serving.wait_until_asked()
        assert ("base", "base") == (await it.served(), await it.active())


async def test_nothing_is_brought_before_the_base_is_known(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever pins a version may mean one of the base that served before."""
    home, gate = tmp_path / "home", Gate()
    await make(home)

    async def slow(settings: Settings, home: Path) -> str | None:
        await gate("base")
        return await identity_of(settings, home)

    # As where many gigabytes of weights are read for it.
    monkeypatch.setattr(parts, "identity_of", slow)

    async with swapped(home, base=qwen3, ready=False) as it:
        await gate.reached.wait()
        early = await it.proxy.chat(model="tiny@v1")
        gate.opened.set()
        await it.proxy.services.serving.wait_until_ready()
        late = await it.proxy.chat(model="tiny@v1")

        assert (503, "engine_not_ready") == (early.status_code, early.json()["error"]["code"])
        assert (409, []) == (late.status_code, it.fake.loads)
        assert "v1 was made for the base" in late.json()["error"]["message"]


async def _keeps_the_base(it: Swapped) -> None:
    done = await it.swapper.activate("base", actor="cli")
    assert (done.version, done.previous) == ("base", "base")


async def _activates_another(it: Swapped) -> None:
    await it.swapper.activate(
        await it.publish(base=it.proxy.services.serving.base or ""), actor="gate"
    )


async def _goes_back_from_another(it: Swapped) -> None:
    await _activates_another(it)
    await it.swapper.rollback(actor="watch")


async def _removes_it(it: Swapped) -> None:
    await it.swapper.remove("v2", actor="cli")


@pytest.mark.parametrize(
    "choose", [_keeps_the_base, _activates_another, _goes_back_from_another, _removes_it]
)
async def test_what_was_chosen_since_stays(
    qwen3: Path, tmp_path: Path, choose: Callable[[Swapped], Awaitable[None]]
) -> None:
    """By anybody, be it the base itself; and what was removed gives way to nothing older."""
    home = tmp_path / "home"
    await make(home)
    async with swapped(home, base=qwen3) as it:
        await choose(it)

    assert ("base", "base") == await serve_with(home, OWN)


async def test_what_another_base_displaces_there_is_what_serves_there_again(
    qwen3: Path, tmp_path: Path
) -> None:
    """The last one that had to leave, whosever it is; the one before is named."""
    home = tmp_path / "home"
    await make(home)
    async with swapped(home, base=qwen3) as it:
        await _activates_another(it)
    async with swapped(home, base=OWN) as it:
        (event, *_) = await it.proxy.services.store.versions.list_events("base", limit=1)
        assert b"v3 is of another base than the engine serves now" in event.detail
        assert b"; v2 is of this one (`adapters activate v2`)" in event.detail

    assert ("v3", "v3") == await serve_with(home, qwen3)


@pytest.mark.parametrize("harm", ["other weights", "no folder"])
async def test_whose_files_are_not_as_they_were_stays_out_until_they_are(
    qwen3: Path, tmp_path: Path, harm: str
) -> None:
    """The base serves on, and the version's events say why."""
    home, away = tmp_path / "home", tmp_path / "away"
    await make(home)
    folder = Library(home / "adapters").path_of("v2")
    await serve_with(home, qwen3)
    shutil.copytree(folder, away)
    if harm == "no folder":
        shutil.rmtree(folder)
    else:
        (folder / "adapter_model.safetensors").write_bytes(b"something else")

    async with swapped(home, base=OWN) as it:
        assert ("base", "base") == (await it.served(), await it.active())
        assert "missing" == (await it.version("v2")).state
        assert "activation_failed" in await it.events("v2")
    shutil.copytree(away, folder, dirs_exist_ok=True)

    assert ("v2", "v2") == await serve_with(home, OWN)


async def test_what_became_stale_meanwhile_serves_again_all_the_same(
    qwen3: Path, tmp_path: Path
) -> None:
    """As it would serve on, had it not left."""
    home = tmp_path / "home"
    async with swapped(home, base=OWN) as it:
        learned = await learnable(it.proxy.services.store, 1)
        await it.publish(base=identify(OWN, cache=None), feedback=[learned])
        await it.swapper.activate("v1", actor="api")
    async with swapped(home, base=qwen3) as it:
        await it.proxy.services.store.withdraw(learned[0], None)
        assert (await it.version("v1")).stale

    assert ("v1", "v1") == await serve_with(home, OWN)


async def test_where_the_base_is_not_known_the_base_serves(qwen3: Path, tmp_path: Path) -> None:
    """Nothing says whether it is the version's; it is once that is set again."""
    home = tmp_path / "home"
    await make(home)
    await serve_with(home, qwen3)

    assert ("base", "base") == await serve_with(home, None)
    assert ("v2", "v2") == await serve_with(home, OWN)


async def test_a_run_continues_what_a_start_with_its_base_would_serve(tmp_path: Path) -> None:
    """Not what is of another base, nor what is gone, nor what somebody has chosen against since."""
    async with contextlib.AsyncExitStack() as stack:
        store = await Store.open(database_in(tmp_path), synchronous="off")
        stack.push_async_callback(store.close)
        versions = store.versions
        await version(store)
        await versions.activate("v1", actor="api")
        await versions.activate("base", actor="start")

        found = [await to_continue(versions, base) for base in (MODEL, OTHER_MODEL)]
        await versions.mark_missing("v1", "its folder is gone", actor="start")
        found.append(await to_continue(versions, MODEL))
        await versions.mark_found("v1", actor="start")
        found.append(await to_continue(versions, MODEL))
        await versions.add_event("base", "activated", actor="api")
        found.append(await to_continue(versions, MODEL))

    assert ["v1", "base", "base", "v1", "base"] == found


@pytest.mark.parametrize("actor", ["start", "api"])
async def test_what_the_base_stands_in_for_is_known_whatever_happened_to_it_since(
    tmp_path: Path, actor: str
) -> None:
    """However many events there are."""
    async with contextlib.AsyncExitStack() as stack:
        store = await Store.open(database_in(tmp_path), synchronous="off")
        stack.push_async_callback(store.close)
        await version(store)
        await store.versions.activate("v1", actor="api")
        await store.versions.activate("base", actor=actor)
        for _ in range(60):
            await store.versions.add_event("base", "unloaded", actor="watch")

        assert ("v1" if actor == "start" else None) == await displaced(store.versions)


async def test_workers_serve_it_again_too(qwen3: Path, tmp_path: Path) -> None:
    """The process that decides tells them."""
    home = tmp_path / "home"
    await make(home)
    await serve_with(home, qwen3)

    async with worked(home, f"model.base={OWN}") as it:
        answers = [await ask_on(one, question()) for one in await it.crowd(2)]

        assert ["v2", "v2"] == [answer.headers["x-strop-adapter"] for answer in answers]
