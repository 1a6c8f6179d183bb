"""What a request becomes for a model that speaks harmony: its history, its grammar, its ends."""

import random
from typing import Any

import harmony_models
import numpy as np
import pytest
import scripted_models

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import TokenizerWrapper

from strop.proxy import conversation
from strop.proxy.embedded import harmony, prompts
from strop.proxy.embedded.answer import Answer, render_tool_call
from strop.proxy.embedded.errors import BadRequest
from strop.proxy.embedded.grammar import Follower, Grammars
from strop.proxy.embedded.jobs import Job, Sampled, Scored
from strop.proxy.embedded.loading import LoadedModel
from strop.proxy.embedded.protocol import parse_chat
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.embedded.text_parts import Markup

TOOLS = scripted_models.TOOLS
HELLO = {"role": "user", "content": "Hello"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
SYSTEM = (
    "<|start|>system<|message|>Reasoning: medium\n# Valid channels: analysis, commentary, final."
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """What the engine knows of a model, of which nothing is computed."""
    return model_of(TokenizerWrapper(harmony_models.make_tokenizer()))


def model_of(tokenizer: Any) -> LoadedModel:
    """Return a model with this tokenizer."""
    tokenizer.eos_token_ids = harmony.end_ids(tokenizer)
    size = len(tokenizer)
    model: Any = None
    return LoadedModel(model, model, tokenizer, 20_000, size, {}, Grammars(tokenizer, size))


def job(loaded: LoadedModel, *messages: Any, **fields: Any) -> Job:
    """Return the job of a chat."""
    (made,) = prompts.jobs(parse_chat({"messages": [*messages], **fields}), loaded)
    return made


def prompt(loaded: LoadedModel, *messages: Any, **fields: Any) -> str:
    """Return the prompt of a chat, from behind the system message."""
    text: str = loaded.tokenizer.decode(job(loaded, *messages, **fields).prompt)
    return text.partition("<|end|>")[2]


def called(*ids: str, **fields: Any) -> dict[str, Any]:
    """Return an assistant message that calls a tool of its own for each id."""
    calls = [
        {"id": each, "type": "function", "function": {"name": f"f_{each}", "arguments": "{}"}}
        for each in ids
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls, **fields}


def result(call_id: str, content: str = "21") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


CALL = "<|start|>assistant to=functions.f_{0}<|channel|>commentary json<|message|>{{}}<|call|>"
RESULT = '<|start|>functions.f_{0} to=assistant<|channel|>commentary<|message|>"{1}"<|end|>'
ANALYSIS = "<|start|>assistant<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
USER = "<|start|>user<|message|>Hello<|end|>"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([called("a", reasoning="Why."), result("a")],
         f"{ANALYSIS}Why.<|end|>{CALL.format('a')}{RESULT.format('a', '21')}"),
        ([called("a", reasoning_content="Why."), result("a")],
         f"{ANALYSIS}Why.<|end|>{CALL.format('a')}{RESULT.format('a', '21')}"),
        ([called("a", content="I look."), result("a")],
         f"{ANALYSIS}I look.<|end|>{CALL.format('a')}{RESULT.format('a', '21')}"),
        # The template would refuse both, or lose one.
        ([called("a", content="I look.", reasoning="Why."), result("a")],
         f"{ANALYSIS}Why.\nI look.<|end|>{CALL.format('a')}{RESULT.format('a', '21')}"),
        # It would make one call of these, and both results its own.
        ([called("a", "b", reasoning="Why."), result("b", "B"), result("a", "A")],
         f"{ANALYSIS}Why.<|end|>{CALL.format('a')}{RESULT.format('a', 'A')}"
         f"{CALL.format('b')}{RESULT.format('b', 'B')}"),
        ([called("a", "b"), result("b", "B"), result("?", "C")],
         f"{CALL.format('a')}{CALL.format('b')}{RESULT.format('b', 'B')}{RESULT.format('b', 'C')}"),
        # Nor would it tell the results of calls that each have a message from one another.
        ([called("a", reasoning="Why."), called("b"), result("a", "A"), result("b", "B")],
         f"{ANALYSIS}Why.<|end|>{CALL.format('a')}{RESULT.format('a', 'A')}"
         f"{CALL.format('b')}{RESULT.format('b', 'B')}"),
        # Ids may come again, and results without one are in the order of the calls.
        ([called("a"), result("a", "A"), called("a"), result("a", "B")],
         f"{CALL.format('a')}{RESULT.format('a', 'A')}"
         f"{CALL.format('a')}{RESULT.format('a', 'B')}"),
        ([called("a"), HELLO, called("a"), result("a", "B")],
         f"{CALL.format('a')}{USER}{CALL.format('a')}{RESULT.format('a', 'B')}"),
        ([called("a", "b"), {"role": "tool", "content": "A"}, {"role": "tool", "content": "B"}],
         f"{CALL.format('a')}{RESULT.format('a', 'A')}{CALL.format('b')}{RESULT.format('b', 'B')}"),
        ([called("a", thinking="Why."), result("a")],
         f"{ANALYSIS}Why.<|end|>{CALL.format('a')}{RESULT.format('a', '21')}"),
        # What led to an answer that was given is over.
        ([called("a", reasoning="Why."), result("a"),
          {"role": "assistant", "content": "Cold.", "reasoning": "So."}, HELLO],
         f"{CALL.format('a')}{RESULT.format('a', '21')}{FINAL}Cold.<|end|>{USER}"),
        ([{"role": "assistant", "content": "Hi", "thinking": None, "tool_calls": []}, HELLO],
         f"{FINAL}Hi<|end|>{USER}"),
    ],
)  # fmt: skip
def test_a_history_goes_through_the_template(
    loaded: LoadedModel, messages: list[Any], expected: str
) -> None:
    """Thoughts, texts beside calls and several calls of one message are all said, or dropped."""
    assert f"{USER}{expected}<|start|>assistant" == prompt(loaded, HELLO, *messages)


def test_all_system_messages_are_said(loaded: LoadedModel) -> None:
    """The template takes the first message as one, and passes over others in silence."""
    told = [{"role": "system", "content": "A"}, HELLO, {"role": "developer", "content": "B"}]

    assert f"<|start|>developer<|message|>A\n\nB<|end|>{USER}<|start|>assistant" == prompt(
        loaded, *told
    )


def test_the_wanted_effort_is_in_the_system_message(loaded: LoadedModel) -> None:
    """As in vLLM, the request's `reasoning_effort` is the template's argument."""
    asked = job(loaded, HELLO, reasoning_effort="high")

    assert loaded.tokenizer.decode(asked.prompt).startswith(SYSTEM.replace("medium", "high"))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({}, "// \n{"),
        ({"description": None}, "// \n{"),
        ({"description": "Looks."}, "// Looks.\n{"),
        ({"parameters": None}, "// \n{"),
        ({"parameters": {"type": "object", "properties": {"n": {"enum": [1, 2], "default": 1},
                                                          "all": True}}}, " // 1<|end|>"),
        ({"parameters": {"properties": {"u": {"enum": ["C", "F"], "default": "C"}}}},
         " // C<|end|>"),
    ],
)  # fmt: skip
def test_a_tool_needs_no_more_than_its_name(
    loaded: LoadedModel, function: dict[str, Any], expected: str
) -> None:
    """The template takes descriptions, and defaults beside listed values, for texts."""
    tool = {"type": "function", "function": {"name": "f", **function}}

    assert expected in prompt(loaded, HELLO, tools=[tool])


def test_an_answer_can_be_gone_on_with(loaded: LoadedModel) -> None:
    """The prompt ends within the text of the last message, which the answer goes on with."""
    begun = {"role": "assistant", "content": "It is"}

    made = job(loaded, HELLO, begun, continue_final_message=True)
    answer = read(loaded, made, " 21.<|return|>")

    assert loaded.tokenizer.decode(made.prompt).endswith(f"{USER}{FINAL}It is")
    assert " 21." == answer.content


def read(loaded: LoadedModel, made: Job, text: str, **fields: Any) -> Answer:
    """Return the answer that `text` is to a job."""
    request = parse_chat({"messages": [HELLO], **fields})
    markup = Markup.of(loaded.tokenizer, made.prompt, has_tools=request.tools is not None)
    answer = Answer(request, made.prompt, Vocabulary(loaded.tokenizer), markup)
    ids = loaded.tokenizer.encode(text)
    for at, token in enumerate(ids):
        answer.add(Sampled(0, Scored(token, -1.0), "stop" if at + 1 == len(ids) else None))
    return answer


def message_of(answer: Answer) -> dict[str, Any]:
    """Return an answer's message as a client gets it."""
    calls = [render_tool_call(call) for call in answer.tool_calls]
    return {
        "role": "assistant",
        "content": answer.content or None,
        "reasoning": answer.reasoning or None,
        **({"tool_calls": calls} if calls else {}),
    }


def test_a_tool_loop_goes_round(loaded: LoadedModel) -> None:
    """Two turns: each request follows the answer before it, and the model reads what it wrote."""
    first = read(
        loaded,
        job(loaded, HELLO, tools=TOOLS),
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary"
        ' to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>',
        tools=TOOLS,
    )
    (call,) = first.tool_calls
    history = [HELLO, message_of(first), result(call.id, "21 degrees")]
    second = job(loaded, *history, tools=TOOLS)
    told = read(
        loaded, second, "<|channel|>analysis<|message|>So.<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is 21.<|return|>", tools=TOOLS,
    )  # fmt: skip
    third = prompt(loaded, *history, message_of(told), HELLO, tools=TOOLS)

    looked = (
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        '{"city": "Paris"}<|call|><|start|>functions.get_weather to=assistant'
        '<|channel|>commentary<|message|>"21 degrees"<|end|>'
    )
    said = loaded.tokenizer.decode(second.prompt)
    assert said.endswith(f"{USER}{ANALYSIS}I look.<|end|>{looked}<|start|>assistant")
    assert third.endswith(f"{USER}{looked}{FINAL}It is 21.<|end|>{USER}<|start|>assistant")
    asked = [[HELLO], history]
    for before, answer, after in zip(
        asked, (first, told), (history, [*history, message_of(told), HELLO]), strict=True
    ):
        chain, tail = conversation.extend(conversation.read(before, "key"), message_of(answer))
        follows = conversation.read(after, "key")
        assert (chain, tail) == (follows.after, follows.after_tail)


def allowed(loaded: LoadedModel, made: Job, text: str) -> set[str] | None:
    """Return what may follow `text` in a job's answer; None where `text` itself may not come."""
    assert made.sampling.grammar is not None
    follower = Follower(made.sampling.grammar, made.stop_ids)
    for token in loaded.tokenizer.encode(text):
        may_come = follower.allowed()
        assert may_come is not None
        if not may_come[token]:
            return None
        follower.read(token)
    may_come = follower.allowed()
    assert may_come is not None
    return {loaded.tokenizer.decode([token]) for token in np.nonzero(may_come)[0].tolist()}


THOUGHT = "<|channel|>analysis<|message|>Any <b> 🦜.<|end|><|start|>assistant"


@pytest.mark.parametrize("thought", ["", THOUGHT, THOUGHT * 2])
@pytest.mark.parametrize("header", ["", " <|constrain|>json", "<|constrain|>json", " json"])
def test_a_form_is_that_of_the_final_message(
    loaded: LoadedModel, thought: str, header: str
) -> None:
    """Thoughts before it are free, and cannot be all of the answer."""
    made = job(loaded, HELLO, response_format=FORMAT)
    begun = f"{thought}<|channel|>final{header}<|message|>"

    assert {"<|channel|>"} == allowed(loaded, made, thought)
    assert {"{"} == {text[0] for text in allowed(loaded, made, begun) or ()}
    assert {"<|call|>", "<|return|>"} == allowed(loaded, made, begun + '{"city": "x"}')
    for text in ("<|return|>", "<|channel|>commentary", " to=", "<|channel|>analysis<|return|>"):
        assert allowed(loaded, made, thought + text) is None


@pytest.mark.parametrize("asks", [{"response_format": FORMAT}, {"tool_choice": "required"}])
@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        " to=functions.get_weather<|channel|>commentary json",
        "<|channel|>analysis to=functions.get_weather",
    ],
)
def test_a_tool_may_be_called_in_place_of_a_form_or_must_be(
    loaded: LoadedModel, asks: dict[str, Any], header: str
) -> None:
    """One that the request offers, in either place where its name may stand, behind thoughts."""
    made = job(loaded, HELLO, tools=TOOLS, **asks)

    end = allowed(loaded, made, f'{THOUGHT}{header}<|message|>{{"city": "x"}}')

    assert end is not None
    assert {"<|call|>", "<|return|>"} == end
    assert {"{"} == {text[0] for text in allowed(loaded, made, f"{header}<|message|>") or ()}
    assert allowed(loaded, made, header.replace("weather", "money")) is None
    final = allowed(loaded, made, f"{THOUGHT}<|channel|>final<|message|>")
    assert ("response_format" in asks) == (final is not None)


@pytest.mark.parametrize(
    ("structured", "texts"),
    [({"choice": ["yes", "no"]}, ("yes", "no")), ({"regex": "[0-9]{3}"}, ("123", "000"))],
)
def test_other_forms_are_held_to_as_well(
    loaded: LoadedModel, structured: dict[str, Any], texts: tuple[str, ...]
) -> None:
    """A choice, and an expression."""
    made = job(loaded, HELLO, structured_outputs=structured)

    for text in texts:
        said = allowed(loaded, made, f"<|channel|>final<|message|>{text}")
        assert {"<|call|>", "<|return|>"} == said
    assert allowed(loaded, made, "<|channel|>final<|message|>maybe") is None


@pytest.mark.parametrize(
    ("opening", "text"),
    [
        ("<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|><|start|>assistant"
         "<|channel|>final<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("", "<|start|>assistant<|channel|>final<|message|>"),
    ],
)  # fmt: skip
def test_a_form_goes_on_where_the_prompt_leaves_off(
    loaded: LoadedModel, opening: str, text: str
) -> None:
    """Within a thought, or the final message, or behind the end of one."""
    own = TokenizerWrapper(harmony_models.make_tokenizer.__wrapped__())
    text_before = f"<|start|>user<|message|>Hi<|end|>{opening}"
    own.chat_template = "{# <|channel|> #}{{ '" + text_before + "' }}"
    made = job(model_of(own), HELLO, structured_outputs={"choice": ["yes"]})

    assert {"y", "yes", "ye"} >= (allowed(loaded, made, text) or {"nothing"})
    assert allowed(loaded, made, f"{text}no") is None


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_is_a_call(loaded: LoadedModel, seed: int) -> None:
    """At random among what may come: the answer reads as a call of the tool."""
    made = job(loaded, HELLO, tools=TOOLS, tool_choice="required")
    assert made.sampling.grammar is not None
    follower, chance, ids = Follower(made.sampling.grammar, made.stop_ids), random.Random(seed), []
    ends = set(loaded.tokenizer.convert_tokens_to_ids([*harmony_models.MARKS, "}"]))
    for _ in range(400):
        may_come = follower.allowed()
        assert may_come is not None
        choices = np.nonzero(may_come)[0].tolist()
        # Else neither thoughts nor arguments would soon end.
        short = [token for token in choices if token in ends] or choices
        ids.append(chance.choice(short))
        if ids[-1] in made.stop_ids:
            break
        follower.read(ids[-1])

    text = loaded.tokenizer.decode(ids)
    answer = read(loaded, made, text, tools=TOOLS)

    assert ["get_weather"] == [call.name for call in answer.tool_calls]
    assert "" == answer.content


def test_a_form_that_cannot_be_followed_is_refused(loaded: LoadedModel) -> None:
    """Within the frame too, and by the name of the field that asks for it."""
    with pytest.raises(BadRequest, match="`structured_outputs` can't be followed"):
        job(loaded, HELLO, structured_outputs={"regex": "(a"})


def test_a_required_call_is_not_held_to_a_length(loaded: LoadedModel) -> None:
    """Nothing could come between the end of the call and the tokens that it lacks."""
    with pytest.raises(BadRequest, match="`min_tokens` must be 0 where this model has to call"):
        job(loaded, HELLO, tools=TOOLS, tool_choice="required", min_tokens=50)
