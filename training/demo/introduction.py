"""What strop does with a chat, shown on three questions: the answer, its snapshot, its rating.

Talks HTTP to a running strop, and prints.
"""

from typing import Any

import httpx

from strop.training.demo.served import Served

_QUESTIONS = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What is the symbol of gold?",
)


def show(served: Served) -> None:
    """Chat, show what was recorded, and rate in each of the ways there are."""
    _head("Chat: any OpenAI client, only the base URL changed")
    asked = [_ask(served, [_user(question)]) for question in _QUESTIONS]
    for question, (answer, completion_id) in zip(_QUESTIONS, asked, strict=True):
        print(f"  you         {question}\n  {served.model:10}  {_line(answer)}")
        print(f"  {'':10}  {completion_id}")

    _head("Snapshot: what a trainer needs later, taken as the answer passed")
    snapshot = served.get(f"/admin/completions/{asked[0][1]}")["snapshot"]
    choice = snapshot["choices"][0]
    print(f"  prompt ids   {_few(snapshot['prompt_ids'])}")
    print(f"  sampled ids  {_few(choice['token_ids'])}")
    print(f"  logprobs     {_few([round(value, 2) for value in choice['logprobs']])}")

    _head("Rating: over the API, in a header, or typed into the chat")
    said = served.post("/v1/feedback", {"completion_id": asked[0][1], "rating": "good"})
    print(
        f"  POST /v1/feedback    {said['state']} {said['id']}; completion={said['completion_id']}"
    )
    history = [*_turn(_QUESTIONS[1], asked[1][0]), _user(_QUESTIONS[2])]
    carrier = _post(served, history, {"X-Strop-Feedback": 'bad; comment="too rude"'})
    print(f"  X-Strop-Feedback     {carrier.headers['X-Strop-Feedback-Status']}")
    typed, _ = _ask(served, [*_turn(_QUESTIONS[2], asked[2][0]), _user("/rl good short")])
    print(f"  /rl good short       {typed}")

    _head("Kept: each answer once, each rating on the answer it was meant for")
    for rating in served.get("/v1/feedback")["data"]:
        why = f"  {rating['comment']}" if rating["comment"] else ""
        print(f"  {rating['completion_id']}  {rating['rating']:+g}  by {rating['source']}{why}")
    # They were for show: what trains in the rounds is the simulated person's alone.
    for rating in served.get("/v1/feedback")["data"]:
        served.owner.delete(f"/v1/feedback/{rating['id']}").raise_for_status()


def _ask(served: Served, messages: list[dict[str, str]]) -> tuple[str, str]:
    answer = _post(served, messages, {})
    text = answer.json()["choices"][0]["message"]["content"]
    return text, answer.headers.get("X-Strop-Completion-Id", "")


def _post(
    served: Served, messages: list[dict[str, str]], headers: dict[str, str]
) -> httpx.Response:
    body: dict[str, Any] = {"model": served.model, "messages": messages, "max_tokens": 48}
    answer = served.owner.post("/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    return answer


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [_user(question), {"role": "assistant", "content": answer}]


def _head(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def _line(text: str) -> str:
    return " ".join(text.split())


def _few(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return f"{shown}{', ...' if len(values) > 10 else ''}  ({len(values)})"
