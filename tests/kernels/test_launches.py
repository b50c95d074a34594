"""What a call launches on a GPU, and that the host never waits for it.

No GPU is needed: operators run on fake CUDA tensors, which have no values, so that reading one
raises, and Triton's launches are counted instead of made. Views and allocations launch nothing. The
objective over pairs is an operator, and one launch: ``test_mm_dpo_kernel`` counts that one.
"""

import collections
import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmrlhf_kernels import (
    dynamic_beta,
    fused,
    fused_linear_mm_dpo,
    linear_logp,
    mm_dpo_loss,
    mm_dpo_loss_from_rows,
    operators,
    pair_operator,
    pairwise_reward_loss,
    sequence_of_row,
    sequence_sums,
    triton_settings,
)
from mmrlhf_kernels.triton_tile import Launch

ROWS, HIDDEN, VOCAB, PAIRS = 64, 16, 512, 4
FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh",
    "new_empty", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "empty_strided",
    "device", "promote_types", "scalar_tensor",  # these stay on the host
}  # fmt: skip
PRODUCTS = {"mm", "addmm", "addmm_"}


class Counter(TorchDispatchMode):
    """Counts operators by name, products apart."""

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    """``counted(call)`` -> (launches beyond products, products) of a call on fake CUDA tensors."""
    launches = collections.Counter()
    monkeypatch.delenv("MMRLHF_KERNELS", raising=False)
    card = triton_settings.Device("sm_90", 132, 50 << 20)
    monkeypatch.setattr(triton_settings, "_device", lambda _: card)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(Launch, "run", lambda launch: launches.update([launch.kernel.__name__]))
    # Bodies in place of the operators, of which fake tensors would see the shapes alone.
    monkeypatch.setattr(fused, "linear_mm_dpo", pair_operator._linear_mm_dpo)
    monkeypatch.setattr(linear_logp, "linear_logp_forward", operators._forward)

    def count(call):
        launches.clear()
        with FakeTensorMode(), Counter() as counter:
            call()
        products = sum(counter.seen[name] for name in PRODUCTS)
        return launches.total() + counter.seen.total() - products, products

    return count


def inputs(*, frozen=False):
    """hidden, weight and target on a GPU that is not there."""
    hidden = torch.empty(ROWS, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(VOCAB, HIDDEN, device="cuda", dtype=torch.bfloat16)
    target = torch.empty(ROWS, device="cuda", dtype=torch.int64)
    return hidden, weight.requires_grad_(not frozen), target


# Launches beyond products where ignored rows are masked, the same where the caller says how many
# rows count, and products; the vocabulary is one chunk.
LOGP = {"recompute": (10, 8, 2), "keep": (12, 10, 2), "frozen": (10, 8, 1)}
FUSED = {"recompute": (8, 8, 2), "keep": (9, 9, 2), "frozen": (9, 9, 1), "one_sum": (12, 12, 2)}


@pytest.mark.parametrize("schedule", LOGP)
def test_the_primitive_forward_and_backward(counted, schedule):
    def call(counted_rows):
        hidden, weight, target = inputs(frozen=schedule == "frozen")
        request = operators.Request(
            hidden.detach(), weight.detach(), target, None, None, None, None, 1.0, -100,
            counted_rows, False, False, schedule, VOCAB,
        )  # fmt: skip
        logp, entropy, _, lse, kept, shifts = operators._forward(*request)
        if schedule != "frozen":
            needs = [True, True, False, False, False]
            operators._backward(logp, None, logp, lse, entropy, kept, shifts, needs, *request)

    masked, products = counted(lambda: call(None))
    known, _ = counted(lambda: call(ROWS))
    assert (masked, known, products) == LOGP[schedule]


@pytest.mark.parametrize("schedule", FUSED)
def test_the_fused_loss_with_its_gradients(counted, schedule):
    pairs = 1 if schedule == "one_sum" else PAIRS

    def call(counted_rows):
        hidden, weight, target = inputs(frozen=schedule == "frozen")
        bounds = torch.empty(2 * pairs + 1, device="cuda", dtype=torch.int32)
        logps = torch.empty(pairs, device="cuda")
        fused_linear_mm_dpo(
            hidden, weight, target, logps, logps, logps, cu_seqlens=bounds, schedule=schedule,
            counted_rows=counted_rows,
        )  # fmt: skip

    masked, products = counted(lambda: call(None))
    known, _ = counted(lambda: call(ROWS))
    assert (masked, known, products) == FUSED[schedule]


def test_losses_and_sums(counted):
    def loss():
        logps = torch.empty(PAIRS, device="cuda", requires_grad=True)
        beta = dynamic_beta(logps.detach(), 0.1)
        mm_dpo_loss(logps, logps, logps.detach(), logps.detach(), beta)

    def reward():
        scores = torch.empty(PAIRS, device="cuda", requires_grad=True)
        pairwise_reward_loss(scores, scores)

    def sums():
        bounds = torch.empty(2 * PAIRS + 1, device="cuda", dtype=torch.int32)
        logp = torch.empty(ROWS, device="cuda", requires_grad=True)
        sequence_sums(logp, sequence_of_row(bounds, ROWS), 2 * PAIRS)

    assert [counted(call) for call in (loss, reward, sums)] == [(9, 0), (37, 0), (18, 0)]


def test_no_column_is_read(counted):
    """Entries are checked on the CPU alone; a read would raise."""

    def call():
        hidden, weight, target = inputs()
        column = torch.empty(PAIRS, device="cuda")
        tie = torch.empty(PAIRS, device="cuda", dtype=torch.bool)
        index = torch.empty(PAIRS, 2, device="cuda", dtype=torch.int64)
        bounds = torch.empty(2 * PAIRS + 1, device="cuda", dtype=torch.int32)
        step = {"num_pairs": column.sum(), "num_tokens": column.sum(), "sft_weight": 0.1}
        module = fused.FusedLinearMMDPOLoss(sft_weight=step.pop("sft_weight"))
        module(
            hidden, weight, target, column, column, column, cu_seqlens=bounds, pair_index=index,
            tie=tie, pair_weight=column, **step,
        )  # fmt: skip
        mm_dpo_loss_from_rows(
            column.new_empty(ROWS), bounds, column, column, 0.1, margin=column, pair_index=index,
            weight=column, tie=tie, chosen_tokens=column, sft_weight=0.1, **step,
        )  # fmt: skip
        pairwise_reward_loss(column, column, tie=tie, margin=column, weight=column)

    counted(call)


def test_reading_a_number_of_the_device_would_be_seen(counted):
    with pytest.raises(DataDependentOutputException):
        counted(lambda: bool(inputs()[2].max()))
