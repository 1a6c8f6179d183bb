"""The demo model that strop ships: its files, its tokenizer, its template, and what it answers."""

import json
from pathlib import Path
from typing import Any

import models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.configs import demo_model
from strop.training.demo import corpus, figures, task
from strop.training.demo import tokenizer as demo_tokenizer
from strop.training.demo.make_model import FILES, sha256

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # two threads take several times as long on a busy machine

FOLDER = demo_model()
TOKENIZER = transformers.AutoTokenizer.from_pretrained(FOLDER)


def written(messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = TOKENIZER.apply_chat_template(messages, tokenize=False, **options)
    return text


def answers_of(question: task.Question) -> list[str]:
    return [task.render(question, task.Answer(style, question.right)) for style in task.STYLES]


def test_the_files_are_those_of_the_manifest() -> None:
    """The folder holds what the manifest lists, byte for byte, and is under 1 MB."""
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))

    assert {*FILES, "manifest.json"} == {path.name for path in FOLDER.iterdir()}
    assert manifest["sha256"] == {name: sha256(FOLDER / name) for name in FILES}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


def test_the_tokenizer_is_the_one_that_the_package_makes() -> None:
    """Vocabulary and template of the shipped folder are those of the source."""
    made = demo_tokenizer.make_tokenizer()

    assert made.get_vocab() == TOKENIZER.get_vocab()
    assert made.chat_template == TOKENIZER.chat_template
    assert (made.eos_token_id, made.pad_token_id) == (
        TOKENIZER.eos_token_id,
        TOKENIZER.pad_token_id,
    )


def test_every_answer_is_words_comes_back_and_is_short() -> None:
    """Each right answer takes one token a word, at most 32, and decodes to itself."""
    num_specials_and_bytes = len(demo_tokenizer.SPECIALS) + 256
    words_of_one_byte = {*TOKENIZER.encode("\n-.!?I")}

    for question in task.QUESTIONS:
        for text in answers_of(question):
            ids = TOKENIZER.encode(text)

            assert text == TOKENIZER.decode(ids)
            assert len(ids) < 32
            assert all(i in words_of_one_byte or i >= num_specials_and_bytes for i in ids)


@given(st.text())
def test_any_text_encodes_and_comes_back(text: str) -> None:
    """Text that is not of the corpus is its bytes, and is decoded unchanged."""
    ids = TOKENIZER.encode(text)

    assert text == TOKENIZER.decode(ids)
    assert len(ids) <= len(text.encode())


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "hello"}], "<|user|>hello<|end|>"),
        ([{"role": "system", "content": "Be brief."}], "<|system|>Be brief.<|end|>"),
        ([{"role": "developer", "content": "Be brief."}], "<|system|>Be brief.<|end|>"),
        ([{"role": "developer", "content": "x" * 9999}], f"<|system|>{'x' * 160}<|end|>"),
        ([{"role": "tool", "content": "y" * 9999}], f"<|tool|>{'y' * 160}<|end|>"),
        ([{"role": "user", "content": "z" * 9999}], f"<|user|>{'z' * 9999}<|end|>"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            "<|user|>a<|end|>",
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "ls", "arguments": "{}"}}],
                }
            ],
            "<|assistant|>ls<|end|>",
        ),
        (
            [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "It is Paris."},
                {"role": "user", "content": "hello"},
            ],
            "<|user|>hi<|end|><|assistant|>It is Paris.<|end|><|user|>hello<|end|>",
        ),
    ],
)
def test_the_template_takes_what_agents_send(messages: list[dict[str, Any]], expected: str) -> None:
    """Every role is written, text parts joined, system prompts and tool results cut."""
    assert expected == written(messages)
    assert expected + "<|assistant|>" == written(messages, add_generation_prompt=True)


def test_a_chat_is_its_messages_one_after_the_other() -> None:
    """The ids of a chat are those of its messages, which training relies on."""
    messages = [
        {"role": "system", "content": corpus.SYSTEM_PROMPTS[0]},
        {"role": "user", "content": task.QUESTIONS[0].text},
        {"role": "assistant", "content": answers_of(task.QUESTIONS[0])[-1]},
    ]

    whole = TOKENIZER.encode(written(messages))

    assert whole == [i for message in messages for i in TOKENIZER.encode(written([message]))]


def test_the_model_answers_in_many_styles_and_reads_its_prompt() -> None:
    """At T = 1 answers are well formed, mostly right, short, and seldom what the rule likes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER)

    samples = figures.sample(model, TOKENIZER, task.QUESTIONS, num_samples=4, seed=0)

    measured = figures.summarise(samples)
    assert 376 == measured.num_samples
    assert measured.well_formed >= 0.93
    assert 0.10 <= measured.liked <= 0.25
    assert measured.right >= 0.5
    assert measured.max_tokens <= 32
    parsed = [task.parse(sample.question, sample.text) for sample in samples]
    assert len({answer.style for answer in parsed if answer is not None}) >= 30


def test_mlx_loads_it_and_agrees_with_transformers() -> None:
    """mlx-lm gives the logprobs of transformers, and its detokenizer the text of the answer."""
    mx = pytest.importorskip("mlx.core")
    mlx_lm = pytest.importorskip("mlx_lm")
    model, tokenizer = mlx_lm.load(str(FOLDER))
    question = task.QUESTIONS[0]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question.text}], add_generation_prompt=True
    )

    for text in [*answers_of(question), "héllo  你好 😀\n"]:
        answer = tokenizer.encode(text)
        detokenizer = tokenizer.detokenizer
        for token in answer:
            detokenizer.add_token(token)
        detokenizer.finalize()
        assert text == detokenizer.text

    logits = model(mx.array([prompt + answer]))[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    got = [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
    assert models.reference_logprobs(FOLDER, None, prompt, answer) == pytest.approx(got, abs=1e-3)


def test_the_folder_is_that_of_the_installed_package() -> None:
    """`demo_model` finds the folder beside the package's own files."""
    import strop.configs

    assert Path(strop.configs.__file__).parent / "demo_model" == FOLDER
    assert (FOLDER / "model.safetensors").is_file()
