"""The tiny model of :mod:`heads.training`, trained by ``MMDPOTrainer``. Written for TRL 1.16."""

import copy
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig

from heads.training import (
    BETA,
    END,
    LEARNING_RATE,
    PAD,
    SFT_WEIGHT,
    VOCABULARY,
    Pair,
    Step,
    make_pairs,
    tiny_model,
)
from mmrlhf_kernels.integrations.trl import MMDPOConfig, MMDPOTrainer


def words(ids: list[int]) -> str:
    """Token ids as text that the tokenizer turns back into them; the trainer adds the end."""
    return " ".join(f"t{token}" for token in ids if token != END)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id."""
    special = {PAD: "<pad>", END: "<end>"}
    vocabulary = {special.get(token, f"t{token}"): token for token in range(VOCABULARY)}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token=special[PAD]))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token=special[PAD], eos_token=special[END]
    )


def as_row(pair: Pair) -> dict[str, Any]:
    """A pair in TRL's columns, and ``margin``."""
    return {
        "prompt": words(pair.prompt) + " ",
        "chosen": words(pair.chosen) + " ",
        "rejected": words(pair.rejected) + " ",
        "margin": pair.margin,
    }


def settings(folder: Path, kind: type[DPOConfig] = DPOConfig, **changes: Any) -> Any:
    """A run on the CPU whose steps are those of the bare loop."""
    return kind(
        output_dir=str(folder),
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **changes,
    )


def train_in_trl(steps: int, folder: Path, *, pairs_per_step: int = 2) -> list[Step]:
    """The run of :func:`heads.training.bare_loop` in TRL's trainer; its losses."""
    model = tiny_model()
    args = settings(
        folder,
        MMDPOConfig,
        max_steps=steps,
        per_device_train_batch_size=pairs_per_step,
        beta=BETA,
        sft_weight=SFT_WEIGHT,
    )
    trainer = MMDPOTrainer(
        model,
        copy.deepcopy(model),
        args=args,
        train_dataset=Dataset.from_list([as_row(pair) for pair in make_pairs()]),
        processing_class=tokenizer(),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss/dpo" in entry]
    return [Step(entry["loss"], entry["loss/dpo"]) for entry in logged]
