"""The MM-DPO kernel against float64 autograd of the formulas, and what it promises besides."""

import pytest
import torch

from launch_count import counted
from mm_dpo_problem import PAIRS, Problem, call_of, launches_of
from mmrlhf_kernels import mm_dpo_loss, reference
from mmrlhf_kernels.mm_dpo_plain import evaluate_plain
from mmrlhf_kernels.pair import LOSS_TYPES
from triton_problem import error
from triton_worker import InterpretedError, interpreted


def close(found, truth, bound=3e-6):
    """Within float32 of a float64 truth, relative to its largest entry."""
    assert found.isfinite().all()
    assert error(found, truth) <= bound * max(1e-30, truth.abs().max().item())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_rows_to_loss_and_gradient_are_those_of_the_specification(loss_type):
    # Blocks of pairs and answers are the same for all losses: one of them takes several.
    pairs = PAIRS if loss_type == "sigmoid" else 5
    for shared, options in (
        (False, {"label_smoothing": 0.1, "sft_weight": 0.25}),
        (True, {"sft_weight": 0.5, "sft": "sequence", "num_pairs": 200}),
    ):
        problem = Problem(5 if shared else pairs, shared=shared)
        loss, gradient = problem.truth(loss_type=loss_type, **options)
        out, found = interpreted(problem.found, loss_type=loss_type, **options)
        close(out.loss, loss)
        close(found, gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_sums_to_loss_and_gradients_are_those_of_the_specification(loss_type):
    problem = Problem(PAIRS if loss_type == "sigmoid" else 5)
    options = {"loss_type": loss_type, "label_smoothing": 0.05, "sft_weight": 0.25}
    chosen, rejected = (problem.sums[side].float().double() for side in problem.sides)
    chosen.requires_grad_()
    rejected.requires_grad_()
    left, right = problem.references().double()
    wide = problem.options | {"weight": problem.options["weight"].double()}
    preference = reference.mm_dpo_loss(
        chosen - left, rejected - right, reference.dynamic_beta(problem.margin.double(), 0.1),
        loss_type=loss_type, label_smoothing=0.05, **wide,
    )  # fmt: skip
    tokens = problem.lengths[problem.chosen]
    loss = preference + 0.25 * reference.supervised_loss(chosen, tokens, "token")
    out, found = interpreted(problem.found_from_sums, **options)
    close(out.loss, loss.detach())
    for ours, exact in zip(found, torch.autograd.grad(2 * loss, [chosen, rejected]), strict=True):
        close(ours, exact)


@pytest.mark.parametrize("loss_type", ["ipo", "simpo"])
def test_means_over_rows_are_those_of_the_specification(loss_type):
    for shared in (False, True):
        problem = Problem(pairs=21, shared=shared)
        options = {"loss_type": loss_type, "average": True, "sft_weight": 0.25}
        loss, gradient = problem.truth(**options)
        out, found = interpreted(problem.found, **options)
        close(out.loss, loss)
        close(found, gradient)


@pytest.mark.parametrize("pairs", [1, 129])
def test_any_number_of_pairs_gives_every_metric_of_plain_pytorch(pairs):
    problem = Problem(pairs)
    number = torch.tensor(7)
    options = {"sft_weight": 0.25, "num_pairs": number, "num_tokens": torch.tensor(91.0)}
    plain, of_plain = problem.found(**options)
    out, found = interpreted(problem.found, **options)
    for name, ours, other in zip(out._fields, out, plain, strict=True):
        assert torch.allclose(ours, other, rtol=2e-5, atol=2e-6), name
    assert torch.allclose(found, of_plain, rtol=2e-5, atol=1e-7)
    assert float(out.tie_count) == int(problem.options["tie"].sum())
    assert (out.accuracies[problem.options["tie"]] == 0.5).all()


def test_two_runs_are_equal_bit_by_bit_and_a_sum_does_not_know_its_neighbours():
    problem = Problem(pairs=3)
    first, second = interpreted(problem.found), interpreted(problem.found)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert torch.equal(first[1], second[1])
    alone = Problem(pairs=1)
    bounds = problem.cu_seqlens
    for pair in range(3):
        sides = [problem.logp[slice(*bounds[a : a + 2])] for a in (pair, pair + 3)]
        alone.logp = torch.cat(sides)
        alone.cu_seqlens = torch.tensor([0, len(sides[0]), len(alone.logp)], dtype=torch.int32)
        out, _ = interpreted(alone.found)
        assert torch.equal(out.chosen_logp[0], first[0].chosen_logp[pair])
        assert torch.equal(out.rejected_logp[0], first[0].rejected_logp[pair])


def test_a_pair_far_ahead_keeps_its_small_loss():
    for delta in (20.0, 50.0, 80.0):
        loss, _, _, gradient = interpreted("mm_dpo_kernel.evaluate", call_of(torch.tensor([delta])))
        truth = torch.log1p(torch.exp(-torch.tensor(delta, dtype=torch.float64)))
        assert abs(loss - truth) <= 1e-6 * truth
        assert abs(gradient[0] + truth) <= 1e-6 * truth + truth**2


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_everything_is_finite_far_out(loss_type):
    far = torch.tensor([0.0, 4000.0, -4000.0, 1e-6, 2e4])
    for chosen, rejected in ((far, -far), (far, far.flip(0)), (-far, far * 0)):
        call = call_of(chosen, rejected, loss_type=loss_type)
        for found, plain in zip(
            interpreted("mm_dpo_kernel.evaluate", call), evaluate_plain(call), strict=True
        ):
            assert found.isfinite().all()
            assert torch.allclose(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("w", "k", "dtype"),
    [
        (0.0, 0.5, torch.float32),
        (0.5, 0.0, torch.bfloat16),
        (0.5, 0.5, torch.float16),
        (0.5, 0.5, torch.float64),
    ],
)
def test_every_margin_has_a_float32_beta(w, k, dtype):
    margin = torch.tensor([-torch.inf, -178.0, -25.0, 0.0, 0.3, 25.0, 178.0, torch.inf]).to(dtype)
    call = call_of(torch.zeros(8), margin=margin, beta_ori=0.1, w=w, k=k)
    _, figures, columns, _ = interpreted("mm_dpo_kernel.evaluate", call)
    close(columns[6], reference.dynamic_beta(margin.double(), 0.1, w, k), 1e-6)
    assert float(figures[3]) == float(columns[6].min())
    assert float(figures[4]) == float(columns[6].max())


def test_a_margin_that_is_no_number_is_not_hidden():
    margin = torch.tensor([1.0, torch.nan])
    loss, _, columns, _ = interpreted(
        "mm_dpo_kernel.evaluate", call_of(margin * 0 + 1, margin=margin)
    )
    assert loss.isnan()
    assert columns[6].isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_log_probabilities_are_widened_and_get_gradients_of_their_own(dtype):
    problem = Problem(pairs=5)
    problem.logp = problem.logp.to(dtype)
    out, gradient = interpreted(problem.found)
    problem.logp = problem.logp.float()
    wide, of_wide = interpreted(problem.found)
    assert all(torch.equal(a, b) for a, b in zip(out, wide, strict=True))
    assert torch.equal(gradient, of_wide.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bounds_and_answers_may_have_either_width(dtype):
    problem = Problem(pairs=5, shared=True)
    wanted = interpreted(problem.found)
    problem.cu_seqlens, problem.index = problem.cu_seqlens.to(dtype), problem.index.to(dtype)
    found = interpreted(problem.found)
    assert torch.equal(found[0].loss, wanted[0].loss)
    assert torch.equal(found[1], wanted[1])


def test_what_the_host_does_not_read_turns_the_loss_into_nan():
    """And nothing outside of the rows is touched: bounds are brought into range first."""
    for place, bound in ((0, 1), (4, 0), (4, 9999), (10, 3), (10, 9999)):
        problem = Problem(pairs=5, longest=3)
        problem.cu_seqlens[place] = bound
        out, _ = interpreted(problem.found)
        assert out.loss.isnan()
    for answer in (-1, 10):
        problem = Problem(pairs=5, shared=True)
        problem.index[3, 1] = answer
        out, gradient = interpreted(problem.found)
        assert out.loss.isnan()
        assert gradient.isnan().any()


@pytest.mark.parametrize("function", ["mm_dpo_loss", "mm_dpo_loss_from_rows"])
def test_forward_is_one_launch_backward_one_product_and_the_host_reads_nothing(function):
    kernel = {"_mm_dpo_kernel": 1}
    assert interpreted(launches_of, function, backward=False) == (1, 0, kernel)
    # torch makes the 1 that the loss is multiplied by; the product is ours.
    assert interpreted(launches_of, function, backward=True) == (3, 0, kernel)


def test_the_count_sees_operators_inside_the_packages_own_and_what_the_host_reads():
    one, two = torch.ones(2), torch.ones(2, requires_grad=True)
    launches, reads, kernels = counted(lambda: mm_dpo_loss(one, two, one, one, 0.1))
    assert launches > 10
    assert (reads, kernels) == (2, {})  # of both references, whose entries the CPU checks
    assert counted(lambda: (one + 1).sum().item()) == (2, 1, {})
    assert counted(lambda: one.view(2, 1).detach()[0]) == (0, 0, {})


def test_no_pairs_are_no_launch():
    none = torch.empty(0)
    loss, figures, columns, gradient = interpreted("pair.pair_objective", *call_of(none, none))
    assert (float(loss), columns.shape, gradient.shape) == (0.0, (9, 0), (2, 0))
    assert not figures.any()


def test_float64_is_refused_by_name():
    with pytest.raises(InterpretedError, match=r"not torch\.float64"):
        interpreted("mm_dpo_kernel.evaluate", call_of(torch.zeros(3, dtype=torch.float64)))
