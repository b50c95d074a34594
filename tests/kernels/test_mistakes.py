"""What a caller may get wrong is named by the name that the caller has for it."""

import inspect
import math

import pytest
import torch
from torch import nn

from mmrlhf_kernels import (
    FusedLinearMMDPOLoss,
    dynamic_beta,
    fused_linear_logp,
    fused_linear_mm_dpo,
    mm_dpo_loss,
    mm_dpo_loss_from_rows,
    pair_gradients,
    pairwise_reward_loss,
    sequence_of_row,
    sequence_sums,
)
from mmrlhf_kernels.pair import OPTIONS, call_of

NAN = float("nan")
ROWS, HIDDEN, VOCAB = 9, 4, 11
TWO, THREE = torch.zeros(2), torch.zeros(3)


def head():
    """hidden, weight and target."""
    source = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, HIDDEN, generator=source) for size in (ROWS, VOCAB))
    return {"hidden": hidden, "weight": weight, "target": torch.arange(ROWS)}


def references():
    return {"ref_chosen_logps": TWO, "ref_rejected_logps": TWO}


BOUNDS = {"cu_seqlens": torch.tensor([0, 2, 4, 7, 9])}
SUMS = {"chosen_logp": TWO - 3, "rejected_logp": TWO - 4}
ARGUMENTS = {
    fused_linear_mm_dpo: {**head(), **references(), "beta": 0.1, **BOUNDS},
    fused_linear_logp: head(),
    mm_dpo_loss: {**SUMS, **references(), "beta": 0.1},
    pair_gradients: {**SUMS, **references(), "beta": 0.1},
    mm_dpo_loss_from_rows: {"logp": torch.zeros(ROWS), **references(), "beta": 0.1, **BOUNDS},
}
LOSSES = [fused_linear_mm_dpo, mm_dpo_loss, pair_gradients, mm_dpo_loss_from_rows]
WITH_MARGIN = LOSSES[1:]
WITH_ROWS = [fused_linear_mm_dpo, mm_dpo_loss_from_rows]
WITH_HEAD = [fused_linear_mm_dpo, fused_linear_logp]


def weight_of(function):
    """What a function calls the factors of pairs."""
    return "pair_weight" if function is fused_linear_mm_dpo else "weight"


def cases(functions, *changes):
    """(function, change, error, message) for each function."""
    return [(function, *change) for function in functions for change in changes]


CASES = [
    *cases(
        LOSSES,
        ({"ref_chosen_logps": [0.0, 0.0]}, TypeError, "ref_chosen_logps is of type list"),
        ({"ref_rejected_logps": 0.0}, TypeError, r"ref_rejected_logps is of type float; expected"),
        ({"ref_chosen_logps": THREE}, ValueError, r"ref_chosen_logps has shape \(3,\) and ref_rej"),
        ({"ref_rejected_logps": torch.zeros(2, 1)}, ValueError, r"\(2, 1\); expected \[P\]"),
        ({"ref_chosen_logps": TWO.clone().requires_grad_()}, ValueError, "pass ref_chosen_logps.d"),
        ({"ref_rejected_logps": TWO + NAN}, ValueError, r"ref_rejected_logps\[0\] is nan"),
        ({"beta": [0.1, 0.1]}, TypeError, r"beta is of type list; expected a number or a tensor"),
        ({"beta": None}, TypeError, "beta is of type NoneType"),
        ({"beta": "released"}, TypeError, "beta is of type str"),
        ({"beta": math.inf}, ValueError, "beta is inf; expected a number above 0"),
        ({"beta": torch.tensor([0.1, -0.1])}, ValueError, r"beta\[1\] is -0.1"),
        ({"beta": torch.tensor([0.0, NAN])}, ValueError, r"beta\[0\] is 0.0; expected a number a"),
        ({"tie": [True, False]}, TypeError, r"tie is of type list; expected a tensor \[P\]"),
        ({"sft_weight": NAN}, ValueError, "sft_weight is nan; expected a finite number"),
        ({"reward_shift": NAN}, ValueError, "reward_shift is nan"),
        ({"num_pairs": 0}, ValueError, "num_pairs is 0 for 2 pairs"),
    ),
    *cases(
        WITH_MARGIN,
        ({"margin": [1.0, 2.0]}, TypeError, r"margin is of type list; expected a tensor \[P\]"),
        ({"margin": torch.tensor([1.0, NAN])}, ValueError, r"margin\[1\] is nan; expected a num"),
        ({"margin": TWO, "w": math.inf}, ValueError, "w inf"),
        ({"margin": TWO, "k": NAN}, ValueError, "k nan"),
        ({"margin": TWO.clone().requires_grad_()}, ValueError, r"pass margin.detach\(\)"),
        ({"chosen_tokens": TWO - 1}, ValueError, r"chosen_tokens\[0\] is -1.0"),
        ({"smoothing": 0.1}, TypeError, "unexpected keyword argument 'smoothing'; options of the"),
        ({"pair_weight": TWO}, TypeError, "'pair_weight'.* hint: it is called weight here"),
    ),
    *cases(
        WITH_ROWS,
        ({"cu_seqlens": [0, 2, 4, 7, 9]}, TypeError, r"cu_seqlens is of type list; expected a ten"),
        ({"cu_seqlens": BOUNDS["cu_seqlens"].float()}, TypeError, "cu_seqlens is torch.float32"),
        ({"pair_index": [[0, 2], [1, 3]]}, TypeError, "pair_index is of type list"),
        ({"pair_index": torch.tensor([[0.0, 2], [1, 3]])}, TypeError, "pair_index is torch.float3"),
        (
            {"pair_index": torch.tensor([[0, 2], [3, 3]])},
            ValueError,
            r"index\[1\] names one answer",
        ),
        ({"pair_index": torch.tensor([[0, 2], [1, -3]])}, IndexError, "names sequence -3"),
    ),
    *cases(
        WITH_HEAD,
        ({"hidden": [1.0]}, TypeError, r"hidden is of type list; expected a tensor \[N, H\]"),
        ({"weight": nn.Linear(HIDDEN, VOCAB)}, TypeError, "Linear.*hint: pass its weight"),
        ({"weight": head()["weight"].t()}, ValueError, "as it is, not transposed"),
        ({"bias": 0.0}, TypeError, "bias is of type float"),
        ({"target": list(range(ROWS))}, TypeError, "target is of type list"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0; expected a number above 0, or None"),
        ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
        ({"logit_scale": NAN}, ValueError, "logit_scale is nan"),
        ({"temperature": math.inf}, ValueError, "temperature is inf"),
        ({"workspace_bytes": -1}, ValueError, "workspace_bytes is -1; expected at least 0"),
    ),
    *cases(
        [fused_linear_mm_dpo],
        ({"pair_weight": THREE}, ValueError, r"pair_weight has shape \(3,\); expected \(2,\)"),
        ({"sequence_of_row": THREE, "cu_seqlens": None}, TypeError, "sequence_of_row is torch.fl"),
        ({"beta_rule": "released", "beta": TWO + 1}, ValueError, "takes one number as beta"),
    ),
    *cases(
        [fused_linear_logp],
        ({"entropy_gradient": True}, ValueError, "return_entropy has to be set too"),
        ({"lora": torch.zeros(2)}, TypeError, r"lora is a Tensor; expected \(A \[r, H\], B"),
        ({"lora": (TWO, TWO)}, TypeError, "lora is a tuple of 2"),
        ({"lora": ([1.0], TWO, 1.0)}, TypeError, "lora A is of type list"),
        *(
            ({"lora": (low, high, 1.0)}, ValueError, "hint: PEFT's lora_A.weight")
            for low, high in (
                (torch.zeros(VOCAB, 2), torch.zeros(2, HIDDEN)),
                (torch.zeros(HIDDEN, 2), torch.zeros(VOCAB, 2)),
                (torch.zeros(2, HIDDEN), torch.zeros(2, VOCAB)),
                (torch.zeros(2, HIDDEN), torch.zeros(VOCAB, 3)),
                (torch.zeros(HIDDEN), torch.zeros(VOCAB, 3)),
                (torch.zeros(()), torch.zeros(VOCAB, 3)),
            )
        ),
    ),
]


@pytest.mark.parametrize(("function", "change", "problem", "message"), CASES)
def test_a_mistake_is_named(function, change, problem, message):
    arguments = ARGUMENTS[function]
    function(**arguments)  # which is right without the change
    with pytest.raises(problem, match=message):
        function(**(arguments | change))


@pytest.mark.parametrize("function", LOSSES)
def test_a_negative_weight_has_the_name_of_its_argument(function):
    name = weight_of(function)
    for value, found in ((-1.0, "-1.0"), (NAN, "nan")):
        weight = torch.tensor([1.0, value])
        with pytest.raises(ValueError, match=rf"^{name}\[1\] is {found}; expected a number, at le"):
            function(**(ARGUMENTS[function] | {name: weight}))


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("change", [{"beta": -TWO - 1}, {"pair_weight": TWO - 1}])
def test_entries_are_checked_before_the_head_is_multiplied(monkeypatch, implementation, change):
    monkeypatch.setenv("MMRLHF_KERNELS", implementation)
    monkeypatch.setattr(torch, "mm", lambda *_, **__: pytest.fail("a product was formed"))
    with pytest.raises(ValueError, match=r"\[0\] is -1.0"):
        fused_linear_mm_dpo(**(ARGUMENTS[fused_linear_mm_dpo] | change))


@pytest.mark.parametrize("function", LOSSES)
def test_a_part_of_a_batch_has_both_numbers_or_none(function):
    counted = {"chosen_tokens": TWO + 2} if function in (mm_dpo_loss, pair_gradients) else {}
    arguments = ARGUMENTS[function] | counted | {"sft_weight": 0.5}
    for given, missing in (("num_pairs", "num_tokens"), ("num_tokens", "num_pairs")):
        for number in (5, torch.tensor(5.0)):
            with pytest.raises(ValueError, match=f"{given} is given without {missing}"):
                function(**arguments, **{given: number})
            function(**(arguments | {"sft_weight": 0.0}), **{given: number})
    function(**arguments, num_pairs=5, num_tokens=5)
    function(**arguments, num_pairs=5, sft="sequence")


def test_weights_of_zero_may_have_the_sum_zero():
    out = mm_dpo_loss(**ARGUMENTS[mm_dpo_loss], weight=TWO, num_pairs=0.0)
    assert float(out.loss) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "expected beta > 0"),
        ({"w": -1.0}, "expected beta > 0, w >= 0"),
        ({"loss_type": "dpo"}, "unknown loss_type 'dpo'"),
        ({"sft": "tok"}, "unknown sft 'tok'"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"sft_weight": -1.0}, "sft_weight is -1.0"),
        ({"reward_shift": NAN}, "reward_shift is nan"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"logit_scale": math.inf}, "logit_scale is inf"),
    ],
)
def test_a_module_checks_its_settings_as_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        FusedLinearMMDPOLoss(**settings)


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"margin": THREE}, ValueError, r"margin has shape \(3,\); expected \(2,\)"),
        ({"margin": 1.5}, TypeError, "margin is of type float"),
        ({"margin": TWO.clone().requires_grad_()}, ValueError, "pass margin.detach"),
        ({"margin": TWO + NAN}, ValueError, r"margin\[0\] is nan"),
        ({"margin": TWO, "beta_rule": "released"}, ValueError, "expected no margin"),
        ({"beta": 0.2}, TypeError, "beta is a setting of the module; give it at construction"),
        ({"sft_weight": 0.2}, TypeError, "sft_weight is a setting of the module"),
        ({"pair_weight": THREE}, ValueError, "pair_weight has shape"),
    ],
)
def test_a_module_names_what_it_is_called_with(change, problem, message):
    arguments = {**head(), **references(), **BOUNDS}
    with pytest.raises(problem, match=message):
        FusedLinearMMDPOLoss()(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "problem", "message"),
    [
        ({"centring": -1.0}, ValueError, "centring is -1.0; expected a finite number, at least 0"),
        ({"tie_weight": NAN}, ValueError, "tie_weight is nan"),
        ({"weight": TWO - 1}, ValueError, r"weight\[0\] is -1.0"),
        ({"margin": torch.tensor([0.0, NAN])}, ValueError, r"margin\[1\] is nan"),
        ({"margin": [0.0, 0.0]}, TypeError, "margin is of type list"),
        ({"chosen_reward": [0.0, 0.0]}, TypeError, "chosen_reward is of type list"),
    ],
)
def test_the_reward_loss_names_what_does_not_fit(change, problem, message):
    with pytest.raises(problem, match=message):
        pairwise_reward_loss(**({"chosen_reward": TWO, "rejected_reward": TWO} | change))


@pytest.mark.parametrize(
    ("call", "problem", "message"),
    [
        (lambda: dynamic_beta([1.0], 0.1), TypeError, "margin is of type list"),
        (lambda: dynamic_beta(TWO + NAN, 0.1), ValueError, r"margin\[0\] is nan"),
        (lambda: sequence_sums(THREE, torch.tensor([0, 1, 2]), 2), IndexError, "sequence 2; expe"),
        (lambda: sequence_sums(THREE, torch.tensor([0, -1, 1]), 2), IndexError, "sequence -1; exp"),
        (lambda: sequence_sums(THREE, torch.zeros(3), 2), TypeError, "sequence is torch.float32"),
        (lambda: sequence_sums(THREE, torch.arange(2), 2), ValueError, "sequence has shape"),
        (lambda: sequence_sums(torch.zeros(1, 3), torch.arange(3), 3), ValueError, "values has sh"),
        (lambda: sequence_of_row([0, 3], 3), TypeError, "cu_seqlens is of type list"),
        (lambda: sequence_of_row(torch.tensor([0.0, 3]), 3), TypeError, "cu_seqlens is torch.flo"),
    ],
)
def test_helpers_name_what_does_not_fit(call, problem, message):
    with pytest.raises(problem, match=message):
        call()


def test_a_part_without_pairs_may_come_from_empty_lists():
    """Of which torch makes float32."""
    none, index, sequence = torch.zeros(0), torch.tensor([]).view(0, 2), torch.tensor([])
    columns = {"ref_chosen_logps": none, "ref_rejected_logps": none, "beta": 0.1}
    bounds = {"cu_seqlens": torch.tensor([0]), "pair_index": index}
    assert float(mm_dpo_loss_from_rows(none, **columns, **bounds).loss) == 0.0
    rows = {**head(), "hidden": torch.zeros(0, HIDDEN), "target": torch.arange(0)}
    for layout in (bounds, {"sequence_of_row": sequence, "pair_index": index}):
        assert float(fused_linear_mm_dpo(**rows, **columns, **layout).loss) == 0.0
    assert sequence_sums(none, sequence, 2).tolist() == [0.0, 0.0]


def test_narrow_numbers_of_sequences_are_summed():
    sums = sequence_sums(THREE + 1, torch.tensor([1, 0, 1], dtype=torch.int32), 2)
    assert sums.tolist() == [1.0, 2.0]


def test_means_and_the_supervised_term_come_from_rows():
    """``average`` gives means to the pair losses and sums to the supervised term."""
    logp = -torch.arange(1.0, ROWS + 1)
    out = mm_dpo_loss_from_rows(
        logp, BOUNDS["cu_seqlens"], TWO, TWO, 0.1, average=True, loss_type="ipo", sft_weight=0.5
    )
    parts = logp.split([2, 2, 3, 2])
    delta = torch.stack([parts[0].mean() - parts[2].mean(), parts[1].mean() - parts[3].mean()])
    assert float(out.preference_loss) == pytest.approx(float((delta - 5).square().mean()))
    assert float(out.sft_loss) == pytest.approx(10 / 4)


def test_options_are_those_of_the_signature():
    found = [p.name for p in inspect.signature(call_of).parameters.values() if p.default != p.empty]
    assert [name for name in found if name != "counted"] == list(OPTIONS)
