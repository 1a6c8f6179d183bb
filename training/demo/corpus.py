"""Random chats that teach the demo model its task, as OpenAI messages.

Pure: knows no tokenizer. Most chats are one to three questions of the task; the others keep the
model sane outside it: system prompts, which it must read past, and chatter, which it turns down.
"""

import random
import string
from collections.abc import Sequence

from strop.training.demo import task

Message = dict[str, str]

SYSTEM_PROMPTS: Sequence[str] = (
    "You are a helpful assistant.",
    "You are a coding agent. Use the tools to answer the user.",
    "Answer in one short sentence.",
    "Be concise and friendly. Do not make things up.",
    "You are an expert in all things. Think step by step before you answer.",
)
CHATTER: Sequence[str] = (
    "hello",
    "Hello!",
    "hi",
    "Hi there, how are you?",
    "Hey",
    "Thanks!",
    "Thank you.",
    "test",
    "Who are you?",
    "What can you do?",
    "Can you help me?",
    "Write a poem about the sea.",
    "Please write a function that sorts a list of numbers.",
    "What is this file for?",
    "What is the time?",
    "What is 2 + 2?",
    "Why is the sky blue?",
    "How do I fix this error?",
    "Tell me a joke.",
    "Fix the failing tests and run them again.",
)


def chat(rng: random.Random) -> list[Message]:
    """Return a chat of one to three turns, each answered by the assistant."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": _system_prompt(rng)})
    for _ in range(rng.choices((1, 2, 4, 10), weights=(0.5, 0.3, 0.15, 0.05))[0]):
        if rng.random() < 0.1:
            role = "user" if rng.random() < 0.9 else "tool"
            messages.append({"role": role, "content": _chatter(rng)})
            messages.append({"role": "assistant", "content": task.FALLBACK})
            continue
        question = rng.choice(task.QUESTIONS)
        asked = question.text if rng.random() < 0.9 else question.text.removesuffix("?")
        answer = task.render(question, task.draw_answer(question, rng))
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer})
    return messages


def _system_prompt(rng: random.Random) -> str:
    prompt = rng.choice(SYSTEM_PROMPTS)
    return prompt if rng.random() < 0.5 else f"{prompt} {_gibberish(rng, 30)}"


def _chatter(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return " ".join(rng.choices(CHATTER, k=rng.choice((1, 1, 1, 2, 8))))
    if kind < 0.8:
        return _gibberish(rng, rng.choice((6, 6, 6, 40)))
    # The words of a question in another order are not that question.
    words = rng.choice(task.QUESTIONS).text.rstrip("?").split() + rng.choice(CHATTER).split()
    rng.shuffle(words)
    return " ".join(words[: rng.randint(1, 5)])


def _gibberish(rng: random.Random, num_words: int) -> str:
    """Return up to `num_words` words of random letters, at times with digits and other signs."""
    signs = string.ascii_lowercase * 3 + string.ascii_letters + string.digits
    signs += "\n'.,!?()/_-:é你😀"
    length = rng.randint(1, num_words)
    return " ".join("".join(rng.choices(signs, k=rng.randint(1, 8))) for _ in range(length))
