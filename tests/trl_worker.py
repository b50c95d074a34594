"""One of several ranks that train the tiny text model; the first writes what was logged.

torchrun --nproc-per-node 2 trl_worker.py FOLDER
"""

import json
import sys
from pathlib import Path

from datasets import Dataset

import trl_models
from mmrlhf_kernels.integrations.trl import MMDPOConfig, MMDPOTrainer


def main() -> None:
    """Four steps of one pair a rank, otherwise those of the test."""
    folder = Path(sys.argv[1])
    tested = trl_models.text_model()
    trainer = MMDPOTrainer(
        tested.model,
        args=MMDPOConfig(
            output_dir=str(folder / "ranks"),
            max_steps=4,
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            sft_weight=0.5,
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.load_from_disk(str(folder / "data")),
        processing_class=tested.processor,
    )
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    if trainer.accelerator.is_main_process:
        lines = [line for line in trainer.state.log_history if "loss" in line]
        (folder / "ranks.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main()
