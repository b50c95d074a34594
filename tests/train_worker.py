"""One of several processes that train together; started by ``torch.distributed.run``."""

import json
import os
import sys
from pathlib import Path

import torch


def main(shards: str, model: str, out: str, stage: int, settings: dict) -> None:
    """Train; with a stage of ZeRO by DeepSpeed."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if stage:
        import deepspeed.ops

        # Without it an extension is compiled first, which takes longer than the test.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        file = Path(__file__).parents[1] / "configs" / "deepspeed" / f"zero{stage}.json"
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(file)
    from mmrlhf_engine import run_mm_dpo

    run_mm_dpo(shards, model, out, settings)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), json.loads(sys.argv[5]))
