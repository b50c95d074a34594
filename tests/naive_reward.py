"""The loss of a reward model, slow and clear: each answer of each pair by a forward of its own."""

import torch

from mmrlhf_engine.models.judge_turn import critique_tokens, judge_turn
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from naive_train import Pairs


class NaiveReward:
    """Rewards and losses of critiques of single answers.

    Args:
        model: A reward model of transformers, with ``rm_head``.
        folder: Of its tokenizer.
        shards: Text alone.
        critiques: Text by row of responses, or None; None for scores alone.
    """

    def __init__(self, model, folder, shards, critiques, instruction):
        self.model, self.pairs = model, Pairs(shards)
        tokenizer = load_fast_tokenizer(str(folder), needed_for="tests")
        self.turn = judge_turn(tokenizer, instruction)
        self.critiques = {
            row: critique_tokens(tokenizer, [text])[0].tolist()
            for row, text in enumerate(critiques)
            if text is not None
        }

    def answer(self, response):
        """Reward, and the log-probabilities of the critique's tokens [n], closing included."""
        row = self.pairs.responses[response]
        prompt = self.pairs.queries[row["q"]]["prompt"]
        given, judged = [*prompt, *row["tokens"]], []
        if response in self.critiques:
            given += self.turn.opening.tolist()
            judged = [*self.critiques[response], *self.turn.closing.tolist()]
        ids = torch.tensor([[*given, *judged]])
        output = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        reward = self.model.rm_head(output.hidden_states[-1][0, -1:])[0]
        logits = output.logits[0, len(given) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(judged).long()[:, None])[:, 0]
        return reward, logp

    def loss(self, rows, config):
        """The loss of one step, whose pairs have these rows."""
        ranked, ties, centre, critique = [], [], [], []
        for row in rows:
            pair = self.pairs.pairs[row]
            (chosen, first), (rejected, second) = map(
                self.answer, (pair["chosen"], pair["rejected"])
            )
            if pair["flags"] & 1:
                if not config.tie_weight:
                    continue
                ties.append((chosen - rejected) ** 2)
            else:
                margin = pair["margin"] if config.margin else 0.0
                ranked.append(-torch.nn.functional.logsigmoid(chosen - rejected - margin))
            centre.append((chosen + rejected) ** 2)
            for logp in (first, second):
                if len(logp):
                    whole = -logp.sum()
                    critique.append(whole / len(logp) if config.critique_loss == "mean" else whole)
        pairs = len(ranked) + len(ties)
        score = sum(ranked) / max(1, len(ranked)) + config.tie_weight * sum(ties) / max(
            1, len(ties)
        )
        return (
            config.score_weight * score
            + config.centring * sum(centre) / pairs
            + config.critique_weight * sum(critique) / pairs
        )
