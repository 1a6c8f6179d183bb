"""`strop serve`: runs the server over the parts, and says what a person needs to know.

Does not parse command lines, or know engines.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from strop.configs import installation
from strop.proxy import auth, configured_engine, detection, open_files
from strop.proxy.app import App
from strop.proxy.errors import ConfigError
from strop.proxy.home import Serves, hold
from strop.proxy.http_server import Alone, collect_rarely, listen, url_of, uvicorn_config
from strop.proxy.parts import Control, Services, run_services
from strop.proxy.routes import routing
from strop.proxy.settings.settings import Settings, home_hint
from strop.proxy.settings.told import tell
from strop.proxy.store import layout, rebuilding

log = logging.getLogger(__name__)

_PORTS: Final = {"http": 80, "https": 443}


def serve(settings: Settings, home: Path) -> int:
    """Serve until stopped by SIGINT or SIGTERM; return the exit status.

    Raises:
        ConfigError: the settings don't allow it.
    """
    open_files.hold_standard()
    auth.check_bind(settings.server.host, settings.server.client_keys)
    choice = asyncio.run(detection.detect(settings, at=home_hint(home)))
    if settings.log.format == "json":
        for line in choice.says:
            log.info(line.strip())
    else:
        _tell("\n".join(choice.says))
    asked, settings = tell(settings), choice.settings
    configured_engine.check(settings)
    open_files.raise_limit()
    # Here a signal ends it at once.
    asyncio.run(rebuilding.wait(home, log.info))
    listener = listen(settings.server.host, settings.server.port)
    url = url_of(settings.server.host, listener.getsockname()[1])
    with listener, hold(home, Serves(url, asked, tell(settings))):
        check_is_other(settings, url)
        settings = configured_engine.with_own_key(settings)
        if settings.server.workers > 1:
            # One process needs nothing of it.
            from strop.proxy.workers.supervisor import run

            status = run(settings, home, listener, lambda it: say_when_ready(it, url))
        else:
            app = App(_services(settings, home, url), routing.make)
            server = Alone(uvicorn_config(settings, app))
            # Where start-up fails uvicorn says why, and leaves with a status of its own.
            with contextlib.suppress(SystemExit):
                server.run(sockets=[listener])
            status = server.exit_status
    if status == 0:
        log.info("stopped")
    return status


def check_is_other(settings: Settings, url: str) -> None:
    """Refuse strop's own `url` as an engine's: it would wait for itself to be ready, for good.

    Raises:
        ConfigError: it is one.
    """
    for one in (settings.engine.url, *settings.engine.replicas):
        if one and _place(one) == _place(url):
            raise ConfigError(
                f"expected an engine at {auth.scrub_url(one)}, which is where strop itself listens"
                " now; correct engine.url, or let strop listen elsewhere with --port"
            )


def _place(url: str) -> tuple[str, int]:
    """Return host and port of a URL; all names of this machine's own loopback are one."""
    there = urlsplit(url)
    host = there.hostname or ""
    return host if auth.is_public(host) else "localhost", there.port or _PORTS[there.scheme]


@contextlib.asynccontextmanager
async def _services(settings: Settings, home: Path, url: str) -> AsyncIterator[Services]:
    engine, process = configured_engine.make(settings, home)
    async with run_services(settings, home, engine, process) as services:
        collect_rarely()
        banner = asyncio.create_task(say_when_ready(services, url))
        try:
            yield services
        finally:
            banner.cancel()


async def say_when_ready(services: Control, url: str) -> None:
    """Say how to use strop, once the engine is ready; and until then, that it isn't."""
    serving, engine = services.serving, services.serving.engine
    if services.process is None:
        await serving.wait_until_asked()
        # Once it answers, `serving` says itself why it is not ready.
        while not serving.is_answering:
            extra = {"url": auth.scrub_url(engine.upstream.url), "reason": serving.reason}
            log.warning("waiting for the engine", extra=extra)
            await serving.wait_until_asked(serving.reason)
    else:
        log_file = services.home / layout.ENGINE_LOG
        model, extra = services.settings.model.path, {"log": str(log_file)}
        if configured_engine.is_hub_id(model):
            extra["from_the_hub"] = model
        log.info("waiting for the engine to load its model", extra=extra)
    await serving.wait_until_ready()
    alias = serving.alias
    is_demo = services.process is not None and not services.settings.model.path
    why_untrained = services.trainer.why_untrained()
    if why_untrained is not None:
        log.warning("ratings teach nothing", extra={"reason": why_untrained})
    version, by = alias.active.version, f"{engine.label} at {auth.scrub_url(engine.upstream.url)}"
    if services.settings.log.format == "json":
        # What collects it takes both outputs for one log, of which each line is an object.
        extra = {"url": url, "model": alias.name, "version": version, "engine": by}
        log.info("strop serves", extra=extra)
        return
    _tell(
        banner(
            url=url,
            model=alias.name,
            engine_model=alias.base.name,
            version=version,
            engine=by,
            home=services.home,
            is_demo=is_demo,
            needs_key=bool(services.settings.server.client_keys),
            why_untrained=why_untrained,
        )
    )


def _tell(text: str) -> None:
    """Print `text`; who reads it may be gone, and strop serves all the same."""
    try:
        if text:
            print(text, flush=True)
    except ValueError as error:
        # It is closed, or can't write a letter of the home's name.
        log.warning("standard output does not take this", extra={"reason": str(error)})
    except OSError as error:
        log.warning("standard output takes nothing", extra={"reason": str(error)})
        # What it did not take is tried again at exit, and would be an error then.
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def banner(
    *,
    url: str,
    model: str,
    engine_model: str,
    version: str,
    engine: str,
    home: Path,
    is_demo: bool,
    needs_key: bool,
    why_untrained: str | None,
) -> str:
    """Return what a person is told at the start: a line set in by four is a command to paste."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    headers = "-H 'Content-Type: application/json'"
    if needs_key:
        headers += ' -H "Authorization: Bearer $OPENAI_API_KEY"'
    key = "KEY" if needs_key else "strop"
    at, strop = home_hint(home), installation.strop()
    lines = [
        "",
        f"strop serves {model} ({version}), by {engine}"
        + f", whose {engine_model} answers as {model}" * (model != engine_model),
        "",
        "  Point an agent at it" + (" (KEY: one of server.client_keys):" * needs_key or ":"),
        f"    export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={key}",
        "  Claude Code has variables of its own:",
        f"    export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={key}",
        "  Try it:",
        f"    curl {url}/v1/chat/completions {headers} -d '{body}'",
        "  Rate an answer: type /rl good or /rl bad [why] as your next message, or run",
        f"    {strop} good{at}",
        f"    {strop} bad{at} -m 'too long'",
        f"  What is recorded stays in {home}; see it with",
        f"    {strop} completions list{at}",
        f"    {strop} status{at}",
    ]
    if why_untrained is not None:
        lines += ["", f"  {why_untrained}"]
    if is_demo:
        lines += [
            "",
            "  This is the small demo model that strop ships: it knows 94 facts and little else.",
            "  A real one, or the one that your engine serves:",
            f"    {strop} serve{at} --model mlx-community/Qwen3-4B-4bit",
            f"    {strop} serve{at} --engine vllm --engine-url http://127.0.0.1:8000"
            " --set model.base=MODEL",
        ]
    return "\n".join([*lines, ""])
