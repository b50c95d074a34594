"""A language model of 20,000 weights and eight pairs, trained with MM-DPO in a bare loop.

Everything is built from a config and a seed: nothing is loaded. The tests run the loop under each
implementation of the kernels; ``benches/trl_mm_dpo.py`` runs it and TRL's trainer. Needs
transformers, for the model alone.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrlhf_kernels import (
    dynamic_beta,
    fused_linear_logp,
    fused_linear_mm_dpo,
    sequence_of_row,
    sequence_sums,
)

VOCABULARY, HIDDEN = 200, 32
PAD, END = 0, 1
BETA, SFT_WEIGHT, LEARNING_RATE = 0.1, 0.1, 1e-3
LN2 = math.log(2.0)


class Pair(NamedTuple):
    """A question with two answers as token ids, and how far the better answer leads."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float


class Step(NamedTuple):
    """Losses of one step, before it was taken."""

    loss: float
    preference_loss: float


def make_pairs(count: int = 8) -> list[Pair]:
    """Random pairs; answers of different lengths end in ``END``, margins from -1 to 6."""
    source = torch.Generator().manual_seed(0)

    def tokens(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (), generator=source))
        return torch.randint(END + 1, VOCABULARY, (length,), generator=source).tolist()

    margins = torch.linspace(-1.0, 6.0, count).tolist()
    return [Pair(tokens(2, 5), [*tokens(1, 4), END], [*tokens(1, 5), END], m) for m in margins]


def tiny_model(seed: int = 0) -> Any:
    """A Qwen2 of two layers, hidden 32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    return Qwen2ForCausalLM(config)


def collate(pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, completion mask), each [2 P, T], chosen answers first."""
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    prompts = [pair.prompt for pair in pairs] * 2
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(answers), longest), PAD)
    attended, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        both = [*prompt, *answer]
        ids[row, : len(both)] = torch.tensor(both)
        attended[row, : len(both)] = 1
        completion[row, len(prompt) : len(both)] = 1
    return ids, attended, completion


def completion_rows(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """(hidden [N, H], target [N], cu_seqlens [2 P + 1]) of the tokens of the answers alone."""
    ids, attended, completion = batch
    states = model.base_model(input_ids=ids, attention_mask=attended).last_hidden_state
    counted = completion[:, 1:].bool()
    bounds = torch.nn.functional.pad(counted.sum(1).cumsum(0), (1, 0))
    return states[:, :-1][counted], ids[:, 1:][counted], bounds


@torch.no_grad()
def reference_sums(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities ([P] chosen, [P] rejected) under the reference model."""
    hidden, target, bounds = completion_rows(model, batch)
    logp = fused_linear_logp(hidden, model.lm_head.weight, target)
    assert isinstance(logp, Tensor)
    sequences = bounds.numel() - 1
    sums = sequence_sums(logp, sequence_of_row(bounds, logp.numel()), sequences)
    return sums[: sequences // 2], sums[sequences // 2 :]


def bare_loop(steps: int, *, pairs_per_step: int = 2) -> list[Step]:
    """Train the tiny model against its own beginning; the losses of each step."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    pairs = make_pairs()
    groups = [pairs[i : i + pairs_per_step] for i in range(0, len(pairs), pairs_per_step)]
    batches = [collate(group) for group in groups]
    betas = [dynamic_beta(torch.tensor([pair.margin for pair in group]), BETA) for group in groups]
    references = [reference_sums(model, batch) for batch in batches]
    curve = []
    for step in range(steps):
        turn = step % len(batches)
        hidden, target, bounds = completion_rows(model, batches[turn])
        out = fused_linear_mm_dpo(
            hidden,
            model.lm_head.weight,
            target,
            *references[turn],
            betas[turn],
            cu_seqlens=bounds,
            sft_weight=SFT_WEIGHT,
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        curve.append(Step(float(out.loss.detach()), float(out.preference_loss)))
    return curve
