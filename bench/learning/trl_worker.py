"""TRL's KTOTrainer in a process of its own: one JSON line in, a trained adapter and one line out.

Runs in the environment that `bench.learning.setup` makes; imports nothing of strop.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars  # type: ignore[import-not-found]
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer  # type: ignore[import-not-found]


def main() -> None:
    """Serve until the input ends."""
    torch.set_num_threads(1)
    disable_progress_bars()
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_train(json.loads(line))), file=answers, flush=True)


def _train(asked: dict[str, Any]) -> dict[str, Any]:
    """Train on `rows` from `start`, or from nothing, and write the adapter to `out`."""
    tokenizer = AutoTokenizer.from_pretrained(asked["base"])
    model = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32)
    reference = peft_config = None
    if asked["start"]:
        model = PeftModel.from_pretrained(model, asked["start"], is_trainable=True)
        if asked["is_base_reference"]:
            reference = AutoModelForCausalLM.from_pretrained(asked["base"], dtype=torch.float32)
    else:
        peft_config = LoraConfig(
            r=asked["rank"],
            lora_alpha=asked["alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    with tempfile.TemporaryDirectory() as folder:
        trainer = KTOTrainer(
            model=model,
            ref_model=reference,
            args=_config(asked["config"], folder),
            train_dataset=Dataset.from_list(asked["rows"]),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        began_s = time.process_time()
        trainer.train()
        cpu_s = time.process_time() - began_s
    trained = trainer.model
    trained.save_pretrained(asked["out"], selected_adapters=["default"])
    (Path(asked["out"]) / "README.md").unlink(missing_ok=True)
    return {"num_steps": trainer.state.global_step, "cpu_s": cpu_s}


def _config(given: dict[str, Any], folder: str) -> KTOConfig:
    return KTOConfig(
        output_dir=folder,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        dataloader_num_workers=0,
        **given,
    )


if __name__ == "__main__":
    main()
