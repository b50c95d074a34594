"""A beta for each pair, handed to four libraries: what they compute, and what is right.

Three pairs and betas (0.1, 0.15, 0.2) under two tiny models. The truth is a loop over the pairs in
float64. TRL and Liger take a number as beta; here they are given the tensor. TRL multiplies it into
the pairs by their place in the batch, so it is tried on three batches: the pairs in order, the same
pairs in another order, and the two that a last batch may have left.

    pip install trl datasets liger-kernel
    python benches/per_pair_beta.py        # prints a table, writes benches/records
"""

import importlib.util
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.training import collate, completion_rows, make_pairs, reference_sums, tiny_model
from mmrlhf_kernels import fused_linear_mm_dpo
from record import write_record

PAIRS = make_pairs(3)
BETAS = torch.tensor([0.1, 0.15, 0.2])
ORDERS = {"in order": [0, 1, 2], "in another order": [2, 0, 1], "two of them": [0, 1]}


def truth(policy: Any, reference: Any, order: list[int]) -> float:
    """Mean of ``log(1 + exp(-beta_j delta_j))``, one pair and one token after the other."""
    models = [model.double() for model in (policy, reference)]
    total = 0.0
    for place in order:
        pair, beta = PAIRS[place], float(BETAS[place])
        ratios = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*pair.prompt, *answer]])
            logps = [
                model(input_ids=ids)
                .logits[0, :-1]
                .log_softmax(1)[range(ids.numel() - 1), ids[0, 1:]]
                for model in models
            ]
            own, base = (float(logp[len(pair.prompt) - 1 :].sum()) for logp in logps)
            ratios.append(own - base)
        total += math.log1p(math.exp(-beta * (ratios[0] - ratios[1])))
    for model in models:
        model.float()
    return total / len(order)


def ours(policy: Any, reference: Any, order: list[int], betas: Tensor) -> float:
    """``fused_linear_mm_dpo``."""
    batch = collate([PAIRS[place] for place in order])
    hidden, target, bounds = completion_rows(policy, batch)
    sums = reference_sums(reference, batch)
    out = fused_linear_mm_dpo(
        hidden, policy.lm_head.weight, target, *sums, betas, cu_seqlens=bounds
    )
    return float(out.loss)


def liger(policy: Any, reference: Any, order: list[int], betas: Tensor) -> float:
    """``LigerFusedLinearDPOLoss(beta=betas)``."""
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    ids, attended, completion = collate([PAIRS[place] for place in order])
    target = ids.masked_fill(completion == 0, -100)[:, 1:]
    states = [
        model.base_model(input_ids=ids, attention_mask=attended).last_hidden_state[:, :-1]
        for model in (policy, reference)
    ]
    loss = LigerFusedLinearDPOLoss(beta=betas, use_ref_model=True, compiled=False)
    heads = policy.lm_head.weight, reference.lm_head.weight
    result = loss(heads[0], states[0], target, ref_input=states[1], ref_weight=heads[1])
    return float(result[0] if isinstance(result, tuple) else result)


def trl(policy: Any, reference: Any, order: list[int], betas: Tensor) -> float:
    """``DPOTrainer`` with ``DPOConfig(beta=betas)``, the loss of one batch."""
    from datasets import Dataset
    from trl import DPOTrainer

    from heads.trl_trainer import as_row, settings, tokenizer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            policy,
            reference,
            args=settings(Path(folder), beta=betas, per_device_train_batch_size=len(order)),
            train_dataset=Dataset.from_list([as_row(PAIRS[place]) for place in order]),
            processing_class=tokenizer(),
        )
        inputs = next(iter(trainer.get_train_dataloader()))
        return float(trainer.compute_loss(trainer.model, inputs))


def attempt(call: Callable[..., float], order: list[int], betas: Tensor) -> tuple[str, float]:
    """(what happened, the loss or nan) under two fresh models."""
    policy, reference = tiny_model(1), tiny_model(0)
    # Far enough apart that a wrong beta shows.
    with torch.no_grad():
        policy.lm_head.weight.mul_(8.0)
    try:
        value = call(policy, reference, order, betas)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}", math.nan
    return f"{value:.6f}", value


def rows() -> Iterator[dict[str, Any]]:
    """One row per library and batch."""
    for batch, order in ORDERS.items():
        exact = attempt(lambda p, r, o, _: truth(p, r, o), order, BETAS)[1]
        yield {"library": "loop in float64", "batch": batch, "loss": f"{exact:.6f}", "right": True}
        calls = {
            "mmrlhf_kernels": (ours, BETAS[order]),
            "TRL DPOTrainer": (trl, BETAS),
            "Liger DPO loss": (liger, BETAS[order]),
        }
        for library, (call, betas) in calls.items():
            said, value = attempt(call, order, betas)
            right = abs(value - exact) < 1e-5
            yield {"library": library, "batch": batch, "loss": said, "right": right}


def main() -> int:
    """Print the table and write the record."""
    missing = [name for name in ("trl", "liger_kernel") if not importlib.util.find_spec(name)]
    if missing:
        hint = "pip install trl datasets liger-kernel"
        print(f"per_pair_beta needs {' and '.join(missing)}; hint: {hint}", file=sys.stderr)
        return 2
    found = []
    for row in rows():
        found.append(row)
        verdict = "right" if row["right"] else "WRONG"
        print(f"{row['batch']:17} {row['library']:16} {verdict:6} {row['loss']}", flush=True)
    parameters = {"betas": BETAS.tolist()}
    print(write_record("per_pair_beta", parameters, found, ["gradients", "any GPU"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
