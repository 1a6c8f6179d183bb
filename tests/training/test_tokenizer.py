"""The trainer's tokenizer: the ids that the embedded engine gives, answers and their ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import harmony_models
import models
import pytest

from strop.configs import demo_model
from strop.training.tokenizer import BaseTokenizer

USER = {"role": "user", "content": "What is the weather in Köln?"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def call_of(arguments: object) -> dict[str, Any]:
    """A message that calls `TOOL` with these arguments."""
    function = {"name": "weather", "arguments": arguments}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


CALLED = call_of('{"city": "Köln"}')
BODIES: dict[str, dict[str, Any]] = {
    "one message": {"messages": [USER]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "parts": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
            }
        ]
    },
    "turns": {"messages": [USER, {"role": "assistant", "content": "Rain."}, USER]},
    "thoughts": {
        "messages": [USER, {"role": "assistant", "content": "Rain.", "reasoning": "hm"}, USER]
    },
    "tools": {"messages": [USER], "tools": [TOOL]},
    "tools refused": {"messages": [USER], "tools": [TOOL], "tool_choice": "none"},
    "tools required": {"messages": [USER], "tools": [TOOL], "tool_choice": "required"},
    "tool named": {
        "messages": [USER],
        "tools": [TOOL, {"type": "function", "function": {"name": "other"}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    },
    "tool loop": {
        "messages": [USER, CALLED, {"role": "tool", "tool_call_id": "call_1", "content": "4 °C"}],
        "tools": [TOOL],
    },
    "calls without arguments": {"messages": [USER, call_of(None), USER]},
    "arguments nested too deep": {"messages": [USER, call_of("[" * 100_000), USER]},
    "no thinking": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}},
    "begun": {
        "messages": [USER, {"role": "assistant", "content": "Rain is"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}


@pytest.fixture(scope="module")
def tokenizer(qwen3: Path) -> BaseTokenizer:
    """That of `qwen3`."""
    return BaseTokenizer(qwen3)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("model", ["qwen3", "llama", "demo"])
def test_a_chat_has_the_ids_that_the_embedded_engine_gives_it(
    name: str, model: str, request: pytest.FixtureRequest
) -> None:
    """Each kind of chat request is rendered as the engine renders it, to the last id."""
    from mlx_lm.utils import load_tokenizer

    from strop.proxy.embedded import prompts, protocol

    base = demo_model() if model == "demo" else request.getfixturevalue(model)
    config = json.loads((base / "config.json").read_text())
    engine = load_tokenizer(base, eos_token_ids=config["eos_token_id"])
    # The demo model has no tool calls, so its engine refuses to require one.
    body = {
        key: value
        for key, value in BODIES[name].items()
        if engine.has_tool_calling or key != "tool_choice"
    }

    expected = prompts.encode_chat(protocol.parse_chat({"model": "m", **body}), engine)

    assert expected == BaseTokenizer(base).encode_chat(body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": ["hello"]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "call_1"}]}]},
        {"messages": [USER], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"messages": [USER], "chat_template_kwargs": "none"},
    ],
)
def test_what_can_not_be_rendered_is_a_value_error(
    tokenizer: BaseTokenizer, body: dict[str, Any]
) -> None:
    """A request that the template or the trainer can't take as text is refused, never guessed."""
    with pytest.raises(ValueError, match=r".+"):
        tokenizer.encode_chat(body)


def test_a_base_without_a_template_takes_no_messages(qwen3: Path, tmp_path: Path) -> None:
    """It still encodes text, and ends answers with the tokenizer's own end of text."""
    base = Path(shutil.copytree(qwen3, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    tokenizer = BaseTokenizer(base)

    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.encode_chat({"messages": [USER]})

    assert tokenizer.encode_text("hello") == tokenizer.encode_answer("hello")[:-1]
    assert models.IM_END == tokenizer.decode(tokenizer.encode_answer("hello")[-1:])


def test_an_answer_follows_its_prompt_as_the_template_writes_it(tokenizer: BaseTokenizer) -> None:
    """Prompt and answer are the beginning of what the template makes of the whole chat."""
    answer = {"role": "assistant", "content": "It rains – 4 °C."}

    ids = tokenizer.encode_chat({"messages": [USER]}) + tokenizer.encode_answer(answer["content"])

    whole = tokenizer.encode_chat({"messages": [USER, answer], "add_generation_prompt": False})
    assert whole[: len(ids)] == ids
    assert "\n" == tokenizer.decode(whole[len(ids) :])


def test_sampled_tokens_are_known_by_their_texts(tokenizer: BaseTokenizer) -> None:
    """Thoughts and their ends, as they are shown; an empty text is the end's, and only there."""
    ids = tokenizer.encode_text("<think>\nIt rains.\n</think>\n\nFour.")
    texts = [tokenizer.decode([one]) for one in ids]
    (end,) = tokenizer.encode_answer("")

    assert {"<think>", "</think>"} <= set(texts)
    assert ids == tokenizer.encode_tokens(texts)
    assert (*ids, end) == tokenizer.encode_tokens([*texts, ""])
    assert [None, None] == [
        tokenizer.encode_tokens(some) for some in (["", *texts], [*texts, "none of these"])
    ]


CLOSED = "<think>\n\n</think>\n\n"
HEADER = "<|im_start|>assistant\n"
THOUGHT = """\
{%- if thought and loop.index0 > ns.last_user -%}
{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}
{%- endif -%}
"""
CLOSES = "{{- '<think>\\n\\n</think>\\n\\n' -}}\n{%- endif -%}"
# How the templates of models that think differ, as changes of `models.CHAT_TEMPLATE`.
OPENS = (CLOSES, CLOSES.replace("endif", "else -%}{{- '<think>\\n' -}}{%- endif"))
OPENS_BARELY = (CLOSES, CLOSES.replace("endif", "else -%}{{- '<think>' -}}{%- endif"))
SHOWS_EMPTY = (THOUGHT, THOUGHT.replace("thought and ", ""))
CHANNEL = ("{{- content -}}", "{{- '<|final|>' + content -}}")
WAYS: dict[str, tuple[list[tuple[str, str]], bool | None, str, str]] = {
    "the prompt closes them": ([], False, HEADER + CLOSED, ""),
    "the model thinks if it likes": ([], True, HEADER, ""),
    "by default too": ([], None, HEADER, ""),
    "messages show them": ([SHOWS_EMPTY], True, HEADER, CLOSED),
    "messages show them, the prompt too": ([SHOWS_EMPTY], False, HEADER + CLOSED, ""),
    "the prompt opens them": ([OPENS], True, HEADER + "<think>\n", "\n</think>\n\n"),
    "the prompt opens them on one line": ([OPENS_BARELY], True, HEADER + "<think>", "</think>"),
    "it opens them, messages show them": (
        [OPENS, SHOWS_EMPTY], True, HEADER + "<think>\n", "\n</think>\n\n",
    ),
    "it may open them, but doesn't": ([OPENS], False, HEADER + CLOSED, ""),
    "answers have a channel": ([CHANNEL], True, HEADER, "<|final|>"),
}  # fmt: skip


@pytest.mark.parametrize("chat", ["one message", "turns", "tools", "tool loop", "thoughts"])
@pytest.mark.parametrize("way", WAYS)
def test_an_answer_without_thoughts_begins_as_after_that_very_prompt(
    way: str, chat: str, qwen3: Path, tmp_path: Path
) -> None:
    """Thoughts are closed where the prompt opens them, and empty where the template writes such."""
    changes, thinks, prompt_ends, expected = WAYS[way]
    base = Path(shutil.copytree(qwen3, tmp_path / "base"))
    template = (base / "chat_template.jinja").read_text()
    for old, new in changes:
        assert old in template
        template = template.replace(old, new)
    (base / "chat_template.jinja").write_text(template)
    tokenizer = BaseTokenizer(base)
    kwargs = {} if thinks is None else {"chat_template_kwargs": {"enable_thinking": thinks}}
    fields = BODIES[chat] | kwargs
    asked = tokenizer.encode_chat(fields)

    opening = tokenizer.encode_opening(asked, fields)

    assert tokenizer.decode(asked).endswith(prompt_ends)
    assert expected == tokenizer.decode(opening)


def test_an_answer_in_harmony_is_a_final_message(tmp_path: Path) -> None:
    """Where the template drops what the answer makes needless, too, as beside an earlier call."""
    spoken = harmony_models.make_tokenizer()
    spoken.save_pretrained(tmp_path)
    config = {"model_type": "gpt_oss", "eos_token_id": spoken.eos_token_id}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = BaseTokenizer(tmp_path)
    call, result = BODIES["tool loop"]["messages"][-2:]
    beside = {**call, "content": "I look."}
    chats = ([USER], [USER, call, result], [USER, beside, result])

    for messages in chats:
        asked = tokenizer.encode_chat({"messages": messages})
        opening = tokenizer.encode_opening(asked, {"messages": messages})
        assert tokenizer.decode(asked).endswith("<|start|>assistant")
        assert "<|channel|>final<|message|>" == tokenizer.decode(opening)
    assert "Rain.<|return|>" == tokenizer.decode(tokenizer.encode_answer("Rain."))


def test_a_model_that_does_not_think_has_no_opening() -> None:
    """Its answers are their text."""
    tokenizer = BaseTokenizer(demo_model())
    asked = tokenizer.encode_chat({"messages": [USER]})

    assert () == tokenizer.encode_opening(asked, {"messages": [USER]})


def test_the_recorded_prompt_decides_and_not_what_the_template_would_make_of_it(
    tokenizer: BaseTokenizer,
) -> None:
    """An engine with a template of its own opened thoughts: they are closed after its ids."""
    asked = (*tokenizer.encode_chat({"messages": [USER]}), *tokenizer.encode_text("<think>\n"))

    opening = tokenizer.encode_opening(asked, {"messages": [USER]})

    marker = tokenizer.encode_text("</think>")
    assert 1 == len(marker)
    assert marker[0] in opening
    assert "\n</think>\n\n" == tokenizer.decode(opening)


@pytest.mark.parametrize(
    "fields", [{}, BODIES["begun"], {"messages": [{"role": "assistant", "tool_calls": [{}]}]}]
)
def test_where_the_template_can_not_tell_an_answer_is_its_text(
    tokenizer: BaseTokenizer, fields: dict[str, Any]
) -> None:
    """Text completions, answers that are begun, and messages that it refuses have no opening."""
    assert () == tokenizer.encode_opening(tokenizer.encode_text("Rain is"), fields)


def test_markers_in_what_a_user_says_open_nothing(tokenizer: BaseTokenizer) -> None:
    """Only a prompt that ends within thoughts has them open."""
    fields = {"messages": [{"role": "user", "content": "What does <think>\n mean?"}]}

    assert () == tokenizer.encode_opening(tokenizer.encode_chat(fields), fields)


def test_a_prompt_with_an_opening_is_what_the_template_makes_of_the_whole(
    qwen3: Path, tmp_path: Path
) -> None:
    """Prompt, opening and answer are the template's own rendering of the answered chat."""
    base = Path(shutil.copytree(qwen3, tmp_path / "base"))
    template = (base / "chat_template.jinja").read_text().replace(*SHOWS_EMPTY)
    (base / "chat_template.jinja").write_text(template)
    tokenizer = BaseTokenizer(base)
    fields = BODIES["tool loop"]
    asked = tokenizer.encode_chat(fields)

    ids = asked + tokenizer.encode_opening(asked, fields) + tokenizer.encode_answer("Rain.")

    answered = [*fields["messages"], {"role": "assistant", "content": "Rain."}]
    whole = tokenizer.encode_chat({**fields, "messages": answered, "add_generation_prompt": False})
    assert whole[: len(ids)] == ids


def test_no_part_of_an_answer_is_a_special_token(tokenizer: BaseTokenizer) -> None:
    """A person's text that looks like a special token is text; only the last id ends the turn."""
    text = f"Write {models.IM_END} and {models.IM_START}."

    ids = tokenizer.encode_answer(text)

    ends = models.token_ids(tokenizer._tokenizer)["eos_token_id"]
    assert [ends] == [id_ for id_ in ids if id_ == ends] == [*ids[-1:]]
    assert text == tokenizer.decode(ids[:-1])


def test_the_template_says_what_ends_a_turn(qwen3: Path, tmp_path: Path) -> None:
    """Of several end ids it is the one that the template puts behind an assistant's message."""
    base = Path(shutil.copytree(qwen3, tmp_path / "base"))
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|endoftext|>"))
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')

    ids = BaseTokenizer(base).encode_answer("hello")

    assert models.END_OF_TEXT == BaseTokenizer(base).decode(ids[-1:])


SENTENCES = "{% for m in messages %}{{ m.role }}HEAD{{ m.content }}<end>{% endfor %}"
BEGINS = "{% if add_generation_prompt %}assistantHEAD{% endif %}"


@pytest.mark.parametrize(("head", "pieces"), [("\n", ["Hi", "▁there"]), ("", ["▁Hi", "▁there"])])
def test_an_answer_behind_a_line_break_begins_without_a_space(
    tmp_path: Path, head: str, pieces: list[str]
) -> None:
    """Tokenizers of SentencePiece's kind put one before a text, but not within what goes on."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = ["user", "assistant", "question", "answer", "Hi", "there"]
    names = ["?", "\n", "\n\n", "▁", *words, *(f"▁{word}" for word in words)]
    sentences = Tokenizer(kinds.Unigram([(name, -1.0) for name in names], unk_id=0))
    sentences.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    sentences.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = ["<end>", *([] if head else ["user", "assistant"])]
    sentences.add_special_tokens([AddedToken(mark) for mark in marks])
    saved = PreTrainedTokenizerFast(tokenizer_object=sentences, unk_token="?", eos_token="<end>")
    saved.chat_template = (SENTENCES + BEGINS).replace("HEAD", head)
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = BaseTokenizer(tmp_path)
    answer = {"role": "assistant", "content": "Hi there"}

    ids = tokenizer.encode_answer(answer["content"])

    asked = {"role": "user", "content": "question"}
    whole = tokenizer.encode_chat({"messages": [asked, answer], "add_generation_prompt": False})
    assert [*pieces, "<end>"] == saved.convert_ids_to_tokens(ids)
    assert whole == tokenizer.encode_chat({"messages": [asked]}) + ids
    # Where the line break before it becomes one with the answer's own, the answer keeps its own.
    assert tokenizer.decode(tokenizer.encode_answer("\nHi")).endswith("\nHi<end>")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    """The error names the folder."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(ValueError, match="no tokenizer"):
        BaseTokenizer(tmp_path)


def test_that_torch_is_missing_is_no_news_to_who_trains_with_mlx() -> None:
    """It would be said at each start."""
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else found(name, *rest)
import strop.training
import transformers
assert not transformers.utils.is_torch_available()
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)
