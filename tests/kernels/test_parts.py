"""Pairs that are a part of a larger batch, and no pairs at all.

With the numbers of the whole batch, losses and gradients of its parts sum up to those of the whole.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_support import SMALL_VOCAB, VOCAB, Pairs, error
from mmrlhf_kernels import fused_linear_mm_dpo, mm_dpo_loss, pair_gradients, reference
from mmrlhf_kernels.pair import LOSS_TYPES
from mmrlhf_kernels.rows import sequence_of_row
from triton_worker import interpreted

SCHEDULES = ["recompute", "keep", "two_sums", "frozen", None]
SFT_WEIGHT = 0.25


@st.composite
def batches(draw, most=6):
    """(P, pairs of each part, options, seed); a part may be empty."""
    seed = draw(st.integers(0, 1000))
    part_of_pair = draw(st.lists(st.integers(0, 2), min_size=1, max_size=most))
    parts = [[j for j, own in enumerate(part_of_pair) if own == part] for part in range(3)]
    source = torch.Generator().manual_seed(seed)
    pairs = len(part_of_pair)
    options = {
        "loss_type": draw(st.sampled_from(LOSS_TYPES)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "sft": draw(st.sampled_from(["token", "sequence"])),
        "tie": torch.rand(pairs, generator=source) < 0.3,
        "weight": torch.rand(pairs, generator=source, dtype=torch.float64),
        "reward_shift": 0.3,
        "sft_weight": SFT_WEIGHT,
    }
    return pairs, parts, options, seed


def options_of(part, options):
    """The options of some pairs."""
    columns = {name: options[name][part] for name in ("tie", "weight")}
    return options | columns


def numbers_of(pairs, tokens, as_tensors):
    """The numbers of the whole batch as a user has them: counted, or summed over ranks."""
    if as_tensors:
        pairs, tokens = torch.tensor(pairs), torch.tensor(tokens)
    return {"num_pairs": pairs, "num_tokens": tokens}


def columns_of(pairs, seed):
    """(S_c, S_r, ref_c, ref_r, beta) and the chosen tokens, some of them none."""
    source = torch.Generator().manual_seed(seed)
    sums = torch.randn(4, pairs, generator=source, dtype=torch.float64) * 5 - 40
    beta = 0.05 + torch.rand(pairs, generator=source, dtype=torch.float64)
    return [*sums, beta], torch.randint(0, 9, (pairs,), generator=source)


def specification(values, tokens, *, sft, sft_weight, num_pairs=None, num_tokens=None, **options):
    """(loss, gradients) by the reference."""
    chosen, rejected = (column.clone().requires_grad_() for column in values[:2])
    preference = reference.mm_dpo_loss(
        chosen - values[2], rejected - values[3], values[4], num_pairs=num_pairs, **options
    )
    supervised = reference.supervised_loss(
        chosen, tokens, sft, num_pairs=num_pairs, num_tokens=num_tokens
    )
    loss = preference + sft_weight * supervised
    return loss.detach(), torch.autograd.grad(loss, [chosen, rejected])


def product(values, tokens, **options):
    """(loss, gradients) by ``mm_dpo_loss``, which are those of ``pair_gradients``."""
    leaves = [column.clone().requires_grad_() for column in values[:2]]
    out = mm_dpo_loss(*leaves, *values[2:], chosen_tokens=tokens, **options)
    assert float(out.loss.detach()) == pytest.approx(
        float(out.preference_loss + SFT_WEIGHT * out.sft_loss), rel=1e-12
    )
    gradients = torch.autograd.grad(out.loss, leaves)
    stated = pair_gradients(*values, chosen_tokens=tokens, **options)
    assert all(torch.equal(a, b) for a, b in zip(gradients, stated, strict=True))
    return out.loss.detach(), gradients


@pytest.mark.parametrize("call", [specification, product])
@settings(max_examples=50)
@given(batch=batches(), as_tensors=st.booleans())
def test_parts_sum_up_to_the_whole(call, batch, as_tensors):
    pairs, parts, options, seed = batch
    values, tokens = columns_of(pairs, seed)
    loss, gradients = specification(values, tokens, **options)
    numbers = numbers_of(pairs, int(tokens.sum()), as_tensors)
    total, found = 0.0, [torch.zeros_like(values[0]) for _ in range(2)]
    for part in parts:
        some = [column[part] for column in values]
        part_loss, own = call(some, tokens[part], **options_of(part, options), **numbers)
        total += float(part_loss)
        for into, gradient in zip(found, own, strict=True):
            into[part] = gradient
    assert total == pytest.approx(float(loss), rel=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, gradients, strict=True))


def split_options(options):
    """The options as the fused function names them, and as ``Pairs.oracle`` does."""
    fused = {name: value for name, value in options.items() if name != "weight"}
    return fused | {"pair_weight": options["weight"]}


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=12)
@given(
    batch=batches(most=4),
    as_tensors=st.booleans(),
    workspace=st.sampled_from([1, 8 * VOCAB * 9, None]),
)
def test_parts_of_the_fused_loss_sum_up_to_the_whole(schedule, batch, as_tensors, workspace):
    pairs, parts, options, seed = batch
    lengths = torch.randint(0, 7, (2 * pairs,), generator=torch.Generator().manual_seed(seed))
    whole = Pairs(lengths=tuple(lengths.tolist()), seed=seed)
    whole.target[::5] = -100
    loss, gradients = whole.oracle(schedule, **options)
    counted = whole.target[: int(whole.cu_seqlens[pairs])] != -100
    numbers = numbers_of(pairs, int(counted.sum()), as_tensors)
    total, found = 0.0, [torch.zeros_like(leaf) for leaf in whole.leaves(schedule)]
    for taken in parts:
        part = whole.part(taken)
        own = split_options(options_of(taken, options))
        out, (of_hidden, *of_head) = part.fused(
            schedule, workspace_bytes=workspace, **own, **numbers
        )
        total += float(out.loss.detach())
        found[0][part.rows] = of_hidden
        for into, gradient in zip(found[1:], of_head, strict=True):
            into += gradient
    assert total == pytest.approx(float(loss), rel=1e-11)
    assert max(error(a, b) for a, b in zip(found, gradients, strict=True)) < 1e-10


@pytest.mark.parametrize("loss_type", reference.PAIR_LOSS_TYPES)
def test_one_sum_takes_a_pair_of_a_larger_batch(loss_type):
    whole = Pairs(lengths=(5, 3, 8, 4))
    _, gradients = whole.oracle(loss_type=loss_type)
    found = [torch.zeros_like(leaf) for leaf in whole.leaves()]
    for pair in range(2):
        part = whole.part([pair])
        _, own = part.fused("one_sum", loss_type=loss_type, num_pairs=torch.tensor(2))
        found[0][part.rows] = own[0]
        for into, gradient in zip(found[1:], own[1:], strict=True):
            into += gradient
    assert max(error(a, b) for a, b in zip(found, gradients, strict=True)) < 1e-11


@pytest.mark.parametrize("sft", ["token", "sequence"])
def test_the_loss_from_its_parts_takes_the_numbers_too(monkeypatch, sft):
    part = Pairs().part([0, 2])
    options = {"sft": sft, "sft_weight": SFT_WEIGHT}
    numbers = numbers_of(7, 31, as_tensors=True)
    wanted_loss, wanted = part.oracle(**options, **numbers)
    with torch.no_grad():
        out = fused_linear_mm_dpo(
            part.hidden, part.weight, part.target, *part.references, part.beta, bias=part.bias,
            cu_seqlens=part.cu_seqlens, **options, **numbers,
        )  # fmt: skip
    assert float(out.loss) == pytest.approx(float(wanted_loss), rel=1e-11)
    monkeypatch.setenv("MMRLHF_KERNELS", "reference")
    out, found = part.fused(**options, **numbers)
    assert float(out.loss.detach()) == pytest.approx(float(wanted_loss), rel=1e-11)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-11


@pytest.mark.parametrize(("sft", "as_tensors"), [("token", True), ("sequence", False)])
def test_interpreted_triton_takes_the_numbers_of_the_whole(sft, as_tensors):
    whole = Pairs(dtype=torch.float32, vocab=SMALL_VOCAB)
    options = {"sft": sft, "sft_weight": SFT_WEIGHT}
    part = whole.part([0, 2])
    wanted_loss, wanted = part.oracle(**options, num_pairs=3, num_tokens=12)
    out, found = interpreted(part.fused, **options, **numbers_of(3, 12, as_tensors))
    assert float(out.loss.detach()) == pytest.approx(float(wanted_loss), rel=1e-5)
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-5


def test_the_sum_of_weights_gives_a_weighted_mean():
    values, _ = columns_of(3, seed=1)
    weight = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    alone = [mm_dpo_loss(*(column[[j]] for column in values)).loss for j in range(3)]
    out = mm_dpo_loss(*values, weight=weight, num_pairs=weight.sum())
    wanted = sum(float(w * loss) for w, loss in zip(weight, alone, strict=True)) / 1.5
    assert float(out.loss) == pytest.approx(wanted, rel=1e-12)


def test_what_is_no_number_of_pairs_or_tokens_is_named():
    values, tokens = columns_of(2, seed=0)
    pairs = Pairs()
    for name in ("num_pairs", "num_tokens"):
        for value, message in (
            (-1, f"{name} is -1; expected a finite number, at least 0"),
            (float("nan"), f"{name} is nan; expected a finite number"),
            (float("inf"), f"{name} is inf; expected a finite number"),
            (torch.ones(1), rf"{name} has shape \(1,\); expected \(\)"),
            (torch.ones((), device="meta"), f"{name} is on meta; expected cpu"),
        ):
            with pytest.raises(ValueError, match=message):
                mm_dpo_loss(*values, chosen_tokens=tokens, **{name: value})
            with pytest.raises(ValueError, match=message):
                pair_gradients(*values, chosen_tokens=tokens, **{name: value})
            with pytest.raises(ValueError, match=message):
                pairs.fused(**{name: value})


NUMBERS = [{}, {"num_pairs": 4, "num_tokens": 9}, {"num_pairs": torch.tensor(0.0), "num_tokens": 0}]


@pytest.mark.parametrize("numbers", NUMBERS, ids=["at hand", "of a batch", "of an empty batch"])
@pytest.mark.parametrize("sft", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_no_pairs_cost_nothing(loss_type, sft, numbers):
    values, tokens = columns_of(0, seed=0)
    options = {"loss_type": loss_type, "sft": sft, "sft_weight": SFT_WEIGHT, **numbers}
    for call in (specification, product):
        loss, gradients = call(values, tokens, **options)
        assert float(loss) == 0.0
        assert all(gradient.shape == (0,) for gradient in gradients)
    out = mm_dpo_loss(*values, chosen_tokens=tokens, **options)
    assert all(bool(part.isfinite().all()) for part in out)


def none_of(pairs, rows):
    """A call without pairs: no rows, or rows of answers that belong to none."""
    index = torch.zeros(0, 2, dtype=torch.int64)
    part = pairs.part([])
    if rows == "no rows":
        return part, {}
    part.hidden, part.target = pairs.hidden, pairs.target
    if rows == "cu_seqlens":
        return part, {"index": index, "cu_seqlens": pairs.cu_seqlens}
    sequence = sequence_of_row(pairs.cu_seqlens, len(pairs.target))
    return part, {"index": index, "cu_seqlens": None, "sequence_of_row": sequence}


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("rows", ["no rows", "cu_seqlens", "sequence_of_row"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_pairs_cost_nothing_under_any_schedule(monkeypatch, schedule, rows, implementation):
    monkeypatch.setenv("MMRLHF_KERNELS", implementation)
    for numbers in NUMBERS:
        part, layout = none_of(Pairs(), rows)
        out, gradients = part.fused(schedule, sft_weight=SFT_WEIGHT, **layout, **numbers)
        assert float(out.loss.detach()) == 0.0
        assert all(bool(found.isfinite().all()) for found in out)
        for gradient, leaf in zip(gradients, part.leaves(schedule), strict=True):
            assert gradient.shape == leaf.shape
            assert bool((gradient == 0).all())


def test_no_pairs_without_a_gradient_and_in_interpreted_triton():
    for rows in ("no rows", "cu_seqlens", "sequence_of_row"):
        part, layout = none_of(Pairs(dtype=torch.float32, vocab=SMALL_VOCAB), rows)
        out, gradients = interpreted(part.fused, **layout, num_pairs=torch.tensor(4))
        assert float(out.loss.detach()) == 0.0
        assert all(bool((gradient == 0).all()) for gradient in gradients)
        index = layout.pop("index", None)
        layout.setdefault("cu_seqlens", part.cu_seqlens)
        with torch.no_grad():
            out = fused_linear_mm_dpo(
                part.hidden, part.weight, part.target, *part.references, part.beta,
                pair_index=index, num_pairs=4, **layout,
            )  # fmt: skip
        assert float(out.loss) == 0.0
