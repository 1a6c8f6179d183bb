"""A client of a walk as it talks: asks, types commands, leaves, and compares what it gets.

Chooses nothing but how to say it; what comes of it is entered in what is expected.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from expected import Completion, Expected, Talk
from faults_process import database
from said import Answer, Said, known, response_id, wire, words
from waiting import until
from walk_engine import TAG, TOOLS, Talker, Way

from strop.proxy.store.pack import unpack_bytes


class Speaker:
    """One client, who does one thing after the other.

    Args:
        chance: what its choices are made with.
        book: where what it does is entered.
        home: strop's.

    Attributes:
        http: its connections, with its key; set before it speaks.
        own: the completions that it asked for.
    """

    http: httpx.AsyncClient

    def __init__(
        self,
        name: str,
        key: str,
        chance: random.Random,
        book: Expected,
        engine: Talker,
        home: Path,
    ) -> None:
        self.name = name
        self.key = key
        self.chance = chance
        self.book, self.engine, self.home = book, engine, home
        self.own: list[Completion] = []
        self.num_asked = 0

    def may(self, chance: float) -> bool:
        """Return True as often as `chance` says."""
        return self.chance.random() < chance

    async def ask(
        self,
        talk: Talk,
        way: Way = "whole",
        meanwhile: Callable[[str], Awaitable[None]] | None = None,
        *,
        num: int = 1,
        header: str | None = None,
    ) -> Completion:
        """Send the conversation, and compare what the client and the engine get."""
        book, engine, history = self.book, self.engine, talk.history
        is_stream = way in ("dies", "left") or meanwhile is not None or self.may(0.5)
        tag, path, headers, body = self._request(talk, is_stream)
        body |= {"n": num} if num > 1 else {}
        headers |= {"x-strop-feedback": header} if header else {}
        talk.steps.append(f"{tag}: {way}, n={num}, {header or ''}: {talk.said[-1].text}")
        engine.ways[tag] = way
        is_held = way == "left" or meanwhile is not None
        if is_held:
            engine.held[tag] = asyncio.Event()
        above = _named(body) or book.reply(talk, history)
        raw = b""
        async with self.http.stream("POST", path, json=body, headers=headers) as answer:
            if "x-strop-completion-id" not in answer.headers:
                book.same("the answer", "recorded", (await answer.aread()).decode(), talk)
            id_, version = (
                answer.headers[f"x-strop-{what}"] for what in ("completion-id", "adapter")
            )
            talk.steps[-1] += f" -> {id_} by {version}"
            if header:
                self._enter_header(talk, header, above, answer.headers["x-strop-feedback-status"])
            pieces = answer.aiter_raw()
            while is_held and not words(talk.dialect, is_stream, raw):
                raw += await anext(pieces)
            if meanwhile is not None:
                await meanwhile(id_)
            if way != "left":
                if is_held:
                    engine.held[tag].set()
                raw += b"".join([piece async for piece in pieces])
        choices = engine.said.get(tag, [])
        if way != "whole":
            seen = words(talk.dialect, is_stream, raw) if choices else ""
            choices = await self._begun(id_, choices, seen, talk)
            book.same("whether it says so", way != "left", b'"error":{' in raw, talk)
        elif talk.dialect == "chat":
            book.same("an answer's bytes", engine.plain[tag], raw, talk)
        else:
            book.same("an answer", choices[0].text, words(talk.dialect, is_stream, raw), talk)
        if is_held:
            engine.held[tag].set()
        served = engine.got[tag]["model"].partition("@")[2] or "base"
        book.same("the version", version, served, talk)
        expected = [one.known_by for one in history]
        book.same("what the engine got", expected, known(engine.got[tag]["messages"]), talk)
        state = {"whole": "complete", "left": "client_cancelled"}.get(way, "upstream_error")
        one = Completion(id_, talk, history, is_stream, version, state, choices, above)
        book.record(one)
        self.own.append(one)
        return one

    def _request(
        self, talk: Talk, is_stream: bool
    ) -> tuple[str, str, dict[str, str], dict[str, Any]]:
        """Return a request's tag, path, headers and body."""
        self.num_asked += 1
        tag = f"{self.name}-{self.num_asked}"
        headers = {TAG: tag}
        path = f"/v1/{'chat/completions' if talk.dialect == 'chat' else talk.dialect}"
        if talk.label and self.may(0.5):
            path = f"/s/{talk.label}{path}"
        elif talk.label:
            headers["x-strop-session"] = talk.label
        messages = [wire(one) for one in talk.said]
        body: dict[str, Any] = {"model": "tiny", "stream": is_stream}
        if talk.dialect == "chat":
            return tag, path, headers, {**body, "messages": messages, "tools": TOOLS}
        if talk.dialect == "messages":
            return tag, path, headers, {**body, "messages": messages, "max_tokens": 500}
        body["input"] = messages
        if len(talk.said) > 1 and talk.said[-2].link and self.may(0.5):
            body["previous_response_id"] = talk.said[-2].link
            body["input"] = messages[-1:]
        return tag, path, headers, body

    async def _begun(self, id_: str, choices: Sequence[Said], seen: str, talk: Talk) -> list[Said]:
        """Return what is recorded of an answer that was cut: no less than was seen of it."""
        query = "SELECT message FROM completions AS c LEFT JOIN choices ON completion = c.id"

        def rows() -> list[tuple[bytes | None]]:
            with database(self.home) as opened:
                return opened.execute(f"{query} WHERE c.id = ?", (id_,)).fetchall()

        begun = [json.loads(unpack_bytes(one))["content"] for (one,) in await until(rows) if one]
        self.book.same("the choices of a cut answer", len(choices), len(begun), talk)
        for text, whole in zip(begun, choices, strict=True):
            expected, come = (whole.text[: len(text)], seen), (text, text[: len(seen)])
            self.book.same("how far an answer came", expected, come, talk)
        return [Said("assistant", text) for text in begun]

    def _enter_header(self, talk: Talk, header: str, answer: Answer | None, status: str) -> None:
        """Enter a rating that came in a header."""
        book = self.book
        if answer is None:
            book.same("the header's status", "no-reply", status.partition(";")[0], talk)
            return
        of = f"; completion={answer[0]}"
        if len(book.completions[answer[0]].choices) > 1:
            of += f"; choice={answer[1]}"
        verb, _, comment = header.partition('; comment="')
        says = {"rating": 1.0 if verb == "good" else -1.0, "scope": "turn"}
        says |= {"comment": comment.rstrip('"')} if comment else {}
        before = book.standing(self.key, answer)
        if verb == "undo" and before is None:
            expected = f"nothing-to-undo; completion={answer[0]}"
        elif verb == "undo" and before:
            expected = f"undone {before.id}{of}"
            book.withdraw(before)
        elif before and says.items() <= before.says.items():
            expected = f"repeat {before.id}{of}"
        else:
            id_ = status.removeprefix("created ").removesuffix(of)
            expected = f"created {id_}{of}"
            book.rate(id_, self.key, answer, "", **says, source="header")
        book.same("the header's status", expected, status, talk)

    async def say(self, talk: Talk, verb: str, answer: Answer, *, is_answered: bool = True) -> None:
        """Type a command that means `answer`; keep it and what strop says to it, or not."""
        book, is_stream = self.book, self.may(0.5)
        rates = verb in ("good", "bad")
        why = self.chance.choice([None, "too long", 'naïve "quoted" 你好']) if rates else None
        line = f"/rl {verb}{f' {why}' if why else ''}"
        talk.said.append(Said("user", self.chance.choice(["", " ", "\n"]) + line, is_command=True))
        tag, path, headers, body = self._request(talk, is_stream)
        talk.steps.append(f"{tag}: {line}")
        answer = _named(body) or answer
        got = await self.http.post(path, json=body, headers=headers)
        book.same("the status", 200, got.status_code, talk)
        said = words(talk.dialect, is_stream, got.content)
        talk.steps[-1] += f" -> {said}"
        book.same("whether the engine was asked", False, tag in self.engine.got, talk)
        if verb == "status":
            book.same("what it says", book.status(self.key, answer), said, talk)
        elif verb == "undo":
            undone = book.to_undo(self.key, answer)
            expected = "[strop] There is no rating in this conversation to undo"
            if undone:
                name = {1.0: "good", -1.0: "bad"}.get(undone.value, f"{undone.value:g}")
                expected = (
                    f"[strop] Took back the rating {name} ({undone.id}) of {undone.answer[0]}"
                )
                book.withdraw(undone)
            book.same("what it says", expected, said[: len(expected)], talk)
        elif not is_answered:
            expected = "[strop] What was asked last got no answer, so there is nothing to rate."
            book.same("what it says", expected, said, talk)
        else:
            because = f', because "{why}"' if why else ""
            text = book.completions[answer[0]].choices[answer[1]].text
            expected = f"[strop] Rated the answer above {verb}{because} ({answer[0]}): "
            expected += f'"{" ".join(text.split())[:50]}'
            book.same("what it says", expected, said[: len(expected)], talk)
            newest = await self.http.get(f"/v1/feedback?limit=1&completion_id={answer[0]}")
            (seen,) = newest.json()["data"]
            rated = {"rating": 1.0 if verb == "good" else -1.0, "comment": why, "source": "inline"}
            rating = book.rate(seen["id"], self.key, answer, "", **rated)
            book.check_object(rating, seen, talk)
        if self.may(0.8):
            # With the whole conversation, strop may not keep all that is said with a command.
            link = response_id(got.content) if "previous_response_id" in body else ""
            talk.said.append(Said("assistant", said, link=link, is_command=True))
        else:
            talk.said.pop()


def _named(body: dict[str, Any]) -> Answer | None:
    """Return the answer that a request names as the one it goes on from."""
    named = body.get("previous_response_id", "")
    return (f"cmp_{named[5:37]}", 0) if named else None
