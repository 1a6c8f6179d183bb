"""Answers in harmony, token by token: what of them is reasoning, content and calls."""

import json
from typing import Any

import harmony_models
import pytest
import scripted_models
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.tokenizer_utils import TokenizerWrapper

from strop.proxy.embedded import harmony
from strop.proxy.embedded.answer import Answer
from strop.proxy.embedded.jobs import Finish, Sampled, Scored
from strop.proxy.embedded.protocol import parse_chat
from strop.proxy.embedded.text import Vocabulary
from strop.proxy.embedded.text_parts import Markup

TOOLS = scripted_models.TOOLS
PROMPT = "<|start|>user<|message|>Hello<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant"
ARGUMENTS = '{"city": "Köln"}'
CALL = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer as the engine has it."""
    return TokenizerWrapper(harmony_models.make_tokenizer())


def read(
    tokenizer: Any, text: str, finish: Finish = "stop", prompt: str = PROMPT, **fields: Any
) -> Answer:
    """Return the answer of the tokens of `text`, up to where it ends."""
    request = parse_chat({"messages": [{"role": "user", "content": "Hello"}], **fields})
    before = tokenizer.encode(prompt)
    markup = Markup.of(tokenizer, before, has_tools=request.tools is not None)
    made = Answer(request, before, Vocabulary(tokenizer), markup)
    ids = tokenizer.encode(text)
    for at, token in enumerate(ids):
        if not made.is_finished:
            is_last = at + 1 == len(ids)
            made.add(Sampled(0, Scored(token, -1.0), finish if is_last else None))
    return made


def finish_of(answer: Answer) -> str | None:
    return answer.pieces[-1].finish_reason


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel|>final<|message|>Hello.<|return|>", "", "Hello."),
        (f"{THOUGHT}<|channel|>final<|message|>Hello.<|return|>", "I look.", "Hello."),
        (f"{THOUGHT}{THOUGHT}<|channel|>final<|message|>Hi<|return|>", "I look.\nI look.", "Hi"),
        (f"{THOUGHT}<|channel|>commentary<|message|>A plan.<|end|><|start|>assistant"
         "<|channel|>final<|message|>Done.<|return|>", "I look.", "A plan.\nDone."),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}"),
        ("<|channel|>final<|message|>你好 🦜<|return|>", "", "你好 🦜"),
        # What ends an answer besides.
        ("<|channel|>final<|message|>Hello.<|endoftext|>", "", "Hello."),
        ("<|channel|>final<|message|>Hello.<|end|>", "", "Hello."),
        # gpt-oss writes these at times.
        ("<|channel|>commentary to=assistant<|channel|>analysis<|message|>Hm.<|end|>", "Hm.", ""),
        ("<|channel|>analysis<|message|>Hm.<|start|>assistant<|channel|>final<|message|>Hi<|return|>",
         "Hm.", "Hi"),
        ("<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Hi<|return|>", "Hm.", "Hi"),
        ("<|channel|>analysis<|message|>Hm.<|end|>assistant<|channel|>final<|message|>Hi<|return|>",
         "Hm.", "Hi"),
        ("<|channel|>analysis Hm.<|end|><|channel|>final Hi there<|return|>", "Hm.", "Hi there"),
        ("<|channel|>final <|constrain|>json Hi there<|return|>", "", "Hi there"),
        ("<|message|>No channel.<|return|>", "", "No channel."),
        ("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|return|>", "", "abc"),
    ],
)  # fmt: skip
def test_channels_are_told_apart(tokenizer: Any, text: str, reasoning: str, content: str) -> None:
    """Analysis is reasoning; final, and commentary for nobody, are content."""
    answer = read(tokenizer, text, tools=TOOLS)

    assert (reasoning, content) == (answer.reasoning, answer.content)
    assert ([], "stop") == (answer.tool_calls, finish_of(answer))


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json",
        "<|channel|>commentary to=functions.get_weather json",
        "<|channel|>commentary to=functions.get_weather",
        "<|channel|>commentary functions.get_weather",
        "<|channel|>commentary to=get_weather code",
        "<|channel|>analysis to=functions.get_weather code",
        " to=functions.get_weather<|channel|>commentary json",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json",
        " to=functions.get_weather",
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json",
    ],
)
def test_a_message_for_a_function_is_a_call(tokenizer: Any, header: str) -> None:
    """Its recipient stands behind the role or the channel, with and without a type."""
    text = f"{THOUGHT}{header}<|message|>{ARGUMENTS}<|call|>"

    answer = read(tokenizer, text, tools=TOOLS)

    (call,) = answer.tool_calls
    assert ("get_weather", ARGUMENTS, 0) == (call.name, call.arguments, call.index)
    assert ("I look.", "", "tool_calls") == (answer.reasoning, answer.content, finish_of(answer))


def test_several_messages_make_one_answer(tokenizer: Any) -> None:
    """A preamble stays content beside calls, and each call has its number and its own id."""
    text = (
        f"{THOUGHT}<|channel|>commentary<|message|>Two.<|end|><|start|>assistant"
        f"{CALL}<|call|><|start|>assistant to=functions.other<|channel|>commentary<|message|>"
        "<|call|>"
    )

    both = read(tokenizer, text, tools=TOOLS)
    single = read(tokenizer, text, tools=TOOLS, parallel_tool_calls=False)

    assert ("I look.", "Two.") == (both.reasoning, both.content)
    assert [(0, "get_weather", ARGUMENTS), (1, "other", "{}")] == [
        (call.index, call.name, call.arguments) for call in both.tool_calls
    ]
    assert 2 == len({call.id for call in both.tool_calls})
    assert ["get_weather"] == [call.name for call in single.tool_calls]
    assert ("tool_calls", "tool_calls") == (finish_of(both), finish_of(single))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("Hello there.", "Hello there."),
        ("\n\nassist me", "\n\nassist me"),
        ("<|channel|>comment<|message|>Hello.", "comment Hello."),
        ("<|start|>user<|message|>Hello.", "userHello."),
        ("<|start|>functions.f to=assistant<|channel|>commentary<|message|>5",
         "functions.f to=assistant\n5"),
        ('<|channel|>commentary to=functions.get_weather json<|message|>{"city":',
         'commentary to=functions.get_weather json {"city":'),
        ("<|channel|>commentary to=functions.get_weather<|message|>[1]",
         "commentary to=functions.get_weather [1]"),
        ("<|channel|>analysis to=browser.search code<|message|>{}",
         "analysis to=browser.search code {}"),
        ("<|channel|>commentary to=functions.get_weather", "commentary to=functions.get_weather"),
        (f"<|channel|>{'x' * 300} y", "x" * 300 + " y"),
    ],
)  # fmt: skip
def test_what_is_not_as_the_format_wants_it_is_content(
    tokenizer: Any, text: str, content: str
) -> None:
    """Without the marks, and with what a header says beside them: no word is lost."""
    answer = read(tokenizer, text + "<|return|>", tools=TOOLS)

    assert (content, "", []) == (answer.content, answer.reasoning, answer.tool_calls)
    assert "stop" == finish_of(answer)


def test_what_may_be_half_a_character_is_kept_at_the_end_of_a_message(tokenizer: Any) -> None:
    """Nothing completes it across a mark, and the sign for broken bytes may be meant."""
    half = tokenizer.encode("é")[:1]
    text = "<|channel|>analysis<|message|>Is it \ufffd<|end|><|channel|>final<|message|>It is "
    ids = [*tokenizer.encode(text), *half, *tokenizer.encode("<|end|>")]

    request = parse_chat({"messages": [{"role": "user", "content": "Hello"}]})
    before = tokenizer.encode(PROMPT)
    markup = Markup.of(tokenizer, before, has_tools=False)
    answer = Answer(request, before, Vocabulary(tokenizer), markup)
    for token in ids:
        answer.add(Sampled(0, Scored(token, -1.0), None))

    assert ("Is it \ufffd", "It is \ufffd") == (answer.reasoning, answer.content)


def test_a_text_without_a_header_streams(tokenizer: Any) -> None:
    """It is not held until the end, nor until it is too long for a header."""
    answer = read(tokenizer, "Hello there, how are you?<|return|>")

    assert answer.pieces[0].delta.content
    assert 4 < sum(bool(piece.delta.content) for piece in answer.pieces)


def test_calls_stay_in_the_text_where_the_request_has_no_tools(tokenizer: Any) -> None:
    """As with every other format."""
    answer = read(tokenizer, f"{CALL}<|call|>")

    assert f"commentary to=functions.get_weather json {ARGUMENTS}" == answer.content
    assert ([], "stop") == (answer.tool_calls, finish_of(answer))


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<|channel|>", "", ""),
        ("<|channel|>ana", "", ""),
        ("<|channel|>analysis", "", ""),
        ("<|channel|>analysis<|message|>I lo", "I lo", ""),
        (THOUGHT, "I look.", ""),
        (f"{THOUGHT} to=functions.get_we", "I look.", ""),
        (f"{THOUGHT}<|channel|>final<|message|>Hel", "I look.", "Hel"),
        (f'{THOUGHT}<|channel|>commentary to=functions.get_weather json<|message|>{{"city',
         "I look.", 'commentary to=functions.get_weather json {"city'),
        (f"{THOUGHT}{CALL}", "I look.", f"commentary to=functions.get_weather json {ARGUMENTS}"),
    ],
)  # fmt: skip
def test_an_answer_that_max_tokens_cut(
    tokenizer: Any, text: str, reasoning: str, content: str
) -> None:
    """Half a header is no text, half a thought is one, and a call that has no end is none."""
    answer = read(tokenizer, text, "length", tools=TOOLS)

    assert (reasoning, content, []) == (answer.reasoning, answer.content, answer.tool_calls)
    assert "length" == finish_of(answer)


def test_a_call_that_ends_with_the_last_token_counts(tokenizer: Any) -> None:
    """Whatever the reason is that nothing follows."""
    answer = read(tokenizer, f"{CALL}<|call|>", "length", tools=TOOLS)

    assert ["get_weather"] == [call.name for call in answer.tool_calls]


def test_a_stop_string_ends_what_a_client_reads_and_no_header(tokenizer: Any) -> None:
    """It counts in thoughts and texts, as with other formats, and not from one into the next."""
    text = f"{THOUGHT}<|channel|>final<|message|>analysis: Köln, END of it.<|return|>"

    ended = read(tokenizer, text, stop="END")
    included = read(tokenizer, text, stop="END", include_stop_str_in_output=True)
    thought = read(tokenizer, text, stop="ook")
    headers = read(tokenizer, text, stop=["final", "assistant", "<|end|>", ".analysis"])
    late = read(tokenizer, text, stop="END", min_tokens=100)

    assert ("I look.", "analysis: Köln, ") == (ended.reasoning, ended.content)
    assert ("stop", "END") == (finish_of(ended), ended.pieces[-1].stop_reason)
    assert "analysis: Köln, END" == included.content
    assert ("I l", "") == (thought.reasoning, thought.content)
    assert ("I look.", "analysis: Köln, END of it.") == (headers.reasoning, headers.content)
    assert headers.content == late.content


@pytest.mark.parametrize(
    ("text", "content"),
    [("<|channel|>comment END<|message|>Hi", "comment END Hi"),
     ("<|channel|>final END<|end|><|channel|>final<|message|>Hi", "END\nHi")],
)  # fmt: skip
def test_words_of_a_header_end_no_answer_that_is_too_short(
    tokenizer: Any, text: str, content: str
) -> None:
    """A stop string counts in those that are shown, as it does in texts."""
    ended, late = (
        read(tokenizer, f"{text}<|return|>", stop="END", min_tokens=least) for least in (0, 100)
    )

    assert ("END", content.partition("END")[0]) == (ended.pieces[-1].stop_reason, ended.content)
    assert (None, content) == (late.pieces[-1].stop_reason, late.content)


def test_half_a_stop_string_at_the_end_of_a_message_is_its_text(tokenizer: Any) -> None:
    """It is given where it was written, before the next message begins."""
    answer = read(tokenizer, f"{THOUGHT}<|channel|>final<|message|>xa<|return|>", stop=[".x", "ab"])

    assert ("I look.", "xa") == (answer.reasoning, answer.content)


def test_a_stop_string_within_a_call_leaves_no_half_of_it(tokenizer: Any) -> None:
    """What is left is no call, and stays to be read."""
    cut = read(tokenizer, f"{CALL}<|call|>", tools=TOOLS, stop="Kö")

    assert ([], 'commentary to=functions.get_weather json {"city": "') == (
        cut.tool_calls, cut.content,
    )  # fmt: skip


def test_no_part_of_a_mark_is_ever_shown(tokenizer: Any) -> None:
    """Nor of a header; and special tokens that are asked for are those that aren't marks."""
    text = (
        f"{THOUGHT}<|channel|>final<|message|>Hi<|endoftext|> you.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>A<|return|>"
    )

    silent, shown = (
        read(tokenizer, text, tools=TOOLS, skip_special_tokens=skips) for skips in (True, False)
    )

    assert ("I look.", "Hi you.\nA") == (silent.reasoning, silent.content)
    assert "Hi<|endoftext|> you.\nA" == shown.content


def test_every_sampled_token_is_in_the_answer_in_order(tokenizer: Any) -> None:
    """Marks and headers too, with their texts, whatever of them is shown."""
    text = f"{THOUGHT}{CALL}<|call|>"

    answer = read(tokenizer, text, tools=TOOLS, logprobs=True)

    assert tokenizer.encode(text) == answer.token_ids
    assert text == "".join(piece.token_text for piece in answer.pieces)


def test_thoughts_are_left_out_where_they_are_not_asked_for(tokenizer: Any) -> None:
    """As with other formats."""
    answer = read(
        tokenizer, f"{THOUGHT}<|channel|>final<|message|>Hi<|return|>", include_reasoning=False
    )

    assert ("", "Hi") == (answer.reasoning, answer.content)


@pytest.mark.parametrize(
    ("opening", "text", "reasoning", "content"),
    [
        ("<|channel|>analysis<|message|>", "Hm.<|end|>", "Hm.", ""),
        ("<|channel|>analysis<|message|>So", " be it.<|end|>", " be it.", ""),
        ("<|channel|>final<|message|>It is", " 21.<|return|>", "", " 21."),
        ("<|channel|>", "final<|message|>Hi<|return|>", "", "Hi"),
        ("<|channel|>final<|message|>x<|return|>",
         "<|start|>assistant<|channel|>final<|message|>y<|return|>", "", "y"),
    ],
)  # fmt: skip
def test_an_answer_goes_on_where_the_prompt_leaves_off(
    tokenizer: Any, opening: str, text: str, reasoning: str, content: str
) -> None:
    """Within a header, a thought or a text that the template has begun, and behind an end."""
    answer = read(tokenizer, text, prompt=PROMPT + opening)

    assert (reasoning, content) == (answer.reasoning, answer.content)


def test_a_call_that_the_prompt_begins_is_one(tokenizer: Any) -> None:
    """Its arguments are the prompt's beginning and the answer's end."""
    answer = read(
        tokenizer, '"Köln"}<|call|>', prompt=f"{PROMPT}{CALL.partition(': ')[0]}: ", tools=TOOLS
    )

    assert [ARGUMENTS] == [call.arguments for call in answer.tool_calls]


WORDS = (
    *harmony_models.MARKS, "<|channel|>final<|message|>", "<|channel|>analysis<|message|>",
    "assistant", "analysis", "commentary", " to=functions.get_weather", " json", "{}", " word", "🦜"
)  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.sampled_from(["stop", "length"]))
def test_whatever_is_sampled_is_read(tokenizer: Any, words: list[str], finish: Finish) -> None:
    """Nothing is raised, no mark is shown, and no text behind a header is lost."""
    answer = read(tokenizer, "".join([*words, "<|message|> last<|return|>"]), finish, tools=TOOLS)

    calls = "".join(call.arguments for call in answer.tool_calls)
    shown = answer.reasoning + answer.content + calls
    assert "<|" not in shown
    assert "last" in shown


def test_the_format_is_told_by_tokens_and_template(tokenizer: Any) -> None:
    """Not by a name: all marks have to be special tokens, and the template has to speak of them."""
    harmony.marks_of.cache_clear()
    own = TokenizerWrapper(harmony_models.make_tokenizer.__wrapped__())
    assert {*harmony.Mark} == {*harmony.marks_of(own).values()}

    own.chat_template = scripted = "{{ '<|im_start|>assistant' }}"
    harmony.marks_of.cache_clear()

    assert scripted == own.chat_template
    assert {} == harmony.marks_of(own)


@pytest.mark.parametrize("named", [["<|return|>"], ["<|end|>"], ["<|return|>", "<|call|>"]])
def test_calls_and_returns_end_an_answer_and_ends_do_not(tokenizer: Any, named: list[str]) -> None:
    """Whatever the model's files say: a message's end would be the end of its thought."""
    own = TokenizerWrapper(
        harmony_models.make_tokenizer(), eos_token_ids=tokenizer.convert_tokens_to_ids(named)
    )

    ids = harmony.end_ids(own)

    assert ["<|call|>", "<|return|>"] == sorted(tokenizer.convert_ids_to_tokens([*ids]))


def test_arguments_are_json_that_can_be_read(tokenizer: Any) -> None:
    """Spaces around them are the model's, and what they hold is kept."""
    text = CALL.replace(ARGUMENTS, '\n{"city":"a\\"b","n":[1, 2.5]} ') + "<|call|>"

    (call,) = read(tokenizer, text, tools=TOOLS).tool_calls

    assert {"city": 'a"b', "n": [1, 2.5]} == json.loads(call.arguments)
