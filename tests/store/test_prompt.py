"""What a recorded completion was asked and answered, read back."""

import pytest
from store_values import choice, completion

from strop.proxy.store import prompt


def test_the_request_is_read_as_the_engine_got_it() -> None:
    """Without commands and our answers to them; the other members stay."""
    asked = completion(
        "cmp_1",
        request=b'{"model": "m", "messages": [{"role": "user", "content": "Hi"},'
        b' {"role": "user", "content": "/rl bad"},'
        b' {"role": "assistant", "content": "[strop] ok"}]}',
    )

    assert {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} == prompt.fields(asked)


@pytest.mark.parametrize("request_body", [b"", b"not json", b"[]"])
def test_a_body_that_is_no_object_has_no_fields(request_body: bytes) -> None:
    """An engine refused it; it is recorded all the same."""
    assert prompt.fields(completion("cmp_1", request=request_body)) is None


@pytest.mark.parametrize(
    ("dialect", "message", "text"),
    [
        ("chat", b'{"content": "Hi"}', "Hi"),
        ("completions", b'{"text": "Hi"}', "Hi"),
        ("chat", b'{"content": null}', None),
        ("chat", b'{"content": "Hi", "tool_calls": [{"id": "1"}]}', None),
        ("chat", b'{"content": "Hi", "tool_calls": [], "reasoning": ""}', "Hi"),
        ("chat", b'{"content": "Hi", "reasoning": "Hm"}', None),
        ("chat", b'{"content": [{"type": "text", "text": "Hi"}]}', None),
        ("chat", b"[]", None),
        ("chat", b"cut o", None),
    ],
)
def test_an_answer_is_text_where_it_is_nothing_else(
    dialect: str, message: bytes, text: str | None
) -> None:
    """Calls and thoughts are tokens too, whose text isn't here."""
    asked = completion("cmp_1", dialect=dialect)

    assert text == prompt.text(asked, choice(message=message))


@pytest.mark.parametrize(
    ("prompt_json", "message", "text"),
    [
        (b'"A strop is"', b'{"text": "A strop is a leather."}', " a leather."),
        (b'["A strop is"]', b'{"text": "A strop is a leather."}', " a leather."),
        (b'""', b'{"text": " a leather."}', " a leather."),
        (b'"A strop is"', b'{"text": "A str"}', None),
        (b"[1, 2]", b'{"text": "A strop is a leather."}', None),
        (b'["A strop", "A blade"]', b'{"text": "A strop is a leather."}', None),
        (b'"A strop is"', b'{"text": null}', None),
    ],
)
def test_a_prompt_that_is_repeated_is_no_answer(
    prompt_json: bytes, message: bytes, text: str | None
) -> None:
    """`echo` has the engine say it before its own words, and only a text can be taken out again."""
    request = b'{"model": "m", "echo": true, "prompt": %b}' % prompt_json
    asked = completion("cmp_1", dialect="completions", request=request)

    assert text == prompt.text(asked, choice(message=message))


def test_an_echo_with_ids_has_the_prompt_beside_its_text() -> None:
    """As vLLM has it: the answer may begin with the same words all the same."""
    request = b'{"model": "m", "echo": true, "return_token_ids": true, "prompt": "ha"}'
    asked = completion("cmp_1", dialect="completions", request=request)

    assert "ha ha" == prompt.text(asked, choice(message=b'{"text": "ha ha"}'))


def test_what_was_taken_out_left_its_mark() -> None:
    """As `redaction` leaves it."""
    assert [True, False] == [prompt.is_redacted(b'"[redacted]"'), prompt.is_redacted(b'"all"')]
