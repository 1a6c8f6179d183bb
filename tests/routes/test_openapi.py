"""The OpenAPI document: it says what the routes do, and the routes do what it says."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fake_run
import pytest
import shelved
from fake_adapters import FakeAdapters, Gate
from routes_app import MESSAGES, Running, running
from starlette.applications import Starlette
from waiting import until

from strop.adapters.library import Library
from strop.configs import demo_model
from strop.proxy.routes import routing
from strop.proxy.routes.openapi import document
from strop.proxy.routes.operations import RELAYED

DOCUMENT: dict[str, Any] = json.loads(document())
Asked = tuple[str, str, str, Any]
"""A path of the document's, a method, the URL, and what is sent."""

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
# What the schemas here are made of; another keyword needs a line in `problems`.
KEYWORDS = {
    "$ref", "type", "description", "properties", "required", "additionalProperties", "items",
    "enum", "const", "oneOf", "minimum", "maximum", "minLength", "maxLength", "pattern", "default",
    "externalDocs",
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Running]:
    """A strop without client keys."""
    async with running(tmp_path) as app:
        yield app


def resolved(reference: str) -> dict[str, Any]:
    """Return what a `$ref` names."""
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    assert isinstance(found, dict)
    return found


def problems(value: object, schema: dict[str, Any], at: str = "$") -> Iterator[str]:
    """Yield where `value` is not as `schema` says."""
    if "$ref" in schema:
        yield from problems(value, resolved(schema["$ref"]), at)
        return
    types = schema.get("type", [])
    kinds = [types] if isinstance(types, str) else types
    if kinds and not any(
        isinstance(value, TYPES[kind]) and (kind == "boolean") == isinstance(value, bool)
        for kind in kinds
    ):
        yield f"{at}: expected {kinds}, got {value!r}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{at}: {value} is out of range"
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{at}: too short, or too long"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{at}: {value!r} does not match"
    if "oneOf" in schema:
        fits = [one for one in schema["oneOf"] if not list(problems(value, one, at))]
        if len(fits) != 1:
            yield f"{at}: {value!r} fits {len(fits)} of oneOf"
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            yield from problems(item, schema["items"], f"{at}[{number}]")
    if isinstance(value, dict) and "properties" in schema:
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{at}: {name} is missing"
        for name, member in value.items():
            if name in schema["properties"]:
                yield from problems(member, schema["properties"][name], f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{at}: {name} is not in the schema"


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation of all that the document describes."""
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS & set(item):
            yield path, method, item[method]


def schemas(found: object = DOCUMENT["components"]["schemas"]) -> Iterator[dict[str, Any]]:
    """Yield every schema among the components."""
    assert isinstance(found, dict)
    for schema in found.values():
        yield schema
        yield from schemas(schema.get("properties", {}))
        yield from schemas(dict(enumerate(schema.get("oneOf", []))))
        if "items" in schema:
            yield from schemas({"items": schema["items"]})


def references(found: object = DOCUMENT) -> Iterator[str]:
    """Yield every `$ref` of the document."""
    if isinstance(found, dict):
        if "$ref" in found:
            yield found["$ref"]
        for member in found.values():
            yield from references(member)
    elif isinstance(found, list):
        for member in found:
            yield from references(member)


async def test_the_document_has_the_routes_and_no_others(app: Running) -> None:
    """Each path with each method, and what is relayed."""
    made = routing.make(app.services)
    assert isinstance(made, Starlette)
    there = {
        (path, method.lower())
        for path, methods in routing.paths(made).items()
        for method in methods
    }

    described = {(path, method) for path, method, _ in operations()}
    assert sorted(there | {(path, "post") for path in RELAYED}) == sorted(described)


async def test_the_document_is_served(app: Running) -> None:
    """As JSON, at /openapi.json."""
    answer = await app.client.get("/openapi.json")

    assert "application/json" == answer.headers["content-type"]
    assert DOCUMENT == answer.json()
    assert "3.1.0" == answer.json()["openapi"]


def test_every_reference_leads_somewhere() -> None:
    """And every component is referred to."""
    named = set(references())

    assert all(resolved(reference) for reference in named)
    components = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in DOCUMENT["components"][kind]
    }
    assert components == named


def test_schemas_use_keywords_that_are_checked_here() -> None:
    """An unknown keyword would be checked by nobody."""
    used = {keyword for schema in schemas() for keyword in schema}

    assert set() == used - KEYWORDS


def test_required_members_have_schemas() -> None:
    """In every object that lists its members."""
    assert [] == [
        name
        for schema in schemas()
        if "properties" in schema
        for name in schema.get("required", ())
        if name not in schema["properties"]
    ]


def test_path_parameters_are_described() -> None:
    """Each name in braces, and no other."""
    for path, item in DOCUMENT["paths"].items():
        described = {one["name"] for one in item.get("parameters", []) if one["in"] == "path"}

        assert set(re.findall(r"{(\w+)}", path)) == described


def test_operations_are_complete() -> None:
    """Each says what it does, who may, and what comes back."""
    known = set(DOCUMENT["components"]["securitySchemes"])
    for path, method, operation in operations():
        where = f"{method} {path}"

        assert operation["summary"], where
        assert {name for one in operation["security"] for name in one} <= known, where
        assert any(status.startswith("2") for status in operation["responses"]), where
        for response in operation["responses"].values():
            assert "$ref" in response or response["description"], where


def test_admin_paths_ask_for_the_admin_key() -> None:
    """And no others do."""
    asking = {path for path, _, op in operations() if {"adminKey": []} in op["security"]}

    assert {path for path in DOCUMENT["paths"] if path.startswith("/admin/")} == asking


@pytest.mark.parametrize(
    "path", ["/v1/feedback", "/v1/feedback/export", "/admin/completions", "/admin/runs"]
)
async def test_query_parameters_are_those_that_are_taken(app: Running, path: str) -> None:
    """The error for an unknown one lists all that the document has."""
    answer = await app.client.get(f"{path}?unknown=1", headers=app.admin)

    allowed = answer.json()["error"]["message"].partition("allowed here: ")[2].split(", ")
    described = DOCUMENT["paths"][path]["get"]["parameters"]
    assert sorted(one["name"] for one in described) == sorted(allowed)


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/feedback/export", "/admin/completions"])
async def test_since_is_taken_as_far_as_is_described(app: Running, path: str) -> None:
    """Any number below its bound, and none from there on."""
    described = DOCUMENT["paths"][path]["get"]["parameters"]
    (schema,) = (one["schema"] for one in described if one["name"] == "since")
    bound = schema["exclusiveMaximum"]
    asked = {"format": "raw"} if path.endswith("export") else {}

    taken, refused = [
        await app.client.get(path, params={**asked, "since": since}, headers=app.admin)
        for since in (bound - 1, bound)
    ]

    assert (200, 400) == (taken.status_code, refused.status_code)


async def test_answers_are_as_described(app: Running) -> None:
    """Status and body of every JSON operation of strop's own fit the document."""
    completion = await app.record()
    body = {"completion_id": completion, "rating": "good", "comment": "fine", "tags": ["a"]}
    given = (await app.client.post("/v1/feedback", json=body)).json()["id"]
    calls: list[Asked] = [
        (path, "get", path, None)
        for path in ("/", "/livez", "/readyz", "/health", "/v1/models", "/v1/feedback")
    ]
    calls += [
        ("/v1/models/{name}", "get", "/v1/models/tiny", None),
        ("/v1/models/{name}", "get", "/v1/models/none", None),
        ("/v1/feedback", "post", "/v1/feedback", {**body, "id": "k"}),
        ("/v1/feedback", "post", "/v1/feedback", {**body, "id": "k"}),
        ("/v1/feedback", "post", "/v1/feedback", {**body, "id": "k", "rating": 0}),
        ("/v1/feedback", "post", "/v1/feedback", {**body, "rating": "no"}),
        ("/v1/feedback", "post", "/v1/feedback", {**body, "completion_id": "cmp_no"}),
        ("/v1/feedback/export", "get", "/v1/feedback/export", None),
        ("/v1/feedback/{id}", "get", f"/v1/feedback/{given}", None),
        ("/v1/feedback/{id}", "put", f"/v1/feedback/{given}", {"rating": -0.5}),
        ("/v1/feedback/{id}", "delete", f"/v1/feedback/{given}", None),
        ("/v1/feedback/{id}", "delete", "/v1/feedback/fb_no", None),
        ("/admin/completions", "get", "/admin/completions", None),
        ("/admin/completions/{id}", "get", f"/admin/completions/{completion}", None),
        ("/admin/completions/{id}", "get", "/admin/completions/cmp_no", None),
        ("/v1/messages", "post", "/v1/messages", {"max_tokens": 9, "messages": MESSAGES}),
        ("/v1/messages", "post", "/v1/messages", {"model": "no", "max_tokens": 9, "messages": []}),
    ]
    count = "/v1/messages/count_tokens"
    calls += [(count, "post", count, {"messages": sent}) for sent in (MESSAGES, "none")]

    assert {200, 201, 400, 404, 409} == await statuses(app, calls)


async def statuses(app: Running, calls: list[Asked]) -> set[int]:
    """Send requests, check that each answer fits the document, and return the statuses."""
    found = set()
    for path, method, url, sent in calls:
        answer = await app.client.request(method, url, json=sent, headers=app.admin)
        described = DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)]
        if "$ref" in described:
            described = resolved(described["$ref"])
        schema = described["content"]["application/json"]["schema"]
        assert [] == list(problems(answer.json(), schema)), f"{method} {url}"
        found.add(answer.status_code)
    return found


async def test_versions_and_runs_are_as_described(tmp_path: Path) -> None:
    """Those that are loaded, rated, activated, refused and removed too; and what runs do."""
    adapters, runs = "/admin/adapters", "/admin/runs"
    train = fake_run.command("waits")
    async with running(
        tmp_path, vllm=FakeAdapters(), train_command=train, model__base=str(demo_model())
    ) as app:
        store, base = app.services.store, app.services.serving.base
        assert base is not None
        library = Library(tmp_path / "adapters")
        for _ in range(2):
            await shelved.publish(store, library, base=base)
        await app.rate(await app.record(base=base, version="v1"))
        calls: list[Asked] = [
            (adapters, "get", adapters, None),
            (f"{adapters}/active", "put", f"{adapters}/active", {"version": "v1"}),
            (f"{adapters}/active", "put", f"{adapters}/active", {"version": "v7"}),
            (f"{adapters}/active", "put", f"{adapters}/active", {"force": True}),
            (adapters, "get", adapters, None),
            (f"{adapters}/{{version}}", "get", f"{adapters}/v1", None),
            (f"{adapters}/{{version}}", "get", f"{adapters}/v7", None),
            (f"{adapters}/{{version}}", "put", f"{adapters}/v2", {"kept": True}),
            (f"{adapters}/{{version}}", "delete", f"{adapters}/v1", None),
            (f"{adapters}/{{version}}", "delete", f"{adapters}/v2", None),
            (f"{adapters}/rollback", "post", f"{adapters}/rollback", {}),
            (f"{adapters}/rollback", "post", f"{adapters}/rollback", None),
            (adapters, "post", adapters, {"path": str(tmp_path)}),
            (runs, "post", runs, {"objective": "sft"}),
            (runs, "post", runs, {}),
            (runs, "get", runs, None),
            (f"{runs}/{{id}}", "get", f"{runs}/run_7", None),
        ]

        found = await statuses(app, calls)
        (run,) = (await store.runs.list()).data
        await until(lambda: store.runs.list_steps(run.id))
        one = f"{runs}/{run.id}"
        found |= await statuses(
            app,
            [
                (f"{runs}/{{id}}", "get", one, None),
                (runs, "get", runs, None),
                (f"{runs}/{{id}}", "delete", one, None),
            ],
        )

    assert {200, 201, 400, 404, 409} == found


async def test_an_activation_under_way_is_as_described(tmp_path: Path) -> None:
    """And one that fails."""
    fake, gate = FakeAdapters(), Gate()
    fake.before_load, fake.load_error = gate, "no memory"
    adapters = "/admin/adapters"
    async with running(tmp_path, vllm=fake) as app:
        await shelved.publish(app.services.store, Library(tmp_path / "adapters"))
        activate = [(f"{adapters}/active", "put", f"{adapters}/active", {"version": "v1"})]
        activating = asyncio.create_task(statuses(app, activate))
        await gate.reached.wait()

        listed = await statuses(app, [(adapters, "get", adapters, None)])
        gate.opened.set()

        assert ({200}, {503}) == (listed, await activating)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", "/v1/messages"),
        ("post", "/v1/messages/count_tokens"),
        ("post", "/v1/feedback"),
        ("get", "/readyz"),
        ("get", "/metrics"),
        ("get", "/openapi.json"),
    ],
)
async def test_another_servers_host_is_refused_as_described(
    app: Running, method: str, path: str
) -> None:
    """In its dialect only where that is known by then."""
    app.client.headers["host"] = "another.example"

    assert {403} == await statuses(app, [(path, method, path, {} if method == "post" else None)])


async def test_what_an_engine_that_is_gone_can_not_do_is_as_described(tmp_path: Path) -> None:
    """It is asked what it holds before anything is changed there."""
    adapters = "/admin/adapters"
    async with running(tmp_path, vllm=FakeAdapters()) as app:
        for _ in range(2):
            await shelved.publish(app.services.store, Library(tmp_path / "adapters"))
        for version in ("v1", "v2"):
            await app.services.swapper.activate(version, actor="api")
        await app.engine.stop()

        found = await statuses(
            app,
            [
                (f"{adapters}/active", "put", f"{adapters}/active", {"version": "v1"}),
                (f"{adapters}/rollback", "post", f"{adapters}/rollback", {}),
                (f"{adapters}/{{version}}", "delete", f"{adapters}/v1", None),
            ],
        )
        await app.engine.start()

    assert {502} == found


@pytest.mark.parametrize(
    "body",
    [
        {"completion_id": "c", "rating": "good"},
        {"completion_id": "c", "rating": True},
        {"completion_id": "c", "rating": -0.5},
        {"completion_id": "c", "rating": "0.5"},
        {"completion_id": "c", "rating": {"stars": 5}},
        {"completion_id": "c", "rating": 1, "scope": "turn", "tags": [], "rater": None},
        {"completion_id": "c"},
        {"completion_id": "", "rating": "good"},
        {"rating": "good"},
        {"completion_id": "c", "rating": 2},
        {"completion_id": "c", "rating": {"stars": 6}},
        {"completion_id": "c", "rating": "good", "choice": -1},
        {"completion_id": "c", "rating": "good", "scope": "all"},
        {"completion_id": "c", "rating": "good", "note": "x"},
        {"completion_id": "c", "rating": "good", "comment": "x" * 10_001},
    ],
)
async def test_a_rating_fits_the_schema_if_it_is_taken(app: Running, body: dict[str, Any]) -> None:
    """The schema of what is sent and the parser agree."""
    if body.get("completion_id"):
        body = {**body, "completion_id": await app.record()}

    answer = await app.client.post("/v1/feedback", json=body)

    fits = not list(problems(body, DOCUMENT["components"]["schemas"]["NewFeedback"]))
    assert fits == (answer.status_code == 201)
