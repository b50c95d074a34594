"""Every operation of the package in plain PyTorch: the specification the fast paths are held to.

Nothing here saves memory or time: the whole logit matrix is formed, pairs are processed one by one.
Given float64 inputs every function computes in float64, so that it can be checked against finite
differences, and is differentiable by autograd.

**Head.** ``z = softcap * tanh(logit_scale * (h W^T + b) / softcap)``: scale first, then the
softcap; without one, no tanh. With LoRA the weight is ``W + scale * B A``.

**Pairs.** S_c and S_r are summed log-probabilities of the chosen and of the rejected answer,
``a = S_c - ref_c`` and ``b = S_r - ref_r`` their log-ratios, ``delta = a - b``, ``x = beta delta``,
``x_c = beta a`` and ``x_r = beta b``. The loss ``l(a, b)`` of a pair whose label is sure is

* ``sigmoid``: ``softplus(-x)`` (DPO, arXiv 2305.18290);
* ``ipo``: ``(delta - 1 / (2 beta))^2`` (arXiv 2310.12036);
* ``hinge``: ``max(0, 1 - x)`` (SLiC, arXiv 2305.10425);
* ``robust``: as ``sigmoid``, made unbiased against flipped labels (arXiv 2403.00409);
* ``exo_pair``: ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))`` with ``p = sigmoid(x)`` and the q
  below; without label smoothing it takes e = 0.001, as TRL does (EXO, arXiv 2402.00856);
* ``simpo``: ``softplus(-(x - shift))``; in the paper S are means over tokens, there is no reference
  and the shift is its gamma (SimPO, arXiv 2405.14734);
* ``bco_pair``: ``softplus(-(x_c - shift)) + softplus(x_r - shift)``, the shift being the running
  mean of the rewards (arXiv 2404.04656);
* ``kto_pair``: ``sigmoid(-(x_c - shift)) + sigmoid(x_r - shift)``, the shift being beta times the
  paper's estimate of the KL divergence, for pairs (KTO, arXiv 2402.01306);
* ``apo_zero``: ``sigmoid(-x_c) + sigmoid(x_r)`` (APO, arXiv 2408.06266);
* ``apo_down``: ``sigmoid(x_c) + sigmoid(-x)`` (the same);
* ``sppo_hard``: ``(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2`` (SPPO, arXiv 2405.00675).

A label that holds with probability q costs ``q l(a, b) + (1 - q) l(b, a)``; ``exo_pair`` costs what
is said there. Label smoothing e sets ``q = 1 - e`` (conservative DPO) and
``q = (1 - e) / (1 - 2 e)`` for ``robust``. A tie sets ``q = 1/2``: its label is a fair coin, so its
cost is the mean of both directions. For ``sigmoid`` that is cross-entropy against the target
probability 1/2. TRL smooths the labels of the first five alone, and of ``simpo`` after the shift.

**Means.** Pair losses are summed and divided by ``num_pairs``, those of tokens by ``num_tokens``:
the pairs and chosen tokens at hand, or those of a larger batch that the pairs are a part of. The
losses of the parts then sum up to the loss of the whole. An empty mean is 0.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmrlhf_kernels.precision import statistics_dtype

__all__ = [
    "PAIR_LOSS_TYPES",
    "TWO_SIDED_LOSS_TYPES",
    "dynamic_beta",
    "entropy",
    "label_probability",
    "linear_logp",
    "logits",
    "mm_dpo_loss",
    "mm_dpo_row_loss",
    "pairwise_reward_loss",
    "select_logp",
    "supervised_loss",
]

PAIR_LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust", "exo_pair", "simpo")
"""Losses that see a pair through its difference alone."""
TWO_SIDED_LOSS_TYPES = ("bco_pair", "kto_pair", "apo_zero", "apo_down", "sppo_hard")
"""Losses that need both sides apart."""
EXO_SMOOTHING = 1e-3
"""What a label smoothing of 0 stands for under ``exo_pair``, whose loss it would make infinite."""


def logits(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Logits of a language model head: scale first, then the softcap.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V] or None.
        softcap: Bound of the logits (Gemma 2: 30), or None.
        logit_scale: Factor of the raw logits (Cohere; 1 / logits_scaling of Granite).
        lora: (A [r, H], B [V, r], scale) or None.

    Returns:
        [N, V], dtype of ``hidden``.
    """
    raw = functional.linear(hidden, weight, bias)
    if lora is not None:
        low, high, scale = lora
        raw = raw + scale * (hidden @ low.T) @ high.T
    scaled = raw * logit_scale
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Log-probability of each target, ``log softmax(z)[target]``: [N] in the dtype of ``hidden``.

    ``target`` is [N] int64; rows that hold ``ignore_index`` give 0 and take no part. The other
    arguments are those of :func:`logits`.
    """
    z = logits(hidden, weight, bias=bias, softcap=softcap, logit_scale=logit_scale, lora=lora)
    return select_logp(z, target, ignore_index)


def select_logp(z: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """``log softmax(z)[target]`` per row of logits [N, V]; 0 in ignored rows."""
    ignored = target == ignore_index
    chosen = target.masked_fill(ignored, 0).unsqueeze(1)
    logp = torch.log_softmax(z, dim=1).gather(1, chosen).squeeze(1)
    return logp.masked_fill(ignored, 0.0)


def entropy(z: Tensor) -> Tensor:
    """Entropy ``-sum p log p`` per row of logits [N, V], in nats; p log p is 0 where p is."""
    log_probability = torch.log_softmax(z, dim=1)
    # Minus infinity times a probability of 0 would be no number.
    finite = log_probability.clamp(min=torch.finfo(z.dtype).min)
    return -(finite * log_probability.exp()).sum(dim=1)


def dynamic_beta(margin: Tensor, beta: float, w: float = 0.5, k: float = 0.5) -> Tensor:
    """MM-DPO's beta of each pair: ``beta * (1 + w * (1 - exp(-k * margin)))``, clamped.

    ``margin`` [P] is the reward of the chosen answer minus that of the rejected one, ``beta`` the
    paper's beta_ori, ``w`` the largest relative increase and ``k`` how fast it is reached. The
    result, [P] in ``[beta, (1 + w) * beta]``, is float64 for a float64 margin, else float32.
    """
    # A margin below 0 gives beta like 0 does, and an infinite one would turn 0 * inf into NaN.
    margin = margin.to(statistics_dtype(margin.dtype))
    margin = margin.clamp(0.0, torch.finfo(margin.dtype).max)
    raised = beta * (1.0 + w * (1.0 - torch.exp(-k * margin)))
    return raised.clamp(beta, (1.0 + w) * beta)


def label_probability(label_smoothing: float, loss_type: str) -> float:
    """The q of a pair that is no tie, from label smoothing e; above 1 for ``robust``."""
    if loss_type == "exo_pair":
        return 1.0 - (label_smoothing or EXO_SMOOTHING)
    sure = 1.0 - label_smoothing
    return sure / (1.0 - 2.0 * label_smoothing) if loss_type == "robust" else sure


def _softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; torch's own drops the tail past 20."""
    return -functional.logsigmoid(-x)


def _sigmoid(x: Tensor) -> Tensor:
    """The logistic function, whose derivative stays exact where it is nearly 1."""
    return functional.logsigmoid(x).exp()


def _sure_cost(
    chosen: Tensor, rejected: Tensor, beta: Tensor, loss_type: str, shift: float
) -> Tensor:
    """``l(a, b)`` of one pair whose label is sure."""
    delta, wanted = chosen - rejected, 1.0 / (2.0 * beta)

    costs = {
        "sigmoid": lambda: _softplus(-beta * delta),
        "robust": lambda: _softplus(-beta * delta),
        "ipo": lambda: (delta - wanted) ** 2,
        "hinge": lambda: torch.relu(1.0 - beta * delta),
        "simpo": lambda: _softplus(-(beta * delta - shift)),
        "bco_pair": lambda: (
            _softplus(-(beta * chosen - shift)) + _softplus(beta * rejected - shift)
        ),
        "kto_pair": lambda: _sigmoid(-(beta * chosen - shift)) + _sigmoid(beta * rejected - shift),
        "apo_zero": lambda: _sigmoid(-beta * chosen) + _sigmoid(beta * rejected),
        "apo_down": lambda: _sigmoid(beta * chosen) + _sigmoid(-beta * delta),
        "sppo_hard": lambda: (chosen - wanted) ** 2 + (rejected + wanted) ** 2,
    }
    if loss_type not in costs:
        names = ", ".join((*PAIR_LOSS_TYPES, *TWO_SIDED_LOSS_TYPES))
        raise ValueError(f"unknown loss_type {loss_type!r}; expected one of {names}")
    return costs[loss_type]()


def _one_pair(
    chosen: Tensor, rejected: Tensor, beta: Tensor, loss_type: str, probability: float, shift: float
) -> Tensor:
    """Loss of one pair from its two log-ratios; ``probability`` is that of the label."""
    if loss_type == "exo_pair":
        x = beta * (chosen - rejected)
        won = _sigmoid(x) * (functional.logsigmoid(x) - math.log(probability))
        lost = _sigmoid(-x) * (functional.logsigmoid(-x) - math.log(1.0 - probability))
        return won + lost
    holds = _sure_cost(chosen, rejected, beta, loss_type, shift)
    fails = _sure_cost(rejected, chosen, beta, loss_type, shift)
    return probability * holds + (1.0 - probability) * fails


def _divisor(given: float | Tensor | None, at_hand: float) -> float:
    """What a mean is divided by: the number that is given, else the one at hand; 1 for 0."""
    total = at_hand if given is None else float(given)
    return total if total > 0 else 1.0


def mm_dpo_loss(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    beta: Tensor,
    *,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
    weight: Tensor | None = None,
    reward_shift: float = 0.0,
    num_pairs: float | Tensor | None = None,
) -> Tensor:
    """Preference part of the MM-DPO objective, ``1/num_pairs sum_j weight_j l_j``, pair by pair.

    ``chosen_ratio`` and ``rejected_ratio`` are S_c - ref_c and S_r - ref_r, [P] like ``beta``,
    ``tie`` (bool) and ``weight``; ``loss_type`` is one of the losses of the module and
    ``reward_shift`` their shift. The loss is a scalar.
    """
    pairs = chosen_ratio.numel()
    divisor = _divisor(num_pairs, pairs)
    total = chosen_ratio[:0].sum() + rejected_ratio[:0].sum()  # 0, with a gradient of zeros
    for j in range(pairs):
        tied = tie is not None and bool(tie[j])
        probability = 0.5 if tied else label_probability(label_smoothing, loss_type)
        cost = _one_pair(
            chosen_ratio[j], rejected_ratio[j], beta[j], loss_type, probability, reward_shift
        )
        total = total + (cost if weight is None else cost * weight[j]) / divisor
    return total


def supervised_loss(
    chosen_logp: Tensor,
    chosen_tokens: Tensor,
    sft: str,
    *,
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
) -> Tensor:
    """The supervised term, a scalar: the mean over tokens or over sequences.

    ``-1/num_tokens sum_j S_c,j`` for ``sft="token"``, and for ``"sequence"``
    ``-1/num_pairs sum_j S_c,j / max(1, n_j)``, of sums S_c [P] and numbers of tokens n_j [P].
    """
    if sft == "token":
        return -chosen_logp.sum() / _divisor(num_tokens, float(chosen_tokens.sum()))
    return -(chosen_logp / chosen_tokens.clamp(min=1)).sum() / _divisor(
        num_pairs, chosen_logp.numel()
    )


def mm_dpo_row_loss(
    logp: Tensor,
    cu_seqlens: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    margin: Tensor,
    beta: float,
    *,
    w: float = 0.5,
    k: float = 0.5,
    pair_index: Tensor | None = None,
    average: bool = False,
    sft_weight: float = 0.0,
    sft: str = "token",
    num_pairs: float | Tensor | None = None,
    num_tokens: float | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The whole objective from log-probabilities of rows: the specification of the kernel.

    Args:
        logp: [N] log-probability of each row's target.
        cu_seqlens: [S + 1] bounds of the answers within the rows.
        ref_chosen_logps: [P] sums under the reference model, or means with ``average``.
        ref_rejected_logps: [P].
        margin: [P], like ``beta``, ``w`` and ``k`` for :func:`dynamic_beta`.
        beta: The paper's beta_ori.
        w: Largest relative increase.
        k: How fast it is reached.
        pair_index: [P, 2] answers of each pair; None: chosen ones first, then rejected ones.
        average: Whether the pair losses see the mean over an answer's rows instead of the sum.
        sft_weight: Factor of :func:`supervised_loss`.
        sft: As there, with ``num_pairs`` and ``num_tokens``.
        num_pairs: As there and for :func:`mm_dpo_loss`.
        num_tokens: As there.
        options: The others of :func:`mm_dpo_loss`.
    """
    lengths = cu_seqlens.diff()
    sums = torch.stack([part.sum() for part in torch.split(logp, lengths.tolist())])
    pairs = ref_chosen_logps.numel()
    index = torch.arange(2 * pairs).view(2, pairs).T if pair_index is None else pair_index.long()
    seen = sums / lengths.clamp(min=1) if average else sums
    preference = mm_dpo_loss(
        seen[index[:, 0]] - ref_chosen_logps,
        seen[index[:, 1]] - ref_rejected_logps,
        dynamic_beta(margin, beta, w, k),
        num_pairs=num_pairs,
        **options,
    )
    supervised = supervised_loss(
        sums[index[:, 0]],
        lengths[index[:, 0]],
        sft,
        num_pairs=num_pairs,
        num_tokens=num_tokens,
    )
    return preference + sft_weight * supervised


def pairwise_reward_loss(
    chosen_reward: Tensor,
    rejected_reward: Tensor,
    *,
    tie: Tensor | None = None,
    tie_weight: float = 1.0,
    margin: Tensor | None = None,
    centring: float = 0.0,
    weight: Tensor | None = None,
    num_ranked: float | None = None,
    num_ties: float | None = None,
) -> Tensor:
    """Loss of a reward model, a scalar: Bradley-Terry for ranked pairs, squares for ties.

    ``mean over ranked of -log sigmoid(r_c - r_r - margin) + tie_weight * mean over ties of
    (r_c - r_r)^2 + centring * mean over all of (r_c + r_r)^2``; an empty mean is 0, and a weight
    multiplies the terms of its pair. Columns are [P], ``tie`` is bool. ``num_ranked`` and
    ``num_ties`` are those of a larger batch; None counts these pairs.
    """
    zero = chosen_reward.new_zeros(())
    ranked, tied, centre = [], [], []
    for j in range(chosen_reward.numel()):
        factor = 1.0 if weight is None else weight[j]
        difference = chosen_reward[j] - rejected_reward[j]
        centre.append(factor * (chosen_reward[j] + rejected_reward[j]) ** 2)
        if tie is not None and bool(tie[j]):
            tied.append(factor * difference**2)
        else:
            lead = difference - (0 if margin is None else margin[j])
            ranked.append(-factor * functional.logsigmoid(lead))
    counts = [
        len(ranked) if num_ranked is None else num_ranked,
        len(tied) if num_ties is None else num_ties,
    ]
    terms = zip((ranked, tied, centre), (*counts, sum(counts)), strict=True)
    means = [sum(parts, zero) / max(1, count) for parts, count in terms]
    return means[0] + tie_weight * means[1] + centring * means[2]
