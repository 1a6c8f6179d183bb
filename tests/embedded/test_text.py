"""From ids to text in the embedded engine: characters, stop strings, thoughts and calls."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mlx_lm")

from mlx_lm.tool_parsers import json_tools
from tokenizers import AddedToken

from strop.proxy.embedded.text import Detokenizer, StopStrings, Vocabulary
from strop.proxy.embedded.text_parts import Markup, Splitter
from strop.proxy.embedded.tool_calls import Delta

THINK = ("<think>", "</think>")
TOOL = ("<tool_call>", "</tool_call>")
MARKUP = Markup(THINK, TOOL, json_tools.parse_tool_call)
CALL = '{"name": "look", "arguments": {"at": "it"}}'


@pytest.fixture(scope="module")
def tokenizer(qwen3: Path) -> Any:
    """The base's tokenizer in mlx-lm's wrapper."""
    from mlx_lm.tokenizer_utils import load

    return load(qwen3)


@pytest.mark.parametrize("text", ["Hello world", "你好，世界", "👩‍💻🇫🇷", " a  b\n\n", "naïve “x”"])
def test_the_pieces_of_a_text_join_to_it(tokenizer: Any, text: str) -> None:
    """Token by token nothing is lost, and no half character is ever given."""
    vocabulary = Vocabulary(tokenizer)
    detokenizer = Detokenizer(vocabulary, frozenset())

    pieces = [detokenizer.add(token) for token in tokenizer.encode(text)]

    assert text == "".join(pieces)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_held_back(tokenizer: Any) -> None:
    """Without its last bytes a character gives nothing; broken bytes show once others follow."""
    detokenizer = Detokenizer(Vocabulary(tokenizer), frozenset())
    *begin, _ = tokenizer.encode("🦜")
    assert begin

    assert "" == "".join(detokenizer.add(token) for token in begin)
    assert "\ufffda" == "".join(detokenizer.add(token) for token in tokenizer.encode("a"))


def test_bytes_that_never_become_a_character_are_given_as_broken(tokenizer: Any) -> None:
    """They are not held, and decoded again with each token, to the end; what follows is whole."""
    vocabulary = Vocabulary(tokenizer)
    detokenizer = Detokenizer(vocabulary, frozenset())
    # The second half of a character, which no other half precedes.
    broken = tokenizer.encode("🦜")[-1]
    follow = tokenizer.encode("a b")

    pieces = [detokenizer.add(token) for token in [broken] * 200 + follow]

    assert 0 < len("".join(pieces[:100])) <= 100
    assert "".join(pieces).endswith("\ufffda b")


def test_silent_tokens_give_no_text(tokenizer: Any) -> None:
    """Special tokens are skipped; those that mark thoughts and calls are kept for a chat."""
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode("a<|im_end|>b<think>c")

    detokenizer = Detokenizer(vocabulary, vocabulary.silent(keeps_markers=True))

    assert "ab<think>c" == "".join(detokenizer.add(token) for token in ids)


def test_special_tokens_without_a_role_are_silent_too(qwen3: Path) -> None:
    """As in transformers: what a tokenizer marks as special counts, not what it has a name for."""
    from mlx_lm.tokenizer_utils import load

    own = load(qwen3)
    own.add_tokens([AddedToken("<|header|>", special=True)], special_tokens=True)
    vocabulary = Vocabulary(own)
    ids = own.encode("a<|header|>b")

    detokenizer = Detokenizer(vocabulary, vocabulary.silent(keeps_markers=True))

    assert 3 == len(ids)
    assert "ab" == "".join(detokenizer.add(token) for token in ids)
    assert own.decode(ids, skip_special_tokens=True) == "ab"


def test_a_token_shows_its_text_and_a_character_on_its_last_piece(tokenizer: Any) -> None:
    """As in vLLM: pieces of a character give "", the one that completes it the character."""
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode("x🦜")

    texts = [vocabulary.token_text(token, ids[:at]) for at, token in enumerate(ids)]

    assert "x🦜" == "".join(texts)
    assert ["x", *[""] * (len(ids) - 2), "🦜"] == texts


def stopped(strings: tuple[str, ...], pieces: list[str], *, included: bool = False) -> StopStrings:
    """Return the matcher after the pieces, and check that it gave no more than it must."""
    stops = StopStrings(strings, included)
    for piece in pieces:
        stops.add(piece)
    return stops


def test_a_stop_string_is_found_across_pieces() -> None:
    """What may be its beginning is held back, and given when it isn't."""
    stops = StopStrings(("END",))

    assert ["a", "", "Ex", "b", ""] == [
        stops.add("a"), stops.add("E"), stops.add("x"), stops.add("bEN"), stops.add("D!"),
    ]  # fmt: skip
    assert "END" == stops.found


def test_the_earliest_of_several_stop_strings_counts() -> None:
    """The order in the request doesn't matter, the place in the text does."""
    assert "b" == stopped(("cd", "b"), ["abcd"]).found
    assert "ab" == StopStrings(("b",), True).add("abc")


def test_a_string_counts_once_the_answer_may_end() -> None:
    """One that is whole before is passed over; one that begins before and ends later is not."""
    early, across = StopStrings(("ab",)), StopStrings(("ab", "xabz"))

    assert ["", "ab", "c"] == [
        early.add("a", may_end=False), early.add("b", may_end=False), early.add("c"),
    ]  # fmt: skip
    assert ["x", ""] == [across.add("xx", may_end=False)[:1], across.add("ab", may_end=False)]
    assert "" == across.add("z")
    assert (None, "xabz") == (early.found, across.found)


def test_what_was_held_back_is_given_at_the_end() -> None:
    """An answer that ends with half a stop string keeps it."""
    stops = StopStrings(("END",))

    assert "x" == stops.add("xEN")
    assert "EN" == stops.flush()


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    st.data(),
)
def test_stop_strings_cut_where_the_whole_text_would(
    text: str, strings: list[str], data: st.DataObject
) -> None:
    """However a text is cut into pieces, it ends where its first stop string begins."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    # A string that begins earlier but ends later is found later: the pieces decide then.
    stops = StopStrings(tuple(strings))

    given_text = ""
    for piece in pieces:
        if stops.found is None:
            given_text += stops.add(piece)
    if stops.found is None:
        given_text += stops.flush()

    found = [at for stop in strings if (at := text.find(stop)) >= 0]
    assert (stops.found is not None) == bool(found)
    if stops.found is None:
        assert text == given_text
    else:
        assert text.startswith(given_text + stops.found)
        assert not any(stop in given_text for stop in strings)


def split(text: str, size: int, markup: Markup = MARKUP) -> tuple[Delta, Splitter]:
    """Return what a text gives together, fed in pieces of a size."""
    splitter = Splitter(markup, None)
    total = Delta()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for at, piece in enumerate(pieces):
        delta = splitter.add(piece, is_last=at + 1 == len(pieces))
        total.content += delta.content
        total.reasoning += delta.reasoning
        total.tool_calls += delta.tool_calls
    return total, splitter


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "reasoning", "num_calls"),
    [
        ("plain", "plain", "", 0),
        ("<think>why</think>so", "so", "why", 0),
        ("a < b <thin", "a < b <thin", "", 0),
        ("<think>no end", "", "no end", 0),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", "", 1),
        (f"I look.\n<tool_call>{CALL}</tool_call>", "I look.\n", "", 1),
        (
            f"<think>t</think>\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n",
            "",
            "t",
            2,
        ),
        (f"<tool_call>{CALL}", "", "", 1),
        ("<tool_call>nonsense</tool_call>!", "<tool_call>nonsense</tool_call>!", "", 0),
        ('<tool_call>{"name": "cut', '<tool_call>{"name": "cut', "", 0),
        ('<tool_call>["list"]</tool_call>', '<tool_call>["list"]</tool_call>', "", 0),
        ("\n\nspaced", "\n\nspaced", "", 0),
        ("\n", "\n", "", 0),
    ],
)
def test_an_answer_is_split_the_same_however_it_comes(
    text: str, size: int, content: str, reasoning: str, num_calls: int
) -> None:
    """Thoughts, calls and content are told apart; what is no call stays as the model wrote it."""
    total, splitter = split(text, size)

    assert (content, reasoning) == (total.content, total.reasoning)
    assert list(range(num_calls)) == [call.index for call in total.tool_calls]
    assert (num_calls > 0) == splitter.has_called
    for call in total.tool_calls:
        assert ("look", {"at": "it"}) == (call.name, json.loads(call.arguments))


def test_an_answer_that_begins_inside_a_thought_is_reasoning() -> None:
    """Templates that open the thought themselves leave only its end to the model."""
    total, _ = split("why</think>so", 2, Markup(THINK, begins_thinking=True))

    assert ("so", "why") == (total.content, total.reasoning)


def test_markers_stay_in_the_text_where_nothing_is_to_be_split() -> None:
    """Without tools in the request, a tool's markup is just text."""
    text = f"<tool_call>{CALL}</tool_call>"

    total, splitter = split(text, 3, Markup())

    assert text == total.content
    assert not splitter.has_called


def test_a_thought_that_a_user_wrote_of_opens_none(qwen3: Path) -> None:
    """Templates tell turns apart by special tokens, not all by one that ends an answer."""
    from mlx_lm.tokenizer_utils import load

    own = load(qwen3)
    own.add_tokens([AddedToken("<|assistant|>", special=True)], special_tokens=True)
    quoted, opened = (
        Markup.of(own, own.encode(prompt), has_tools=False)
        for prompt in ("what is <think><|assistant|>\n", "what is it<|assistant|>\n<think>\n")
    )

    assert [False, True] == [quoted.begins_thinking, opened.begins_thinking]


def test_markup_is_read_from_the_tokenizer(tokenizer: Any) -> None:
    """Markers and parser come from the template; tools only where the request has some."""
    prompt = tokenizer.encode("hi<|im_end|>\n<|im_start|>assistant\n<think>\n")
    quoted = tokenizer.encode("what is <think><|im_end|>\n<|im_start|>assistant\n")

    assert Markup(THINK, TOOL, json_tools.parse_tool_call) == Markup.of(
        tokenizer, [], has_tools=True
    )
    assert Markup(THINK, begins_thinking=True) == Markup.of(tokenizer, prompt, has_tools=False)
    assert Markup(THINK) == Markup.of(tokenizer, quoted, has_tools=False)
