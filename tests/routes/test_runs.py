"""/admin/runs over the whole application, with a process that trains nothing."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_run
import httpx
import pytest
from fake_adapters import FakeAdapters
from routes_app import MESSAGES, Running, running
from waiting import until

from strop.configs import demo_model
from strop.proxy import run_requests
from strop.proxy.store.run_records import RunUpdate


class Runs:
    """A strop that can train, and its owner's requests."""

    def __init__(self, app: Running) -> None:
        self.app = app

    async def ask(self, method: str, path: str = "", body: object = None) -> httpx.Response:
        """Send a request of the owner's."""
        return await self.app.client.request(
            method, f"/admin/runs{path}", json=body, headers=self.app.admin
        )

    async def get(self, path: str = "") -> dict[str, Any]:
        """Return what the owner is shown."""
        shown: dict[str, Any] = (await self.ask("GET", path)).json()
        return shown

    async def until(self, run: str, state: str) -> dict[str, Any]:
        """Return a run once it is in this state."""
        return await until(lambda: self.get(f"/{run}"), lambda found: found["state"] == state)


@contextlib.asynccontextmanager
async def training(home: Path, behaviour: str, **flags: Any) -> AsyncIterator[Runs]:
    """Start a strop whose runs behave so."""
    async with running(
        home,
        vllm=FakeAdapters(),
        train_command=fake_run.command(behaviour),
        model__base=str(demo_model()),
        **flags,
    ) as app:
        yield Runs(app)


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and message of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


async def test_a_run_that_passes_becomes_the_version_that_serves(tmp_path: Path) -> None:
    """From POST to the answer of another version, with no further word."""
    async with training(tmp_path, "passes") as runs:
        asked = await runs.ask("POST", "", {})
        passed = await runs.until(asked.json()["id"], "passed")
        await until(lambda: runs.app.services.serving.alias.active.version != "base")
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        answer = await runs.app.client.post("/v1/chat/completions", json=body)
        version = await runs.app.client.get("/admin/adapters/v1", headers=runs.app.admin)

    assert (201, "queued", "topr", "balanced", "base", "api") == (
        asked.status_code,
        *(asked.json()[key] for key in ("state", "objective", "preset", "parent", "requested_by")),
    )
    assert ("v1", ["good enough"], 1) == (passed["version"], passed["reasons"], passed["step"])
    assert [{"step": 1, "loss": 0.5}] == passed["steps"]
    assert passed["created"] <= passed["started"] <= passed["finished"]
    assert "v1" == answer.headers["x-strop-adapter"]
    events = {event["kind"]: event["actor"] for event in version.json()["events"]}
    assert ("run", "gate") == (events["passed"], events["activated"])


async def test_what_passed_waits_where_a_person_promotes(tmp_path: Path) -> None:
    """With training.promote = manual it is ready, and the base serves on."""
    async with training(tmp_path, "passes", training__promote="manual") as runs:
        asked = await runs.ask("POST", "", {"objective": "sft", "preset": "careful", "seed": 0})
        run = await runs.until(asked.json()["id"], "passed")
        await until(runs.get, lambda shown: "is under way" not in shown["waits_for"])
        version = await runs.app.client.get("/admin/adapters/v1", headers=runs.app.admin)

    asked_for = run["objective"], run["preset"], run["config"]["seed"]
    assert ("sft", "careful", 0) == asked_for
    assert "ready" == version.json()["state"]


async def test_a_running_run_is_shown_and_cancelled(tmp_path: Path) -> None:
    """With its step, the time that is left, and what was asked of it."""
    async with training(tmp_path, "waits") as runs:
        asked = (await runs.ask("POST", "", {"parent": "base"})).json()
        shown = await until(lambda: runs.get(f"/{asked['id']}"), lambda run: run["step"])
        listed = await runs.get()
        second = await runs.ask("POST", "", {})

        cancelling = await runs.ask("DELETE", f"/{asked['id']}")
        cancelled = await runs.until(asked["id"], "cancelled")
        again = await runs.ask("DELETE", f"/{asked['id']}")

    assert ("running", 1, 4, 30.0, {"loss": 0.5}) == tuple(
        shown[key] for key in ("state", "step", "num_steps", "eta_s", "metrics")
    )
    assert str(demo_model()) == shown["config"]["base_path"]
    assert f"{asked['id']} is under way" == listed["waits_for"]
    assert "steps" not in listed["data"][0]
    status, code, message = error_of(second)
    assert (409, "conflict") == (status, code)
    assert f"one run at a time, and {asked['id']} is running" in message
    assert (200, True) == (cancelling.status_code, cancelling.json()["cancelling"])
    assert ("cancelled", None) == (cancelled["state"], cancelled["version"])
    assert 200 == again.status_code


async def test_runs_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    """And what the next one waits for is said."""
    async with training(tmp_path, "waits", training__enabled=False) as runs:
        store, made = runs.app.services.store, []
        for _ in range(3):
            run = await store.runs.create(
                objective="topr", preset="balanced", parent=None, base="b", requested_by="test"
            )
            await store.runs.update(run.id, RunUpdate(state="failed", reasons=b'["no"]'))
            made.append(run.id)

        first = await runs.get("?limit=2")
        rest = await runs.get(f"?limit=2&after={made[1]}")

    assert (made[:0:-1], True) == ([one["id"] for one in first["data"]], first["has_more"])
    assert (made[:1], False) == ([one["id"] for one in rest["data"]], rest["has_more"])
    assert isinstance(first["waits_for"], str)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        (
            "POST", "", {"objective": "ppo"},
            (
                400,
                "expected `objective` to be one of topr, mispo, reinforce, sft, kto, dpo; got"
                " 'ppo'",
            ),
        ),
        ("POST", "", {"objective": 1}, (400, "expected `objective` to be a string, got 1")),
        (
            "POST", "", {"preset": "bold"},
            (
                400,
                "expected `preset` to be one of aggressive, balanced, careful, or the path of a"
                " TOML file; got 'bold'",
            ),
        ),
        ("POST", "", {"preset": ""}, (400, "expected `preset` to be a string, got ''")),
        (
            "POST", "", {"parent": "v7"},
            (404, "no version 'v7'; list the versions to find its id"),
        ),
        (
            "POST", "", {"steps": 3},
            (400, "unknown field 'steps'; allowed here: objective, preset, parent, seed"),
        ),
        (
            "POST", "", {"seed": -1},
            (400, "expected `seed` to be an integer from 0 to 4294967295, got -1"),
        ),
        (
            "POST", "", {"seed": 2**32},
            (400, "expected `seed` to be an integer from 0 to 4294967295, got 4294967296"),
        ),
        (
            "POST", "", {"seed": True},
            (400, "expected `seed` to be an integer from 0 to 4294967295, got True"),
        ),
        ("GET", "/run_7", None, (404, "there is no run 'run_7'; GET /admin/runs lists them")),
        ("DELETE", "/run_7", None, (404, "there is no run 'run_7'; GET /admin/runs lists them")),
        ("GET", "/run_7?all=1", None, (400, "unknown query parameter 'all'; allowed here: none")),
        ("GET", "?limit=0", None, (400, "expected `limit` to be a number from 1 to 100; got '0'")),
        (
            "GET", "?after=run_7", None,
            (
                400,
                "expected `after` to be an id of this list, got 'run_7'; take the last id of the"
                " page before",
            ),
        ),
        ("PUT", "", {}, (405, "expected GET, HEAD, POST at /admin/runs, got PUT")),
    ],
)  # fmt: skip
async def test_what_is_asked_wrongly_is_said(
    tmp_path: Path, method: str, path: str, body: object, expected: tuple[int, str]
) -> None:
    """What was expected, and what came; no run is queued."""
    async with training(tmp_path, "waits") as runs:
        answer = await runs.ask(method, path, body)

        assert expected == (answer.status_code, answer.json()["error"]["message"])
        assert [] == (await runs.get())["data"]


async def test_a_version_of_another_base_is_not_continued(tmp_path: Path) -> None:
    """409, with what to set."""
    async with training(tmp_path, "waits") as runs:
        versions = runs.app.services.store.versions
        v1 = await versions.reserve(base="sha256:other")
        await versions.publish(v1.id, b"{}", state="ready", actor="run")

        status, code, message = error_of(await runs.ask("POST", "", {"parent": "v1"}))

    assert (409, "conflict") == (status, code)
    assert "set model.base to that one, or start from `base`" in message


async def test_a_run_that_is_over_is_not_cancelled(tmp_path: Path) -> None:
    """409: there is nothing to stop."""
    async with training(tmp_path, "rejects") as runs:
        asked = (await runs.ask("POST", "", {})).json()
        await runs.until(asked["id"], "rejected")

        refused = await runs.ask("DELETE", f"/{asked['id']}")

    status, code, message = error_of(refused)
    assert (409, "conflict") == (status, code)
    assert f"expected a run that isn't over, but {asked['id']} is rejected" == message


async def test_without_a_base_nothing_is_trained(tmp_path: Path) -> None:
    """503 with what to set; the list says so too."""
    async with running(tmp_path, vllm=FakeAdapters()) as app:
        runs = Runs(app)
        refused = await runs.ask("POST", "", {})
        shown = await until(runs.get, lambda shown: shown["waits_for"] != "starting")

    status, code, message = error_of(refused)
    assert (503, "unavailable") == (status, code)
    assert message.startswith("nothing can be trained before model.base is set")
    assert message.endswith(f"; {run_requests.NEVER_LEARNED}")
    assert message == shown["waits_for"]


async def test_with_a_base_that_can_not_be_read_nothing_is_trained(tmp_path: Path) -> None:
    """It is known when the engine is ready, and stays so: what came after is never learned from."""
    base = tmp_path / "base"
    base.mkdir()

    async with running(tmp_path, vllm=FakeAdapters(), model__base=str(base)) as app:
        refused = await Runs(app).ask("POST", "", {})

    status, code, message = error_of(refused)
    assert (503, "unavailable") == (status, code)
    assert message.startswith(f"nothing can be trained: the base in {base} was not there")
    assert message.endswith(f"; {run_requests.NEVER_LEARNED}")


async def test_an_engine_without_adapters_trains_nothing(tmp_path: Path) -> None:
    """What was trained could not be served."""
    async with running(tmp_path, model__base=str(demo_model())) as app:
        refused = await Runs(app).ask("POST", "", {})
    async with running(tmp_path, engine__kind="vllm") as app:
        lost = await Runs(app).ask("POST", "", {})

    status, code, message = error_of(refused)
    assert (503, "unavailable") == (status, code)
    assert (
        "the engine vllm serves no adapter versions here, so ratings are kept and nothing is"
        " trained"
    ) == message
    assert (
        f"{message}; what is answered before model.base is set is never learned from elsewhere"
        " either"
    ) == error_of(lost)[2]


@pytest.mark.parametrize("kind", ["ollama", "mlx_server"])
async def test_an_engine_that_versions_are_converted_for_asks_for_their_base(
    tmp_path: Path, kind: str
) -> None:
    """It is that which is missing, not the engine's."""
    async with running(tmp_path, engine__kind=kind) as app:
        refused = await Runs(app).ask("POST", "", {})

    assert f"{run_requests.NO_BASE}; {run_requests.NEVER_LEARNED}" == error_of(refused)[2]


async def test_an_engine_that_turns_out_to_load_none_trains_nothing(tmp_path: Path) -> None:
    """It says what the engine lacks; what is answered meanwhile can be learned from later."""
    async with running(
        tmp_path,
        vllm=FakeAdapters(has_lora=False),
        train_command=fake_run.command("passes"),
        model__base=str(demo_model()),
    ) as app:
        refused = await Runs(app).ask("POST", "", {})
        said_at_the_start = app.services.trainer.why_untrained()
        answer = await app.client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES}
        )
        recorded = await app.services.store.get_completion(answer.headers["x-strop-completion-id"])
        served = app.services.serving.base

    status, code, message = error_of(refused)
    assert (503, "unavailable", said_at_the_start) == (status, code, message)
    assert message.startswith(
        "the engine vllm serves no adapter versions here, so ratings are kept and nothing is"
        " trained: it loads no adapters, so strop can't serve what it trains; "
    )
    assert recorded is not None
    assert served is not None
    assert served == recorded.completion.base


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("POST", ""), ("GET", "/run_1"), ("DELETE", "/run_1")]
)
async def test_only_the_owner_may(tmp_path: Path, method: str, path: str) -> None:
    """401 without the admin key, before anything is looked at."""
    async with running(tmp_path) as app:
        answer = await app.client.request(method, f"/admin/runs{path}")

    assert (401, "invalid_api_key") == (answer.status_code, answer.json()["error"]["code"])
