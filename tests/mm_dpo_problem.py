"""Pairs for the tests of the MM-DPO kernel, their truth in float64, and calls for its process."""

import torch

import mmrlhf_kernels
from launch_count import counted
from mmrlhf_kernels import reference
from mmrlhf_kernels.mm_dpo_plain import Numbers, PairCall

PAIRS = 133
"""More than the kernel takes at once."""


class Problem:
    """Answers of random lengths, an empty and a long one among them, with all columns."""

    def __init__(self, pairs=PAIRS, *, shared=False, longest=9, seed=0):
        source = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=source)

        answers = 2 * pairs
        lengths = torch.randint(1, longest, (answers,), generator=source)
        if pairs > 2:
            lengths[1], lengths[2] = 0, 300
        self.pairs = pairs
        self.lengths = lengths
        self.cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        self.logp = -draw(int(lengths.sum())).abs()
        self.index = None
        named = torch.arange(answers).view(2, pairs).T
        if shared:  # the last answer belongs to no pair, others to several
            named = torch.randint(0, answers - 1, (pairs, 2), generator=source)
            same = named[:, 0] == named[:, 1]
            named[:, 1] = torch.where(same, (named[:, 0] + 1) % (answers - 1), named[:, 1])
            self.index = named.clone()
        parts = torch.split(self.logp.double(), lengths.tolist())
        self.sums = torch.stack([part.sum() for part in parts])
        self.means = self.sums / lengths.clamp(min=1)
        self.chosen, self.rejected = self.sides = named.T
        self.noise = 3 * draw(2, pairs)
        self.margin = 2 * draw(pairs)
        self.options = {
            "tie": torch.rand(pairs, generator=source) < 0.25,
            "weight": torch.rand(pairs, generator=source),
            "reward_shift": 0.3,
        }

    def references(self, *, average=False):
        """(ref_chosen_logps, ref_rejected_logps) [P] float32, near the policy's."""
        sums = self.means if average else self.sums
        columns = torch.stack([sums[self.chosen], sums[self.rejected]])
        return (columns + self.noise * (0.1 if average else 1.0)).float()

    def truth(self, *, average=False, **options):
        """(loss, gradient [N]) of twice the loss by autograd of the specification in float64."""
        wide = {
            name: value.double() if name == "weight" else value
            for name, value in (self.options | options).items()
        }
        logp = self.logp.double().requires_grad_()
        loss = reference.mm_dpo_row_loss(
            logp, self.cu_seqlens, *self.references(average=average).double(),
            self.margin.double(), 0.1, pair_index=self.index, average=average, **wide,
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(2 * loss, logp)[0]

    def found(self, *, average=False, **options):
        """(output, gradient [N]) of twice the loss by the public function."""
        logp = self.logp.clone().requires_grad_()
        out = mmrlhf_kernels.mm_dpo_loss_from_rows(
            logp, self.cu_seqlens, *self.references(average=average), 0.1, margin=self.margin,
            pair_index=self.index, average=average, **(self.options | options),
        )  # fmt: skip
        return detached(out), torch.autograd.grad(2 * out.loss, logp)[0]

    def found_from_sums(self, **options):
        """The same of :func:`mm_dpo_loss`, with the gradients [P] of both sides."""
        leaves = [self.sums[side].float().requires_grad_() for side in (self.chosen, self.rejected)]
        out = mmrlhf_kernels.mm_dpo_loss(
            *leaves, *self.references(), 0.1, margin=self.margin,
            chosen_tokens=self.lengths[self.chosen], **(self.options | options),
        )  # fmt: skip
        return detached(out), torch.autograd.grad(2 * out.loss, leaves)


def detached(out):
    """The output without its graph, so that it can travel."""
    return out._replace(loss=out.loss.detach())


def call_of(chosen, rejected=None, **fields):
    """A call on sums of both sides with beta 1."""
    zero = torch.zeros(chosen.shape[0])
    empty = dict.fromkeys(PairCall._fields)
    numbers = Numbers(0.0, 0.0, 0.0, fields.pop("beta_ori", 1.0), fields.pop("w", 0.5),
                      fields.pop("k", 0.5), -1.0, -1.0)  # fmt: skip
    given = {
        "logp": chosen, "rejected_logp": zero if rejected is None else rejected,
        "ref_chosen_logps": zero, "ref_rejected_logps": zero, "loss_type": "sigmoid",
        "sft": "token", "average": False, "numbers": list(numbers),
    }  # fmt: skip
    return PairCall(**(empty | given | fields))


def launches_of(function, *, backward):
    """(launches, host reads, kernels) of a public function with all its options."""
    problem = Problem(pairs=4)
    options = problem.options | {"sft_weight": 0.25, "label_smoothing": 0.1}
    columns = (*problem.references(), 0.1)
    if function == "mm_dpo_loss":
        leaves = [problem.sums[:4].float(), problem.sums[4:].float()]
        columns = (*leaves, *columns)
        options["chosen_tokens"] = problem.lengths[:4]
    else:
        leaves = [problem.logp]
        columns = (problem.logp, problem.cu_seqlens.int(), *columns)
    for leaf in leaves:
        leaf.requires_grad_()

    def call():
        out = getattr(mmrlhf_kernels, function)(*columns, margin=problem.margin, **options)
        if backward:
            torch.autograd.grad(out.loss, leaves)

    return counted(call)
