"""MM-DPO as the paper writes it, slow and clear: each answer alone, one pair after the other."""

import math

import torch
from transformers import get_scheduler

from mmrlhf_engine import open_dataset


def answer_logp(model, prompt, answer, **inputs):
    """The log-probability of an answer's tokens after a prompt, through the model's own forward."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


class Pairs:
    """The pairs of shards of text, by row, as lists of ids."""

    def __init__(self, shards):
        dataset = open_dataset(shards)
        self.pairs = dataset.pairs.collect().to_dicts()
        self.responses = dataset.responses.collect().to_dicts()
        self.queries = dataset.queries.collect().to_dicts()

    def tokens(self, row):
        """Prompt, chosen and rejected answer of a pair."""
        pair = self.pairs[row]
        chosen, rejected = (self.responses[pair[side]]["tokens"] for side in ("chosen", "rejected"))
        return self.queries[pair["q"]]["prompt"], chosen, rejected


def losses(model, reference, shards, steps, total_steps, config):
    """The loss of each step; ``steps`` has the rows of the pairs of each. Changes the model."""
    pairs = Pairs(shards)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.optimizer.learning_rate, weight_decay=0.0)
    warmup = round(config.schedule.warmup * total_steps)
    name = config.schedule.name.replace("constant", "constant_with_warmup")
    schedule = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    found = []
    for rows in steps:
        terms, chosen_logps, tokens = [], [], 0
        for row in rows:
            prompt, chosen, rejected = pairs.tokens(row)
            scores = [answer_logp(model, prompt, answer) for answer in (chosen, rejected)]
            with torch.no_grad():
                before = [answer_logp(reference, prompt, answer) for answer in (chosen, rejected)]
            beta = beta_of(pairs.pairs[row], config)
            if config.loss_type == "ipo":
                ends = [
                    (new - old) / len(ids)
                    for new, old, ids in zip(scores, before, (chosen, rejected), strict=True)
                ]
                terms.append((ends[0] - ends[1] - 1 / (2 * beta)) ** 2)
            else:
                gap = (scores[0] - scores[1]) - (before[0] - before[1])
                terms.append(-torch.nn.functional.logsigmoid(beta * gap))
            chosen_logps.append(scores[0])
            tokens += len(chosen)
        loss = sum(terms) / len(rows) - config.sft_weight * sum(chosen_logps) / tokens
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        found.append(float(loss.detach()))
    return found


def beta_of(pair, config):
    """The paper's beta of a pair, or the constant one."""
    if config.beta_rule == "constant":
        return config.beta
    grown = 1 + config.beta_w * (1 - math.exp(-config.beta_k * pair["margin"]))
    return min(max(config.beta * grown, config.beta), (1 + config.beta_w) * config.beta)
