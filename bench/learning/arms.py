"""Arms: who learns, and from what kind of ratings. The table of all that is compared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.learning.learner import Learner
from bench.learning.reinforceclaw import MovingBaseline, ReinforceClaw
from bench.learning.strop_learner import StropLearner, strop
from bench.learning.trl_kto import TrlKto

# What strop's own runs are bounded by, and others don't have.
_NO_STOP: Final = {"kl_stop": 1e9}


def rejection_sft(lr_scale: float) -> StropLearner:
    """Return maximum likelihood on what is liked, and nothing besides."""
    return strop("sft", changes=_NO_STOP, lr_scale=lr_scale, has_gate=False)


def reinforceclaw(lr_scale: float) -> StropLearner:
    """Return ReinforceClaw's objective with its baseline, for one seed."""
    return StropLearner(
        lambda _: ReinforceClaw(),
        changes=_NO_STOP,
        lr_scale=lr_scale,
        advantages=MovingBaseline(),
        has_gate=False,
    )


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing that is compared.

    Attributes:
        name: what the command line and the results call it.
        title: what tables call it.
        learner: makes one that has learned nothing yet.
        asks_twice: 20 questions are asked twice, not 40 once, so that answers can be compared.
        is_corrected: each answer that is rated bad, and is, gets a correction.
        num_seeds: how many seeds are worth their time.
    """

    name: str
    title: str
    learner: Callable[[], Learner]
    asks_twice: bool = False
    is_corrected: bool = False
    num_seeds: int = 5


ALL: Final = (
    Arm("topr", "**strop as shipped**: topr, balanced", lambda: strop("topr"), num_seeds=20),
    Arm("careful", "topr, careful", lambda: strop("topr", preset="careful")),
    Arm("aggressive", "topr, aggressive", lambda: strop("topr", preset="aggressive")),
    Arm("mispo", "mispo", lambda: strop("mispo")),
    Arm("reinforce", "reinforce", lambda: strop("reinforce")),
    Arm("sft", "sft", lambda: strop("sft")),
    Arm("kto", "kto", lambda: strop("kto")),
    Arm("dpo", "dpo, each question asked twice", lambda: strop("dpo"), asks_twice=True),
    Arm("topr-twice", "topr, each question asked twice", lambda: strop("topr"), asks_twice=True),
    Arm("dpo-corrections", "dpo, corrections", lambda: strop("dpo"), is_corrected=True),
    Arm("topr-corrections", "topr, corrections", lambda: strop("topr"), is_corrected=True),
    Arm("ungated", "topr, no gate, nothing held out", lambda: strop("topr", has_gate=False)),
    Arm("rejection-sft", "rejection-sampling SFT", lambda: rejection_sft(1.0)),
    Arm("rejection-sft-half", "rejection-sampling SFT, half the rate", lambda: rejection_sft(0.5)),
    Arm("reinforceclaw", "ReinforceClaw's documented objective", lambda: reinforceclaw(1.0)),
    Arm("reinforceclaw-half", "the same, half the rate", lambda: reinforceclaw(0.5)),
    Arm("trl-kto", "TRL KTOTrainer, default beta", TrlKto),
    Arm(
        "trl-kto-tuned",
        "TRL KTOTrainer, tuned",
        lambda: TrlKto(beta=0.5, is_balanced=True, is_base_reference=True, lr_scale=0.5),
    ),
)
BY_NAME: Final = {arm.name: arm for arm in ALL}
