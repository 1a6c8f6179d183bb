"""Tests of what versions are judged and compared by, on a policy that is checked by hand."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from toy_policy import ToyPolicy, log_softmax, tokens, unit

from strop.adapters.rates import Rate, wilson
from strop.training.backends.base import OutOfMemory, Weights
from strop.training.evaluate import Evaluated, Material, Prompt, evaluate
from strop.training.figures import gate_figures, num_samples_for, sample
from strop.training.gate import judge as judge_figures
from strop.training.micro_batch import MicroBatch
from strop.training.raters import Judge, Messages, RaterFailed, Rule
from strop.training.sequences import Floats, Tokens
from strop.training.stopping import Stopped, Stopping
from strop.training.training_set import HeldOutTurn, TrainingSet

LOGITS = [0.0, 0.3, -0.2, 0.5]
TRAINED = [0.5, 0.3, -0.2, 0.2]
ROOMY = MicroBatch(4096)
PROMPTS = tuple(Prompt([{"role": "user", "content": f"{i}"}], (1, i)) for i in range(2))


def policy() -> ToyPolicy:
    """A policy whose LoRA has moved from the base."""
    made = ToyPolicy(LOGITS)
    made.trained = np.array(TRAINED)
    return made


def words(ids: Sequence[int]) -> str:
    """An answer as text."""
    return " ".join(map(str, ids))


def compared(material: Material, **changes: Any) -> dict[str, Evaluated]:
    """The figures of the base and of what was trained, by name."""
    found = evaluate(
        policy(),
        {"base": "base", "v1": "trained"},
        material,
        words,
        ROOMY,
        **changes,
    )
    return {one.version: one for one in found}


def test_samples_are_the_same_for_the_same_seed_and_go_round_the_prompts() -> None:
    """So versions are asked the same, and a verdict can be made again."""
    prompts = [(1,), (2, 2)]

    first, second, other = (
        sample(policy(), "base", prompts, ROOMY, num_samples=40, seed=seed) for seed in (1, 1, 2)
    )

    assert [(1,), (2, 2)] * 20 == list(first.prompts)
    assert [one.ids for one in first.answers] == [one.ids for one in second.answers]
    assert [one.ids for one in first.answers] != [one.ids for one in other.answers]
    batches = [first.answers[:16], first.answers[16:32]]
    assert [one.ids for one in batches[0]] != [one.ids for one in batches[1]]


def test_short_answers_are_sampled_more_often() -> None:
    """A mean over few tokens is too uncertain to reject by: about 2,048 tokens, 16 to 128 times."""
    short = ToyPolicy([50.0, 0.0])  # ends at once
    long = ToyPolicy([-50.0, 0.0])  # never ends

    counts = [
        num_samples_for(sample(one, "base", [(1,)], ROOMY, num_samples=16, seed=0))
        for one in (short, long)
    ]

    assert [128, 16] == counts


def test_long_prompts_are_sampled_fewer_at_once() -> None:
    """Twice the tokens of a micro-batch, padding and answers included; one alone always is."""
    one = policy()
    prompts = [(1,) * 12, (1,) * 62, (1,) * 12, (1,) * 500, (1,) * 12]

    sample(one, "base", prompts, MicroBatch(100), num_samples=5, seed=0, max_tokens=38)

    assert [2, 1, 1, 1] == one.num_sampled


def test_out_of_memory_while_sampling_halves_the_batch_and_goes_on() -> None:
    """A run isn't lost at its gate; what doesn't fit alone says so."""
    small, none = (ToyPolicy(LOGITS, max_tokens=most) for most in (700, 100))

    fresh = sample(small, "base", [(1,)], ROOMY, num_samples=16, seed=0)

    assert [4, 4, 4, 4] == small.num_sampled
    assert all(answer.ids for answer in fresh.answers)
    assert 16 == len(fresh.answers)
    with pytest.raises(OutOfMemory):
        sample(none, "base", [(1,)], ROOMY, num_samples=16, seed=0)


def test_the_gates_figures_are_those_of_samples_and_held_out_answers() -> None:
    """The base's surprise at both, entropies, lengths, and the paired means of held-out turns."""
    base = ToyPolicy(LOGITS)
    units = (unit(base, [1, 0]),)
    held_out = (HeldOutTurn("cmp_1", 1.0, (tokens([1, 0]), tokens([2]))),)
    whole = TrainingSet(units, (), held_out, ((1,),), {})

    found = gate_figures(policy(), "base", whole, ROOMY, seed=0)

    old, new = log_softmax(np.array(LOGITS)), log_softmax(np.array(TRAINED))
    held = [1, 0, 2]
    assert pytest.approx(float(new[held].mean()), abs=1e-6) == found.held_out[0].candidate
    assert pytest.approx(float(old[held].mean()), abs=1e-6) == found.held_out[0].parent
    kl = float((np.exp(new) * (new - old)).sum())
    assert pytest.approx(kl, abs=0.02) == found.parent_kl
    assert pytest.approx(float(-(np.exp(new) * new).sum()), abs=1e-6) == found.candidate.entropy
    # A model whose samples are its own is as surprised by them as its entropy says.
    assert pytest.approx(found.base.entropy, abs=0.2) == found.base.base_nll
    assert found.candidate.num_samples == found.base.num_samples == 128
    assert found.candidate.length < found.base.length


def test_the_gate_samples_long_answers_once_for_each_side() -> None:
    """16 of the base show how long they are; where that is enough they are not drawn again."""
    long = ToyPolicy([-50.0, 0.0])  # never ends
    whole = TrainingSet((), (), (), ((1,),), {})

    found = gate_figures(long, "base", whole, ROOMY, seed=0)

    assert [16, 16] == long.num_sampled
    assert found.candidate.num_samples == found.base.num_samples == 16


def test_the_distance_is_that_to_the_parent() -> None:
    """Not to the base; and a candidate that says just what its parent would is at none."""
    near, same = Path("v1"), Path("v2")
    moved = policy()
    moved.versions = {near: np.array([0.5, 0.3, -0.2, 0.4]), same: moved.trained}
    whole = TrainingSet((), (), (), ((1,),), {})

    to_base, to_near, to_same = (
        gate_figures(moved, parent, whole, ROOMY, seed=0).parent_kl
        for parent in ("base", near, same)
    )

    answers = sample(moved, "trained", [(1,)], ROOMY, num_samples=128, seed=0).answers
    said = np.concatenate([answer.ids for answer in answers])
    table = log_softmax(moved.trained)
    for logits, found in ((np.array(LOGITS), to_base), (moved.versions[near], to_near)):
        assert pytest.approx(float((table - log_softmax(logits))[said].mean()), abs=1e-6) == found
    assert pytest.approx(0.0, abs=1e-6) == to_same


@pytest.mark.parametrize("is_held_out", [True, False])
def test_one_old_token_that_was_rare_does_not_make_a_candidate_far(is_held_out: bool) -> None:
    """The parent gave it e^-14, the candidate gives it e^-7: still rare, so little has changed."""
    shares = np.array([0.3, 0.4, 0.3 - 1e-6, 1e-6])
    moved = ToyPolicy(np.log(shares).tolist())
    moved.trained = np.log([0.3, 0.4, 0.299, 0.001])
    answers = [[1, 2, 0]] * 99 + [[1, 3, 0]]
    units = tuple(unit(moved, ids) for ids in answers)
    turns = tuple(HeldOutTurn(f"cmp_{i}", 1.0, (tokens(ids),)) for i, ids in enumerate(answers))
    whole = TrainingSet(units, (), turns if is_held_out else (), ((1,),), {})

    found = gate_figures(moved, "base", whole, ROOMY, seed=0)

    assert abs(found.parent_kl) < 0.05
    assert judge_figures(found).is_passed


@pytest.mark.parametrize("is_held_out", [True, False])
def test_a_candidate_that_says_what_its_parent_would_not_is_far(is_held_out: bool) -> None:
    """Whatever it makes of old answers, and also where there are none, as in runs on pairs."""
    moved = ToyPolicy(np.log([0.3, 0.4, 0.29, 0.01]).tolist())
    moved.trained = np.log([0.3, 0.4, 0.01, 0.29])
    turns = (HeldOutTurn("cmp_1", 1.0, (tokens([1, 1, 0]),)),)
    whole = TrainingSet((), (), turns if is_held_out else (), ((1,),), {})

    found = gate_figures(moved, "base", whole, ROOMY, seed=0)

    far = [check.name for check in judge_figures(found).checks if check.outcome == "rejected"]
    assert pytest.approx(0.28 * math.log(29), abs=0.15) == found.parent_kl
    assert "parent_kl" in far


def test_measuring_ends_where_somebody_asks_it_to() -> None:
    """A run is not held up by its own evaluation."""
    stopping = Stopping()
    stopping.ask()

    with pytest.raises(Stopped):
        sample(policy(), "base", [(1,)], ROOMY, num_samples=16, seed=0, check=stopping.check)


def test_held_out_answers_are_scored_until_somebody_asks_to_stop() -> None:
    """There may be hundreds, each a batch of its own."""
    long, stopping = [1] * 500, Stopping()
    whole = TrainingSet((), (), (HeldOutTurn("cmp_1", 1.0, (tokens(long),) * 9),), ((1,),), {})

    class Asking(ToyPolicy):
        """Has somebody ask to stop when it scores such an answer."""

        num_long = 0

        def logprobs(
            self, sequences: Sequence[Tokens], weights: Weights = "trained"
        ) -> list[Floats]:
            if len(sequences[0].ids) > len(long):
                self.num_long += 1
                stopping.ask()
            return super().logprobs(sequences, weights)

    asked = Asking(LOGITS)
    with pytest.raises(Stopped):
        gate_figures(asked, "base", whole, MicroBatch(500), seed=0, check=stopping.check)

    assert 1 == asked.num_long


def test_a_version_that_gives_an_answer_no_chance_at_all_has_figures() -> None:
    """A perplexity that no float holds is infinite, and null in JSON."""
    one, held_out = ToyPolicy([0.0, 2000.0]), (HeldOutTurn("a", 1.0, (tokens([0]),)),)

    (found,) = evaluate(one, {"v1": "base"}, Material((), held_out), words, ROOMY)

    assert (-2000.0, math.inf) == (found.liked, found.perplexity_liked)
    assert found.to_json()["perplexity_liked"] is None


def test_what_does_not_fit_is_left_out() -> None:
    """A prompt with its answer, and a turn by its longest sequence."""
    turns = tuple(HeldOutTurn("a", 1.0, (tokens([0]), tokens([0] * num))) for num in (9, 10))
    prompts = tuple(Prompt([], (1,) * num) for num in (4, 5))

    found = Material(prompts, turns).within(longest=10, max_tokens=6)

    assert Material(prompts[:1], turns[:1]) == found


def test_versions_are_compared_on_held_out_answers() -> None:
    """Means over turns of their mean logprob; a turn of several answers counts once."""
    held_out = (
        HeldOutTurn("a", 1.0, (tokens([1, 0]), tokens([0]))),
        HeldOutTurn("b", 1.0, (tokens([3]),)),
        HeldOutTurn("c", -1.0, (tokens([2]),)),
    )

    found = compared(Material((), held_out, {"v1": Rate(3, 4)}))

    table = log_softmax(np.array(TRAINED))
    liked = float((table[[1, 0, 0]].mean() + table[3]) / 2)
    assert pytest.approx(liked, abs=1e-6) == found["v1"].liked
    assert pytest.approx(float(table[2]), abs=1e-6) == found["v1"].disliked
    assert pytest.approx(liked - float(table[2]), abs=1e-6) == found["v1"].margin
    assert pytest.approx(math.exp(-liked), abs=1e-6) == found["v1"].perplexity_liked
    assert (None, Rate(3, 4)) == (found["base"].live, found["v1"].live)
    assert (0, 3, None) == (found["v1"].num_samples, found["v1"].num_held_out, found["v1"].length)


def test_versions_are_compared_on_fresh_answers() -> None:
    """With a rater they have a good-rate; the base is no distance from itself."""
    rule = Rule(lambda _, answer: answer.startswith("3"))

    found = compared(Material(PROMPTS), rater=rule, num_samples=100, seed=1)

    for version, logits in (("base", LOGITS), ("v1", TRAINED)):
        share = float(np.exp(log_softmax(np.array(logits)))[3])
        good = found[version].good
        assert good is not None
        assert 200 == good.num == found[version].num_samples
        assert share in good.interval
    assert pytest.approx(0.0, abs=1e-6) == found["base"].kl_base
    kl = found["v1"].kl_base
    assert kl is not None
    assert kl > 0.01
    assert (None, None) == (found["v1"].liked, found["v1"].margin)
    assert found["v1"].distinct_1 is not None


def test_samples_of_one_prompt_hang_together() -> None:
    """All of one prompt's are good and none of the other's: 200 samples tell as much as two."""
    rule = Rule(lambda messages, _: messages[0]["content"] == "0")

    found = compared(Material(PROMPTS), rater=rule, num_samples=100)

    good = found["v1"].good
    assert good is not None
    assert (100, 200, wilson(1, 2)) == (good.num_hits, good.num, good.interval)


def test_figures_are_json() -> None:
    """What couldn't be measured is null, and a rate has its interval."""
    found = compared(Material(PROMPTS), rater=Rule(lambda *_: True), num_samples=2)

    written = json.loads(json.dumps(found["v1"].to_json(), allow_nan=False))

    assert {"value": 1.0, "num_good": 4, "num": 4, "high": 1.0} == {
        key: value for key, value in written["good"].items() if key != "low"
    }
    assert None is written["margin"]


def test_a_rule_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in the working directory count; bools and numbers in [-1, 1] are ratings."""
    (tmp_path / "my_rules.py").write_text(
        "def short(messages, answer):\n    return len(answer) < 3\n"
        "def graded(messages, answer):\n    return 0.5\n"
        "def broken(messages, answer):\n    return 'good'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    asked: list[tuple[Messages, str]] = [([], "ab"), ([], "abc")]

    assert [1.0, -1.0] == Rule.load("my_rules:short").rate(asked)
    assert [0.5, 0.5] == Rule.load("my_rules:graded").rate(asked)
    with pytest.raises(RaterFailed, match="a bool or a number"):
        Rule.load("my_rules:broken").rate(asked)
    for name in ("my_rules", "my_rules:none", "no_such_module:f"):
        with pytest.raises(RaterFailed):
            Rule.load(name)


class _JudgeServer(ThreadingHTTPServer):
    """Keeps what it was asked: paths, keys and bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _JudgeHandler)
        self.seen: list[tuple[str, str, Any]] = []


class _JudgeHandler(BaseHTTPRequestHandler):
    """Finds an answer good if it says please; of an empty one it has no opinion."""

    server: _JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, self.headers["authorization"], body))
        answer = body["messages"][-1]["content"].rpartition("judge:\n")[2]
        said = "Is it good? Yes: GOOD." if "please" in answer else "bad" if answer else "hm"
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200 if answer != "crash" else 500)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def judge() -> Iterator[_JudgeServer]:
    """A judge behind an OpenAI-compatible URL."""
    server = _JudgeServer()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_is_asked_at_temperature_0_for_one_word(judge: _JudgeServer) -> None:
    """It sees the conversation and the answer; its last verdict counts, and none is NaN."""
    rater = Judge(f"http://127.0.0.1:{judge.server_port}/v1", "big", key="secret")
    chat = [{"role": "user", "content": [{"type": "text", "text": "May I?"}]}]

    ratings = rater.rate([(chat, "Yes, please."), (chat, "No."), (chat, "")])

    assert [1.0, -1.0] == ratings[:2]
    assert math.isnan(ratings[2])
    path, key, body = judge.seen[0]
    assert ("/v1/chat/completions", "Bearer secret") == (path, key)
    assert ("big", 0) == (body["model"], body["temperature"])
    assert "May I?" in body["messages"][-1]["content"]


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST", "0.0.0.0"])
def test_a_judge_on_this_machine_is_asked_past_every_proxy(
    judge: _JudgeServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """What people wrote would leave the machine, and the proxy could not reach its loopback."""
    monkeypatch.setenv("http_proxy", "http://192.0.2.7:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    Judge(f"http://{host}:{judge.server_port}/v1", "big").rate([([], "please")])

    assert ["/v1/chat/completions"] == [path for path, _, _ in judge.seen]


def test_a_judge_elsewhere_is_asked_by_way_of_the_proxy(
    judge: _JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the only way out."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{judge.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    Judge("http://judge.invalid/v1", "big").rate([([], "please")])

    assert ["http://judge.invalid/v1/chat/completions"] == [path for path, _, _ in judge.seen]


def test_a_judge_that_gives_no_answer_is_an_error(judge: _JudgeServer) -> None:
    """A good-rate over whatever came through would look like a figure."""
    rater = Judge(f"http://127.0.0.1:{judge.server_port}", "big")

    with pytest.raises(RaterFailed, match="gave no answer"):
        rater.rate([([], "crash")])


def test_unrated_samples_are_counted_apart(judge: _JudgeServer) -> None:
    """They are neither good nor bad."""
    rater = Judge(f"http://127.0.0.1:{judge.server_port}", "big")

    found = evaluate(
        policy(), {"v1": "trained"}, Material(PROMPTS), lambda _: "", ROOMY,
        rater=rater, num_samples=2,
    )  # fmt: skip

    assert (Rate(0, 0, worth=0.0), 4) == (found[0].good, found[0].num_unrated)
