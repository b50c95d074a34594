"""Floating point operations of an epoch, by part of the model; a product and a sum are two.

With W the weights of linear layers that each token is multiplied with, n the tokens, and r = 1 if
the gradient goes through a part to parameters before it or in it, t = 1 if the part's own weights
train, c = 1 if its activations are computed again in the backward pass:

=============  =============================  ======================================================
part           forward                        backward, and computed again
=============  =============================  ======================================================
linear layers  2 W n                          2 W n (r + t), and c 2 W n
attention      4 L A s                        10 L A s r, and c 4 L A s
head           2 N H V, 4 N H V if frozen     the rest of the schedule's products
=============  =============================  ======================================================

L is the number of layers, A the width of all heads together, s the number of pairs of tokens of
which one sees the other. Attention is two products forward, and five backward, as kernels do not
keep the scores and compute them again. Norms, activation functions and the optimizer are left out.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from mmrlhf_engine.train.dry_run.epoch_counts import EpochCounts
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes, TowerShape
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["HeadPlan", "Seeing", "Work", "head_plans", "seen_by_tower", "work_of_epoch"]

_PRODUCTS = {"keep": 6, "recompute": 8, "frozen": 4, "one_sum": 6, "two_sums": 6}
"""Of N H V each; as in ``mmrlhf_kernels.plan``."""


@dataclass(frozen=True)
class Work:
    """Floating point operations."""

    forward: int = 0
    backward: int = 0
    again: int = 0
    """Of the forward pass, in the backward pass."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.again

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.forward + other.forward, self.backward + other.backward, self.again + other.again
        )


class Seeing(NamedTuple):
    """What tower and projector compute."""

    patches: int
    tokens: int
    """Patches, and the class tokens of views."""
    projected: int
    """Tokens that the projector is given."""
    seen: int
    """Pairs of tokens of which one sees the other, over all layers."""


class HeadPlan(NamedTuple):
    """How the log-probabilities of one pack are computed."""

    schedule: str
    rows: int
    workspace: int
    """Bytes beyond inputs and gradients."""


def work_of_epoch(
    sizes: ModelSizes, counts: EpochCounts, settings: TrainSettings, element: int
) -> dict[str, Work]:
    """Operations of the first epoch by part: text, attention, adapters, tower, projector, head.

    Args:
        sizes: Of the model.
        counts: Of the epoch.
        settings: ``gradient_checkpointing`` and ``cache_features`` are read, and of ``mm-dpo`` the
            loss and the rule of beta.
        element: Bytes of a number in products, 2 or 4.
    """
    trained = sizes.trained
    again = settings.gradient_checkpointing
    tokens, seen = counts.total("tokens"), counts.total("seen")
    below = bool(trained & {"tower", "projector", "embeddings"})
    reached = below or bool(trained & {"text", "adapters"})
    attention = sizes.text.layers * sizes.text.attention_width * seen
    own = (2 * sizes.products["text"] * tokens, reached, "text" in trained)
    adapters = (2 * sizes.products["adapters"] * tokens, reached, "adapters" in trained)
    found = {
        "text": _linear(*own, again=again),
        "attention": _attention(attention, reached=reached, again=again),
        "adapters": _linear(*adapters, again=again),
    }
    if sizes.tower is not None:
        first = "first_" if settings.cache_features else ""
        seeing = seen_by_tower(sizes.tower, counts, first)
        found["tower"] = _tower(sizes, seeing, again=again)
        projected = 2 * sizes.products["projector"] * seen_by_tower(sizes.tower, counts).projected
        found["projector"] = _linear(
            projected, "tower" in trained, "projector" in trained, again=False
        )
    product = sizes.text.hidden * sizes.text.vocabulary
    found["head"] = sum(
        (_head(plan, product) for plan in head_plans(sizes, counts, settings, element)), Work()
    )
    return {part: work for part, work in found.items() if work.total}


def seen_by_tower(tower: TowerShape, counts: EpochCounts, first: str = "") -> Seeing:
    """What the tower computes in the epoch; with ``first_`` every picture once."""
    blocks = counts.total(f"{first}blocks")
    if len(counts.block_shape) == 1:
        grid, windows = (counts.total(f"{first}{name}") for name in ("grid", "window_grid"))
        seen = tower.full_layers * grid + (tower.layers - tower.full_layers) * windows
        return Seeing(blocks, blocks, blocks // tower.merge**2, seen)
    sides = [side // tower.patch for side in counts.block_shape[1:]]
    patches = sides[0] * sides[1] if sides else 0
    tokens = patches + tower.class_tokens
    projected = blocks * patches // tower.merge**2
    return Seeing(blocks * patches, blocks * tokens, projected, tower.layers * blocks * tokens**2)


def head_plans(
    sizes: ModelSizes, counts: EpochCounts, settings: TrainSettings, element: int
) -> list[HeadPlan]:
    """The schedule of each pack that trains on anything, as the kernels choose it on a GPU."""
    import torch

    dtype = torch.float32 if element == 4 else torch.bfloat16
    columns = counts.packs.select("rows", "pair_rows", "shares_answers")
    packs = [(rows, pairs, shared) for rows, pairs, shared in columns.iter_rows() if rows and pairs]
    if isinstance(settings, MMDPOConfig) and settings.beta_rule != "released":
        return [_pair_plan(*pack, sizes, settings, dtype) for pack in packs]
    return [_plain_plan(rows, sizes, dtype) for rows, *_ in packs]


def _pair_plan(
    rows: int,
    pair_rows: list[int],
    shares_answers: bool,
    sizes: ModelSizes,
    settings: MMDPOConfig,
    dtype: Any,
) -> HeadPlan:
    import torch

    from mmrlhf_kernels import plan_pair_schedule
    from mmrlhf_kernels.plan import default_pair_workspace, sums_held

    hidden, vocabulary = sizes.text.hidden, sizes.text.vocabulary
    plan = plan_pair_schedule(
        pair_rows,
        hidden,
        vocabulary,
        dtype,
        sizes.head_trains,
        default_pair_workspace(rows, vocabulary, dtype, torch.device("cuda")),
        shared=shares_answers,
        opposite=settings.loss_type != "bco_pair" and not settings.sft_weight,
    )
    size = dtype.itemsize
    sums = {name: count * vocabulary * hidden * 4 for name, count in sums_held(dtype).items()}
    kept = max((sum(pair_rows[begin:end]) for begin, end in plan.groups), default=0)
    workspace = {
        "keep": min(rows, kept) * vocabulary * size,
        "frozen": rows * (plan.chunk + hidden) * size,
        "recompute": rows * (plan.chunk * size + hidden * max(4, size)),
        "one_sum": min(rows, plan.rows) * vocabulary * size + sums["one_sum"],
        "two_sums": min(rows, plan.rows) * vocabulary * size + sums["two_sums"],
    }[plan.schedule]
    return HeadPlan(plan.schedule, rows, workspace)


def _plain_plan(rows: int, sizes: ModelSizes, dtype: Any) -> HeadPlan:
    import torch

    from mmrlhf_kernels import plan_schedule
    from mmrlhf_kernels.plan import default_workspace

    bound = default_workspace(torch.device("cuda"))
    text = sizes.text
    plan = plan_schedule(rows, text.hidden, text.vocabulary, dtype, sizes.head_trains, bound)
    return HeadPlan(plan.schedule, rows, plan.workspace_bytes)


def _head(plan: HeadPlan, product: int) -> Work:
    products = _PRODUCTS[plan.schedule] * plan.rows * product
    forward = products if plan.schedule == "frozen" else 2 * plan.rows * product
    return Work(forward, products - forward)


def _linear(forward: int, reached: bool, trained: bool, *, again: bool) -> Work:
    passed = reached or trained
    return Work(forward, forward * (reached + trained), forward if again and passed else 0)


def _attention(pairs: int, *, reached: bool, again: bool) -> Work:
    """``pairs`` over all layers, times the width of the heads."""
    return Work(4 * pairs, 10 * pairs * reached, 4 * pairs * (again and reached))


def _tower(sizes: ModelSizes, seeing: Seeing, *, again: bool) -> Work:
    assert sizes.tower is not None
    trains = "tower" in sizes.trained
    layers = 2 * sizes.products["tower"] * seeing.tokens
    patches = 2 * sizes.patch_products * seeing.patches
    return (
        _linear(layers, trains, trains, again=again)
        + _linear(patches, reached=False, trained=trains, again=False)
        + _attention(sizes.tower.width * seeing.seen, reached=trains, again=again)
    )
