"""Inline commands: what is one, and how they are taken out of histories."""

import pytest

from strop.proxy.inline import MARK, Command, find_command, without_commands

ANSWERED = {"role": "assistant", "content": f"{MARK}Rated."}
GOOD = {"role": "user", "content": "/rl good"}
QUOTED = {"role": "user", "content": '"/rl good short"'}
QUESTION = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}
REMINDER = "<system-reminder>\nBe brief.\n</system-reminder>\n"
STOPPED = "[Request interrupted by user]\n"
TYPED = "<command-message>rl</command-message>\n<command-name>/rl</command-name>\n"
CAVEAT = "<local-command-caveat>Not for you.</local-command-caveat>\n"
TOOK_BACK = 'Took back the rating good (fb_01a2) of cmp_01a2: "Because."'
PICTURE = {"type": "image_url", "image_url": {}}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("/rl good", Command("good")),
        ("\n /rl bad\n", Command("bad")),
        ("/rl up", Command("good")),
        ("/rl DOWN", Command("bad")),
        ("/rl undo", Command("undo")),
        ("/rl status", Command("status")),
        ("/rl help", Command("help")),
        ("/rl", Command("help")),
        ("/rl  bad   too long, and  dull ", Command("bad", "too long, and  dull")),
        ("/rl\tbad\tdull", Command("bad", "dull")),
        ("/rl sideways", Command("help")),
        ("/rl 5 stars", Command("help", "stars")),
        ("/rl bad \ud83d", Command("bad", "?")),
        (parts(REMINDER, " /rl good "), Command("good")),
        ("[Sat 2026-11-21 17:15 UTC] /rl bad dull", Command("bad", "dull")),
        ("[Sat 2026-11-21 17:15 UTC]  /rl good ", Command("good")),
        ([*parts("/rl good"), {"type": "image_url", "image_url": {}}], Command("good")),
        ('"/rl good"', Command("good")),
        ('"/rl "', Command("help")),
        (r' "/rl bad so \"dull\" " ', Command("bad", 'so "dull"')),
        (parts(REMINDER, '"/rl good"\n'), Command("good")),
    ],
)
def test_a_line_of_its_own_is_a_command(content: object, expected: Command) -> None:
    """A user's last text part that is one line `/rl <verb> [comment]` is a command."""
    assert expected == find_command([ANSWER, {"role": "user", "content": content}])


def test_a_command_may_have_an_agents_own_context_behind_it() -> None:
    """OpenClaw's stands last in every request, as a user's message."""
    begin, end = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>", "<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
    context = {"role": "user", "content": parts(f"{begin}\nConversation data\n{end}\n")}
    opened = {"role": "user", "content": f"{begin}\nwhat is this?"}

    assert Command("good") == find_command([ANSWER, GOOD, context])
    assert find_command([ANSWER, GOOD, opened]) is None
    assert find_command([context]) is None
    assert [ANSWER, context] == without_commands([ANSWER, GOOD, context])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "/rlx good"},
        {"role": "user", "content": "[note] /rl good"},
        {"role": "user", "content": "[Sat 2026-11-21 17:15 UTC] so: /rl good"},
        {"role": "user", "content": "[Sat 2026-11-21 17:15 UTC]/rl good"},
        {"role": "user", "content": "//rl good"},
        {"role": "user", "content": "/RL good"},
        {"role": "user", "content": '"/rl good" is what I type'},
        {"role": "user", "content": '"/rl good", or "/rl bad"'},
        {"role": "user", "content": '"/rl good x" or "so"'},
        {"role": "user", "content": '"/rl good'},
        {"role": "user", "content": '"/rl good\nand go on"'},
        {"role": "user", "content": '"/rlx good"'},
        {"role": "user", "content": '"so /rl good"'},
        {"role": "user", "content": "'/rl good'"},
        {"role": "user", "content": '""/rl good""'},
        {"role": "user", "content": "please /rl good"},
        {"role": "user", "content": "/rl good\nand go on"},
        {"role": "user", "content": "/rl good\u2028and go on"},
        {"role": "user", "content": "go on\n/rl good"},
        {"role": "user", "content": parts("/rl good", "go on")},
        {"role": "user", "content": ""},
        {"role": "user", "content": None},
        {"role": "user", "content": []},
        {"role": "user", "content": {"text": "/rl good"}},
        {"role": "user"},
        {"role": "tool", "content": "/rl good"},
        {"role": "assistant", "content": "/rl good"},
        {"role": "system", "content": "/rl good"},
        {"role": ["user"], "content": "/rl good"},
        {"content": "/rl good"},
        "/rl good",
        None,
    ],
)
def test_anything_else_is_no_command(message: object) -> None:
    """What isn't exactly a command goes to the model: pasted text and tool results too."""
    assert find_command([message]) is None
    assert without_commands([message]) is None


def test_only_the_last_message_is_a_command_now() -> None:
    """A command that was answered before is not carried out again."""
    assert find_command([]) is None
    assert find_command([GOOD, ANSWERED, QUESTION]) is None
    assert find_command([GOOD, ANSWERED, SYSTEM]) is None


def test_an_agents_reminder_behind_the_command_is_passed_over() -> None:
    """As without: it would be taken out, and the model asked to go on after its own answer."""
    assert find_command([QUESTION, ANSWER, GOOD, SYSTEM]) == Command("good")
    assert find_command([SYSTEM]) is None


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([GOOD], []),
        ([QUOTED, ANSWERED, QUESTION], [QUESTION]),
        ([QUESTION, ANSWER, GOOD, ANSWERED, QUESTION], [QUESTION, ANSWER, QUESTION]),
        ([QUESTION, ANSWER, GOOD, QUESTION], [QUESTION, ANSWER, QUESTION]),
        ([GOOD, ANSWERED, GOOD, ANSWERED, QUESTION], [QUESTION]),
        ([GOOD, GOOD, ANSWERED, QUESTION], [QUESTION]),
        ([GOOD, SYSTEM, ANSWERED, QUESTION], [SYSTEM, QUESTION]),
        ([GOOD, GOOD, ANSWER, QUESTION], [GOOD, ANSWER, QUESTION]),
        ([ANSWER, GOOD, SYSTEM, ANSWER, GOOD, ANSWERED], [ANSWER, GOOD, SYSTEM, ANSWER]),
        ([ANSWER, QUESTION, SYSTEM, GOOD, ANSWER], [ANSWER, QUESTION, SYSTEM, ANSWER]),
        ([GOOD, ANSWERED, ANSWERED], [ANSWERED]),
        ([GOOD, QUESTION, ANSWERED], [QUESTION, ANSWERED]),
        (
            [
                {"role": "user", "content": parts(REMINDER, "/rl good")},
                {"role": "assistant", "content": parts(" [strop] ", "Rated.")},
                QUESTION,
            ],
            [QUESTION],
        ),
        (
            [GOOD, {"role": "user", "content": "[strop] x"}],
            [{"role": "user", "content": "[strop] x"}],
        ),
    ],
)
def test_commands_and_their_answers_are_taken_out(
    messages: list[object], expected: list[object]
) -> None:
    """Each command goes, and the marked answer that follows it; all else stays in its order."""
    assert expected == without_commands(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [QUESTION, ANSWER],
        [QUESTION, ANSWERED],
        [SYSTEM, {"x": 1}, None, 3],
        [GOOD, ANSWER, ANSWERED],
        [QUESTION, {"role": "user", "content": f"{MARK}{TOOK_BACK}"}],
        [QUESTION, {"role": "assistant", "content": f"As {MARK}{TOOK_BACK}"}],
        [QUESTION, {"role": "assistant", "content": f"{MARK}{TOOK_BACK}\nNow go on."}],
        [QUESTION, {"role": "assistant", "content": [*parts(f"{MARK}{TOOK_BACK}"), PICTURE]}],
        [QUESTION, {"role": "assistant", "content": f"{MARK}{TOOK_BACK}", "tool_calls": [{}]}],
    ],
)
def test_a_history_without_commands_is_left_alone(messages: list[object]) -> None:
    """A marked answer without its command was the model's own; what it answered was none then."""
    assert without_commands(messages) is None


@pytest.mark.parametrize("content", [f"{MARK}{TOOK_BACK}", parts(f" {MARK}", f"{TOOK_BACK}\n")])
def test_an_answer_that_only_strop_gives_needs_no_command_before_it(content: object) -> None:
    """Claude Code keeps the last answer where it shortens a history, and not what was asked."""
    alone = {"role": "assistant", "content": content}

    assert [QUESTION, ANSWER, QUESTION] == without_commands([QUESTION, ANSWER, alone, QUESTION])
    assert [] == without_commands([alone])
    assert [QUESTION] == without_commands([GOOD, alone, QUESTION])
    assert [GOOD, ANSWER] == without_commands([GOOD, alone, GOOD, ANSWER])


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (parts("why?"), 1),
        (parts("why?\n", TYPED), 1),
        (parts(REMINDER, "why?", STOPPED, TYPED), 3),
        (parts("why?", CAVEAT), 2),
        ([*parts("why?", "/rl bad"), *parts(TYPED)], 1),
        ([PICTURE], 1),
        (["why?"], 1),
    ],
)
def test_what_a_user_says_before_a_command_in_its_message_stays(
    before: list[object], words: int
) -> None:
    """Claude Code makes one message of a question that got no answer, and the command behind it."""
    asked = {"role": "user", "content": before[:words], "x": 1}
    typed = {**asked, "content": [*before, *parts("/rl good")]}

    assert Command("good") == find_command([ANSWER, typed])
    assert [ANSWER, asked] == without_commands([ANSWER, typed])
    assert [ANSWER, asked, QUESTION] == without_commands([ANSWER, typed, ANSWERED, QUESTION])
    assert [ANSWER, asked, ANSWER] == without_commands([ANSWER, typed, ANSWER])


@pytest.mark.parametrize(
    "before",
    [
        (TYPED,),
        (REMINDER, REMINDER),
        (STOPPED, TYPED),
        (CAVEAT, "<command-name>/compact</command-name>\n  <command-args></command-args>\n"),
        ("<local-command-stdout>Compacted</local-command-stdout>\n",),
        ("<ide_selection>x</ide_selection>", ""),
        ("/rl bad",),
    ],
)
def test_what_an_agent_says_beside_a_command_goes_with_it(before: tuple[str, ...]) -> None:
    """It is no question of its user's."""
    typed = {"role": "user", "content": parts(*before, "/rl good")}

    assert Command("good") == find_command([ANSWER, typed])
    assert [ANSWER] == without_commands([ANSWER, typed])
