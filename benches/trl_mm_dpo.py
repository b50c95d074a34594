"""MM-DPO in TRL: the curve of a loop without a trainer, and steps beside TRL's own trainer.

First the tiny text model of ``heads/training.py`` with margins, inside ``MMDPOTrainer`` and in a
bare loop: the losses must agree. Then tiny LLaVA-OneVision and Qwen2-VL with pictures: steps and
tokens a second of TRL's ``DPOTrainer``, as it ships and with the rows of answers alone in its head,
and of ``MMDPOTrainer`` with a reference model in every step and with cached references::

    pip install ./kernels[trl]
    python benches/trl_mm_dpo.py    # prints tables, writes benches/records
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from heads.training import LN2, bare_loop
from record import write_record

FAMILIES = ("llava_onevision", "qwen2_vl")
NOT_MEASURED = [
    "a GPU, bfloat16, several processes",
    "a model of a released size: widths, layers and pictures are small",
    "the pass that caches the references: one forward pass of each pair",
    "memory",
]


def main() -> int:
    """Train, print, write the record; the exit code says whether the losses agree."""
    parser = argparse.ArgumentParser(description="MM-DPO inside TRL's trainer, and its speed")
    parser.add_argument("--steps", type=int, default=50, help="Of the curve.")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="Of the losses, absolute.")
    parser.add_argument("--timed-steps", type=int, default=6, help="Of a run that is timed.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    arguments = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("trl_mm_dpo needs TRL; hint: pip install './kernels[trl]'", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    from heads.trl_speed import compare

    rows = [_curve(arguments.steps)]
    with tempfile.TemporaryDirectory() as base:
        for family in arguments.families:
            folder = Path(base) / family
            folder.mkdir()
            rows += compare(family, folder, arguments.timed_steps, arguments.rounds)
    for row in rows:
        print(row)
    some = "-".join(["trl_mm_dpo", *arguments.families]) if len(arguments.families) == 1 else ""
    parameters = vars(arguments) | {"threads": 1, "load": os.getloadavg()}
    print(write_record(some or "trl_mm_dpo", parameters, rows, NOT_MEASURED))
    apart = [row["largest_difference_of_losses"] for row in rows]
    right = max(apart) < arguments.tolerance and rows[0]["first_loss_less_ln_2"] < 1e-6
    return 0 if right else 1


def _curve(steps: int) -> dict[str, Any]:
    """How far the losses of the trainer are from those of the bare loop."""
    from heads.trl_trainer import train_in_trl

    with tempfile.TemporaryDirectory() as folder:
        inside = train_in_trl(steps, Path(folder))
    bare = bare_loop(steps)
    return {
        "family": "text",
        "contender": "ours, beside a bare loop",
        "steps": steps,
        "largest_difference_of_losses": max(
            abs(a.loss - b.loss) for a, b in zip(inside, bare, strict=True)
        ),
        "first_loss_less_ln_2": abs(inside[0].preference_loss - LN2),
        "last_preference_loss": inside[-1].preference_loss,
    }


if __name__ == "__main__":
    sys.exit(main())
