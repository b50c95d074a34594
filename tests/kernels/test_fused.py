"""Hidden states to the loss in one go: the same numbers as the parts put together."""

import pytest
import torch

from kernels_support import SMALL_VOCAB, VOCAB, Pairs, error, fused_with_masked_rows
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo, mm_dpo_loss, reference
from mmrlhf_kernels.pair import LOSS_TYPES
from mmrlhf_kernels.rows import sequence_of_row, sequence_sums
from triton_worker import interpreted

SCHEDULES = ["recompute", "keep", "two_sums", "frozen", None]


def assert_same(found, wanted, bound=1e-11):
    (out, gradients), (loss, exact) = found, wanted
    assert float(out.loss.detach()) == pytest.approx(float(loss), rel=1e-11)
    assert max(error(a, b) for a, b in zip(gradients, exact, strict=True)) < bound


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_schedule_and_loss_is_the_oracle(schedule, loss_type):
    pairs = Pairs()
    options = {
        "loss_type": loss_type,
        "tie": torch.tensor([False, True, False]),
        "sft_weight": 0.25,
    }
    assert_same(pairs.fused(schedule, **options), pairs.oracle(schedule, **options))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sft", ["token", "sequence"])
def test_ignored_rows_do_not_count(schedule, sft):
    pairs = Pairs()
    pairs.target[[0, 5, 6, 12]] = -100  # row 12 is the single token of its answer
    options = {"sft": sft, "sft_weight": 0.5}
    assert_same(pairs.fused(schedule, **options), pairs.oracle(schedule, **options))


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen", "one_sum"])
def test_rows_that_are_masked_are_as_good_as_removed(schedule):
    lengths = (5, 8) if schedule == "one_sum" else (3, 0, 9, 1, 4, 6)
    options = {} if schedule == "one_sum" else {"sft_weight": 0.25}
    pairs = Pairs(lengths, vocab=SMALL_VOCAB)
    single = Pairs(lengths, dtype=torch.float32, vocab=SMALL_VOCAB)
    for case in (pairs, single):
        case.target[[0, 5, 6, 12]] = -100
    exact = pairs.oracle(schedule, **options)
    assert_same(fused_with_masked_rows(pairs, schedule, **options), exact)
    sequence = sequence_of_row(pairs.cu_seqlens, len(pairs.target))
    turned = {"cu_seqlens": None, "sequence_of_row": sequence.flip(0)}
    for layout in ({}, turned):
        if layout:
            single.target = single.target.flip(0)
            single.hidden = single.hidden.detach().flip(0).requires_grad_()
        out, (of_hidden, *rest) = interpreted(
            fused_with_masked_rows, single, schedule, **options, **layout
        )
        of_hidden = of_hidden.flip(0) if layout else of_hidden
        assert float(out.loss) == pytest.approx(float(exact[0]), rel=1e-5)
        assert max(error(a, b) for a, b in zip([of_hidden, *rest], exact[1], strict=True)) < 1e-5


@pytest.mark.parametrize("workspace", [1, 8 * VOCAB * 13, 1 << 24])
@pytest.mark.parametrize("schedule", ["recompute", "keep", "two_sums", None])
def test_the_workspace_does_not_matter(schedule, workspace):
    pairs = Pairs()
    wanted = pairs.oracle(sft_weight=0.25)
    assert_same(pairs.fused(schedule, workspace_bytes=workspace, sft_weight=0.25), wanted)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "one_sum"])
def test_one_pair(schedule):
    pairs = Pairs(lengths=(5, 8))
    assert_same(pairs.fused(schedule), pairs.oracle(schedule))


@pytest.mark.parametrize("workspace", [1, 8 * VOCAB * 4, 1 << 24])
@pytest.mark.parametrize("loss_type", reference.PAIR_LOSS_TYPES)
def test_one_sum_serves_every_loss_that_sees_the_difference(loss_type, workspace):
    pairs = Pairs(lengths=(5, 8))
    pairs.target[[1, 7]] = -100
    options = {"loss_type": loss_type, "label_smoothing": 0.1}
    wanted = pairs.oracle(**options)
    assert_same(pairs.fused("one_sum", workspace_bytes=workspace, **options), wanted)


def test_one_sum_passes_over_answers_that_belong_to_no_pair():
    pairs = Pairs(lengths=(5, 3, 8))
    index = torch.tensor([[2, 0]])
    assert_same(pairs.fused("one_sum", index=index), pairs.oracle(index=index))


def test_the_planner_takes_one_sum_where_the_logits_do_not_fit():
    pairs = Pairs(lengths=(160, 140))
    workspace = 8 * VOCAB * 150
    assert_same(pairs.fused(workspace_bytes=workspace), pairs.oracle())
    chosen = pairs.fused("one_sum", workspace_bytes=workspace)[1]
    planned = pairs.fused(workspace_bytes=workspace)[1]
    assert all(torch.equal(a, b) for a, b in zip(chosen, planned, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_sum_in_lower_precision_and_two_equal_runs(dtype):
    exact, pairs = Pairs(lengths=(50, 80)), Pairs(lengths=(50, 80), dtype=dtype)
    for name in ("hidden", "weight", "bias"):
        setattr(exact, name, getattr(pairs, name).detach().double().requires_grad_())
    with torch.no_grad():  # a policy near its reference: the pair is not saturated
        logp = reference.linear_logp(exact.hidden, exact.weight, exact.target, bias=exact.bias)
    exact.references = pairs.references = [part.sum().view(1) for part in logp.split((50, 80))]
    _, wanted = exact.oracle()
    (_, found), (_, again) = (pairs.fused("one_sum", workspace_bytes=VOCAB * 200) for _ in range(2))
    bound = 2e-6 if dtype == torch.float32 else 2e-2
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < bound
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_rows_ignored(schedule):
    pairs = Pairs()
    pairs.target.fill_(-100)
    out, gradients = pairs.fused(schedule)
    assert float(out.loss.detach()) == pytest.approx(float(pairs.oracle(schedule)[0]))
    assert all(bool((gradient == 0).all()) for gradient in gradients)


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen", None])
def test_an_answer_may_belong_to_several_pairs(schedule):
    pairs = Pairs()
    index = torch.tensor([[0, 2], [0, 4], [4, 2]])  # all differing ranks of one query
    assert_same(pairs.fused(schedule, index=index), pairs.oracle(schedule, index=index))


def test_pair_index_in_another_order_gives_the_same_loss():
    pairs = Pairs()
    plain, _ = pairs.fused()
    order = torch.tensor([2, 0, 1])
    pairs.references = [t[order] for t in pairs.references]
    pairs.beta = pairs.beta[order]
    turned, _ = pairs.fused(index=torch.stack([order, order + 3], 1))
    assert float(plain.loss.detach()) == pytest.approx(float(turned.loss.detach()), rel=1e-12)


def test_rows_need_not_be_sorted():
    pairs = Pairs()
    wanted = pairs.oracle()
    sequence = sequence_of_row(pairs.cu_seqlens, int(pairs.lengths.sum()))
    order = torch.randperm(sequence.numel(), generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    pairs.hidden = pairs.hidden.detach()[order].requires_grad_()
    pairs.target = pairs.target[order]
    out, (of_hidden, *rest) = pairs.fused(cu_seqlens=None, sequence_of_row=sequence[order])
    assert_same((out, (of_hidden[back], *rest)), wanted)


@pytest.mark.parametrize("beta_rule", ["fixed", "released"])
def test_without_gradients_it_is_the_sum_of_its_parts(beta_rule):
    pairs = Pairs()
    pairs.beta = 0.1
    torch.manual_seed(5)
    with torch.no_grad():
        out = fused_linear_mm_dpo(
            pairs.hidden, pairs.weight, pairs.target, *pairs.references, 0.1,
            cu_seqlens=pairs.cu_seqlens, bias=pairs.bias, beta_rule=beta_rule,
        )  # fmt: skip
        logp = fused_linear_logp(pairs.hidden, pairs.weight, pairs.target, bias=pairs.bias)
        sums = sequence_sums(logp, sequence_of_row(pairs.cu_seqlens, logp.numel()), 6)
        torch.manual_seed(5)
        parts = mm_dpo_loss(sums[:3], sums[3:], *pairs.references, 0.1, beta_rule=beta_rule)
    assert torch.equal(out.loss, parts.loss)
    assert torch.equal(out.margins, parts.margins)


def test_the_released_rule_is_differentiable_too():
    pairs = Pairs()
    pairs.beta = 0.1
    out, gradients = pairs.fused(beta_rule="released")
    assert float(out.beta_min) == float(out.beta_max)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_and_two_equal_runs(schedule, dtype):
    exact = Pairs()
    pairs = Pairs(dtype=dtype)
    for name in ("hidden", "weight", "bias"):
        setattr(exact, name, getattr(pairs, name).detach().double().requires_grad_())
    wanted_loss, wanted = exact.oracle(schedule, sft_weight=0.25)
    out, found = pairs.fused(schedule, sft_weight=0.25)
    again, repeated = pairs.fused(schedule, sft_weight=0.25)
    assert float(out.loss.detach()) == pytest.approx(float(wanted_loss), rel=1e-5)
    bound = 2e-6 if dtype == torch.float32 else 2e-2
    assert max(error(a, b) for a, b in zip(found, wanted, strict=True)) < bound
    assert torch.equal(out.loss, again.loss)
    assert all(torch.equal(a, b) for a, b in zip(found, repeated, strict=True))


def test_a_second_backward_pass_says_what_to_use_instead():
    pairs = Pairs()
    out = fused_linear_mm_dpo(
        pairs.hidden, pairs.weight, pairs.target, *pairs.references, pairs.beta,
        cu_seqlens=pairs.cu_seqlens,
    )  # fmt: skip
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used by an earlier backward pass"):
        out.loss.backward()


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"cu_seqlens": None}, ValueError, "rows belong to which answer is not given"),
        ({"sequence_of_row": torch.zeros(23).long()}, ValueError, "both given; expected one"),
        ({"cu_seqlens": torch.tensor([0, 9, 23])}, ValueError, "2 answers for 3 pairs; expected 6"),
        ({"cu_seqlens": torch.tensor([0, 9, 5, 9, 9, 9, 23])}, ValueError, "must rise from 0"),
        ({"cu_seqlens": torch.tensor([0, 1, 2, 3, 4, 5, 6])}, ValueError, "number of rows 23"),
        ({"schedule": "fast"}, ValueError, "unknown schedule 'fast'"),
        ({"schedule": "frozen"}, ValueError, "needs a gradient"),
        ({"beta": torch.ones(1)}, ValueError, r"beta has shape \(1,\); expected \(3,\)"),
        ({"loss_type": "dpo"}, ValueError, "unknown loss_type"),
        ({"pair_index": torch.zeros(2, 2).long()}, ValueError, "pair_index has shape"),
        (
            {"pair_index": torch.tensor([[0, 1], [2, 3], [4, 6]])},
            IndexError,
            "a pair names sequence 6; expected 0 <= sequence < 6",
        ),
        (
            {"schedule": "two_sums", "pair_index": torch.tensor([[0, 1], [0, 2], [1, 2]])},
            ValueError,
            "each answer to belong to one pair",
        ),
        ({"schedule": "one_sum"}, ValueError, "'one_sum' needs a single pair"),
    ],
)
def test_what_does_not_fit_is_named(change, problem, message):
    pairs = Pairs()
    arguments = {
        "hidden": pairs.hidden,
        "weight": pairs.weight,
        "target": pairs.target,
        "ref_chosen_logps": pairs.references[0],
        "ref_rejected_logps": pairs.references[1],
        "beta": pairs.beta,
        "cu_seqlens": pairs.cu_seqlens,
    }
    with pytest.raises(problem, match=message):
        fused_linear_mm_dpo(**(arguments | change))
