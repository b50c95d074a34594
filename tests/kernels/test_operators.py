"""The operators as torch sees them: schemas, shapes for tracing, graphs without a break."""

import pytest
import torch

from kernels_support import head_case
from mmrlhf_kernels import (
    FusedLinearMMDPOLoss,
    fused_linear_logp,
    fused_linear_mm_dpo,
    mm_dpo_loss,
    mm_dpo_loss_from_rows,
    pairwise_reward_loss,
)
from mmrlhf_kernels.mm_dpo_plain import Numbers, PairCall
from mmrlhf_kernels.operators import linear_logp_forward
from mmrlhf_kernels.pair import pair_objective
from mmrlhf_kernels.pair_operator import FusedRows, linear_mm_dpo
from mmrlhf_kernels.rows import sequence_of_row, sequence_sums

# opcheck looks at .grad of its own copies, which are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

CU_SEQLENS = torch.tensor([0, 2, 5, 9, 9])


@pytest.mark.parametrize("schedule", ["recompute", "keep", "frozen"])
def test_opcheck_of_the_primitive(schedule):
    case = head_case(9, 4, 300, dtype=torch.float32, bias=True)
    if schedule != "keep":  # whose entries for ignored rows are uninitialised
        case.target[3] = -100
    if schedule == "frozen":
        case.weight.requires_grad_(False)
        case.bias.requires_grad_(False)
    arguments = (
        case.hidden, case.weight, case.target, case.bias, None, None, 2.0, 0.5, -100,
        None, True, True, schedule, 256,
    )  # fmt: skip
    torch.library.opcheck(linear_logp_forward, arguments)


def test_opcheck_with_lora():
    case = head_case(9, 4, 300, dtype=torch.float32)
    side_hidden, side = (torch.randn(n, 2, requires_grad=True) for n in (9, 300))
    arguments = (
        case.hidden, case.weight, case.target, None, side_hidden, side, None, 1.0, -100,
        None, False, False, "recompute", 256,
    )  # fmt: skip
    torch.library.opcheck(linear_logp_forward, arguments)


@pytest.mark.parametrize("form", ["sides", "answers", "rows"])
def test_opcheck_of_the_objective(form):
    side, beta = torch.randn(2), torch.rand(2)
    logp = {
        "sides": (side, side + 1, None, None, None, None),
        "answers": (torch.randn(4), None, None, None, torch.tensor([0, 3]), torch.tensor([3, 1])),
        "rows": (torch.randn(9), None, CU_SEQLENS, torch.arange(9) != 3, None, None),
    }[form]
    numbers = list(Numbers(0.1, 0.25, 0.0, 1.0, 0.0, 0.0, -1.0, 20.0))
    columns = (side, side, beta, None, side > 0, beta, side.abs(), torch.tensor(3.0), None)
    arguments = (*logp, *columns, "sigmoid", "token", False, numbers)
    torch.library.opcheck(pair_objective, arguments)


def test_opcheck_of_the_fused_loss():
    case = head_case(9, 4, 300, dtype=torch.float32)
    rows = FusedRows(
        case.hidden.detach(), case.weight.detach(), None, case.target, CU_SEQLENS, None, None,
        None, 1.0, -100, None, None, 1 << 20, None, [True, True, False],
    )  # fmt: skip
    column, empty = torch.zeros(2), [None] * 5
    call = PairCall(
        column, *empty, column, column, column + 1, None, None, None, None, torch.tensor(3.0),
        torch.tensor(20.0), "sigmoid", "token", False,
        list(Numbers(0.0, 0.5, 0.0, 1.0, 0, 0, -1, -1)),
    )  # fmt: skip
    arguments = (*rows, *call)
    torch.library.opcheck(linear_mm_dpo, arguments)


def compiled_equals_eager(function, leaves):
    """Compile without graph breaks (tracing and autograd, no code generation) and compare."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    ours, wanted = compiled(), function()
    assert torch.equal(ours, wanted)
    found = torch.autograd.grad(ours.sum(), leaves)
    exact = torch.autograd.grad(wanted.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("schedule", ["recompute", "keep"])
def test_the_primitive_compiles_into_one_graph(schedule):
    case = head_case(9, 4, 300, dtype=torch.float32, bias=True)
    case.target[3] = -100
    low, high = torch.randn(2, 4, requires_grad=True), torch.randn(300, 2, requires_grad=True)

    def call():
        result = fused_linear_logp(
            case.hidden.tanh(), case.weight, case.target, bias=case.bias, softcap=4.0,
            lora=(low, high, 0.5), schedule=schedule, return_entropy=True,
        )  # fmt: skip
        return result.logp + result.entropy

    compiled_equals_eager(call, [*case.leaves(), low, high])


def test_the_loss_compiles_into_one_graph_from_hidden_states_on():
    case = head_case(9, 4, 300, dtype=torch.float32)
    zero, beta = torch.zeros(2), torch.tensor([0.1, 0.2])
    sequence = sequence_of_row(CU_SEQLENS, 9)

    def by_parts():
        logp = fused_linear_logp(case.hidden, case.weight, case.target)
        sums = sequence_sums(logp, sequence, 4)
        out = mm_dpo_loss(
            sums[:2], sums[2:], zero, zero, beta, sft_weight=0.1, chosen_tokens=zero + 3
        )
        return out.loss + out.margins.sum()

    def at_once():
        return fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, beta, cu_seqlens=CU_SEQLENS,
            sft_weight=0.1,
        ).loss  # fmt: skip

    compiled_equals_eager(by_parts, case.leaves())
    compiled_equals_eager(at_once, case.leaves())
    with torch.no_grad():
        evaluated = torch.compile(at_once, fullgraph=True, backend="aot_eager")()
    assert torch.equal(evaluated, at_once().detach())


def test_a_part_of_a_batch_compiles_into_one_graph():
    """A tensor is not read by the host: that would break the graph."""
    case = head_case(9, 4, 300, dtype=torch.float32)
    zero = torch.zeros(2)
    sequence = sequence_of_row(CU_SEQLENS, 9)
    options = {"num_pairs": 3, "num_tokens": torch.tensor(20), "sft_weight": 0.1}

    def by_parts():
        logp = fused_linear_logp(case.hidden, case.weight, case.target)
        sums = sequence_sums(logp, sequence, 4)
        return mm_dpo_loss(
            sums[:2], sums[2:], zero, zero, 0.1, chosen_tokens=zero + 3, **options
        ).loss

    def at_once():
        return fused_linear_mm_dpo(
            case.hidden, case.weight, case.target, zero, zero, 0.1, cu_seqlens=CU_SEQLENS, **options
        ).loss

    compiled_equals_eager(by_parts, case.leaves())
    compiled_equals_eager(at_once, case.leaves())


def test_checks_of_entries_break_no_graph():
    case = head_case(9, 4, 300, dtype=torch.float32)
    zero, margin = torch.zeros(2), torch.tensor([0.5, 2.0])
    module = FusedLinearMMDPOLoss(sft_weight=0.1)
    columns = {"tie": torch.tensor([True, False]), "pair_index": torch.tensor([[0, 2], [1, 3]])}

    def at_once():
        return module(
            case.hidden, case.weight, case.target, zero, zero, margin, cu_seqlens=CU_SEQLENS,
            pair_weight=margin, **columns,
        ).loss  # fmt: skip

    def by_rows():
        logp = fused_linear_logp(case.hidden, case.weight, case.target)
        out = mm_dpo_loss_from_rows(
            logp, CU_SEQLENS, zero, zero, 0.1, margin=margin, weight=margin, **columns
        )
        reward = pairwise_reward_loss(logp[:2], logp[2:4], margin=margin, weight=margin)
        return out.loss + reward.loss

    compiled_equals_eager(at_once, case.leaves())
    compiled_equals_eager(by_rows, case.leaves())
