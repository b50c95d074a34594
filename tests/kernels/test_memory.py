"""Peak memory, counted: every storage that is made while a call runs, alive or not."""

import pytest
import torch

from kernels_support import LiveBytes, head_case
from mmrlhf_kernels import fused_linear_logp, fused_linear_mm_dpo, reference

ROWS, HIDDEN, VOCAB = 256, 16, 20_000
LOGITS = 4 * ROWS * VOCAB
WORKSPACE = LOGITS // 40


def peak(call, leaves):
    """Most bytes alive at once beyond the inputs and the leaves' gradients."""
    with LiveBytes() as count:
        gradients = torch.autograd.grad(call(), leaves)
    return count.peak - sum(gradient.nbytes for gradient in gradients)


@pytest.fixture(scope="module")
def case():
    torch.set_num_threads(1)
    return head_case(ROWS, HIDDEN, VOCAB, dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(case):
    return peak(
        lambda: reference.linear_logp(case.hidden, case.weight, case.target).sum(), case.leaves()
    )


def test_the_count_sees_what_plain_pytorch_holds(plain):
    # The logarithmic softmax, its gradient and that of the logits; the head's own is taken off.
    assert 2.5 * LOGITS <= plain <= 5 * LOGITS


@pytest.mark.parametrize("schedule", ["recompute", "frozen"])
def test_a_twentieth_of_plain_pytorch(case, plain, schedule):
    weight = case.weight.detach() if schedule == "frozen" else case.weight
    ours = peak(
        lambda: fused_linear_logp(
            case.hidden, weight, case.target, schedule=schedule, workspace_bytes=WORKSPACE
        ).sum(),
        case.leaves(frozen=schedule == "frozen"),
    )
    assert ours <= plain / 20


@pytest.mark.parametrize("pairs", [1, 16])
def test_the_fused_loss_too_and_without_a_copy_of_the_head_s_gradient(case, plain, pairs):
    bounds = torch.arange(0, ROWS + 1, ROWS // (2 * pairs))
    zero = torch.zeros(pairs)
    ours = peak(
        lambda: fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, 0.1, cu_seqlens=bounds,
            workspace_bytes=2 * WORKSPACE,
        ).loss,
        case.leaves(),
    )  # fmt: skip
    assert ours <= plain / 12
    assert ours <= 2 * WORKSPACE + (1 << 22) + VOCAB * HIDDEN


def test_one_sum_holds_one_block_of_logits_and_no_other_sum_than_the_gradient(case):
    zero = torch.zeros(1)
    ours = peak(
        lambda: fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, 0.1,
            cu_seqlens=torch.tensor([0, ROWS // 2, ROWS]), schedule="one_sum",
            workspace_bytes=WORKSPACE,
        ).loss,
        case.leaves(),
    )  # fmt: skip
    assert ours <= 1.1 * WORKSPACE


def test_two_sums_hold_one_block_of_logits_and_one_sum_beside_the_gradient(case):
    zero, workspace = torch.zeros(1), WORKSPACE + case.weight.nbytes
    ours = peak(
        lambda: fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, 0.1, sft_weight=0.25,
            cu_seqlens=torch.tensor([0, ROWS // 2, ROWS]), schedule="two_sums",
            workspace_bytes=workspace,
        ).loss,
        case.leaves(),
    )  # fmt: skip
    assert ours <= 1.1 * workspace


def test_keep_holds_the_logits_once(case):
    ours = peak(
        lambda: fused_linear_logp(
            case.hidden, case.weight, case.target, schedule="keep", workspace_bytes=WORKSPACE
        ).sum(),
        case.leaves(),
    )
    assert LOGITS <= ours <= 1.1 * LOGITS


def test_without_gradients_a_sweep_holds_one_block(case):
    with torch.no_grad(), LiveBytes() as count:
        fused_linear_logp(case.hidden, case.weight, case.target)
    assert count.peak <= LOGITS / 20
