"""What MM-DPO in TRL refuses, and how it reads heads; imports without TRL."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

WITH_TRL = bool(importlib.util.find_spec("trl"))
needs_trl = pytest.mark.skipif(not WITH_TRL, reason="TRL is not installed")
# What TRL, datasets, transformers and torch warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("trl", "found"),
    [(None, "cannot be imported"), (SimpleNamespace(__version__="1.17.0"), "found 1.17.0")],
)
def test_without_its_trl_the_integration_names_the_extra(monkeypatch, trl, found):
    for name in [*sys.modules]:
        if name.startswith("mmrlhf_kernels.integrations.trl"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", trl)
    with pytest.raises(
        ImportError, match=r"^mmrlhf_kernels\.integrations\.trl needs TRL 1\.16"
    ) as said:
        importlib.import_module("mmrlhf_kernels.integrations.trl")
    assert found in str(said.value)
    assert "pip install './kernels[trl]'" in str(said.value)


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("trl", reason="TRL is not among the requirements of this project")
    from mmrlhf_kernels.integrations.trl import MMDPOConfig

    def make(**changes):
        common = {"use_cpu": True, "bf16": False, "report_to": [], "max_length": None}
        return MMDPOConfig(output_dir=str(tmp_path), **(common | changes))

    return make


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_type": ["sigmoid", "sft"]}, "hint: sft_weight"),
        ({"loss_type": "ipo"}, "mm_dpo_loss_from_rows"),
        ({"loss_type": "apo_zero"}, "expected one of sigmoid, hinge, robust, bco_pair"),
        ({"loss_weights": [2.0]}, "hint: sft_weight"),
        ({"ld_alpha": 0.5}, "ld_alpha is 0.5"),
        ({"f_divergence_type": "forward_kl"}, "f_divergence_type is 'forward_kl'"),
        ({"f_alpha_divergence_coef": 0.1}, "f_alpha_divergence_coef"),
        ({"discopop_tau": 0.1}, "discopop_tau"),
        ({"use_weighting": True}, "hint: a column named weight"),
        ({"padding_free": True}, "TRL 1.16 pads"),
        ({"label_smoothing_factor": 0.1}, "hint: label_smoothing"),
        ({"use_liger_kernel": True}, "use_kernels"),
        ({"torch_compile": True}, "torch_compile is True"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta_w": -1.0}, "beta_w is -1.0"),
        ({"beta_k": float("nan")}, "beta_k is nan"),
        ({"sft_weight": -0.1}, "sft_weight is -0.1"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"sft_mean": "batch"}, "expected 'token' or 'sequence'"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(config, changes, said):
    with pytest.raises(ValueError, match=r"hint|expected") as raised:
        config(**changes)
    assert said in str(raised.value)


@needs_trl
def test_settings_are_options_of_a_command_line(tmp_path):
    from transformers import HfArgumentParser

    from mmrlhf_kernels.integrations.trl import MMDPOConfig

    words = f"--output_dir {tmp_path} --beta_w 0.3 --beta_k 2 --sft_weight .25 --sft_mean sequence"
    (found,) = HfArgumentParser(MMDPOConfig).parse_args_into_dataclasses(
        [*words.split(), "--use_cpu", "--bf16", "false"]
    )
    assert (found.beta_w, found.beta_k) == (0.3, 2.0)
    assert (found.sft_weight, found.sft_mean) == (0.25, "sequence")


@pytest.fixture
def trainer(config):
    """A trainer of the tiny text model, or of that of pictures, on some rows."""
    from datasets import Dataset

    import trl_models
    from mmrlhf_kernels.integrations.trl import MMDPOTrainer

    def make(change=lambda row: row, *, tested=None, pictures=False, args=None, **more):
        tested = tested or (trl_models.qwen2_vl if pictures else trl_models.text_model)()
        rows = [change(row) for row in trl_models.preferences(pictures)]
        more = {"processing_class": tested.processor, "ref_model": None} | more
        return MMDPOTrainer(
            tested.model,
            args=args or config(precompute_ref_log_probs=True, max_steps=1),
            train_dataset=Dataset.from_list(rows),
            **more,
        )

    return make


def without(name):
    return lambda row: {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (without("margin"), ValueError, "data set 'train' has no column margin; found"),
        (lambda row: row | {"margin": "1.5"}, TypeError, "margin of data set 'train' is string"),
        (lambda row: row | {"margin": None}, TypeError, "is null"),
        (lambda row: row | {"tie": 1}, TypeError, "tie of data set 'train' is int64"),
        (lambda row: row | {"weight": True}, TypeError, "weight of data set 'train' is bool"),
        (lambda row: row | {"ref_chosen_logps": -3.0}, ValueError, "no ref_rejected_logps"),
    ],
)
def test_columns_are_checked_before_anything_runs(trainer, pictures, change, error, said):
    with pytest.raises(error, match=said):
        trainer(change, pictures=pictures)


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("margin", None, ValueError, "margin of row 0 of a batch is missing"),
        ("margin", float("nan"), ValueError, "margin of row 0 of a batch is nan"),
        ("weight", -1.0, ValueError, "expected a number >= 0"),
        ("tie", 1, TypeError, "expected true or false"),
    ],
)
@needs_trl
def test_values_are_checked_in_each_batch(name, value, error, said):
    from mmrlhf_kernels.integrations.trl import MMDPOCollator

    rows = [{"margin": 1.0, "weight": 1.0, "tie": False} for _ in range(2)]
    batch = MMDPOCollator(lambda examples: {"pairs": len(examples)})(rows)
    assert batch["pairs"] == 2
    assert {name: (column.dtype, tuple(column.shape)) for name, column in batch.items()
            if name != "pairs"} == {
        "margin": (torch.float32, (2,)),
        "weight": (torch.float32, (2,)),
        "tie": (torch.bool, (2,)),
    }  # fmt: skip
    rows[0][name] = value
    with pytest.raises(error, match=said):
        MMDPOCollator(lambda _: {})(rows)


def given(row):
    return row | {"ref_chosen_logps": -30.0, "ref_rejected_logps": -31.0}


def test_a_second_reference_is_refused(trainer, config):
    import trl_models

    with pytest.raises(ValueError, match="ref_model was given"):
        trainer(given, ref_model=trl_models.text_model().model)
    with pytest.raises(ValueError, match="sync_ref_model was given"):
        trainer(given, args=config(sync_ref_model=True))


def test_an_evaluation_set_needs_the_references_that_the_training_set_has(trainer):
    from datasets import Dataset

    import trl_models

    held_out = Dataset.from_list(trl_models.preferences(pictures=False))
    with pytest.raises(ValueError, match="data set 'eval' has no ref_chosen_logps"):
        trainer(given, eval_dataset=held_out)


def test_what_does_not_fit_pictures_is_refused(trainer, config):
    import trl_models

    with pytest.raises(TypeError, match="expected a processor"):
        trainer(pictures=True, processing_class=trl_models.tokenizer())
    cut = config(truncation_mode="keep_end", max_length=64, precompute_ref_log_probs=True)
    with pytest.raises(ValueError, match="cuts pictures off"):
        trainer(pictures=True, args=cut)


def test_settings_of_trl_alone_are_not_enough(trainer, tmp_path):
    from trl import DPOConfig

    with pytest.raises(TypeError, match="expected an MMDPOConfig"):
        trainer(args=DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))


def test_adapters_that_the_loss_would_not_see_are_refused(trainer):
    peft = pytest.importorskip("peft")
    on_head = peft.LoraConfig(target_modules=["lm_head"])
    with pytest.raises(ValueError, match="lm_head"):
        trainer(peft_config=on_head)
    saved = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="leave it out of target_modules, modules_to_save"):
        trainer(peft_config=saved)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="adds tokens to prompts"):
        trainer(peft_config=prompt)


def test_a_mixture_of_experts_needs_its_auxiliary_loss_off(trainer, config):
    import transformers as hf

    import trl_models

    more = {"num_local_experts": 2, "num_experts_per_tok": 1}
    tested = trl_models.text_model(hf.MixtralConfig, **more)
    with pytest.raises(ValueError, match=r"hint: router_aux_loss_coef=0\.0"):
        trainer(tested=tested)
    args = config(precompute_ref_log_probs=True, router_aux_loss_coef=0.0, max_steps=1)
    trainer(tested=trl_models.text_model(hf.MixtralConfig, **more), args=args).train()


@needs_trl
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Qwen2Config", {"tie_word_embeddings": True}),
        ("Gemma2Config", {"final_logit_softcapping": 2.0, "head_dim": 16}),
        ("CohereConfig", {"logit_scale": 0.3}),
        ("GraniteConfig", {"logits_scaling": 4.0}),
        ("PhiConfig", {}),  # its head has a bias
    ],
)
def test_rows_of_a_head_are_those_of_the_model(name, more):
    import transformers as hf

    import trl_models
    from mmrlhf_kernels.integrations.trl.rows import AnswerRows
    from mmrlhf_kernels.integrations.trl.states import add_states_function

    model = trl_models.text_model(getattr(hf, name), **more).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, and logits that a softcap bends
            parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(5, 200, (4, 9))
    mask = (torch.arange(9) >= torch.tensor([[3], [5], [8], [9]])).long()
    plain = model(input_ids=ids)
    add_states_function(model)
    add_states_function(model)  # once is enough
    with torch.no_grad():
        rows = AnswerRows({"input_ids": ids, "completion_mask": mask})
        found = model(**rows.model_inputs, of_states=rows.sums)
        logp = plain.logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    assert torch.allclose(found, (logp * mask[:, 1:]).sum(1), atol=1e-4)
    assert torch.equal(model(input_ids=ids).logits, plain.logits)
    assert rows.counts().tolist() == [2.0, 10.0]


@needs_trl
def test_other_heads_are_refused():
    import transformers as hf

    import trl_models
    from mmrlhf_kernels.integrations.trl.states import add_states_function

    model = trl_models.text_model().model
    model.config.output_multiplier = 2.0
    with pytest.raises(ValueError, match="scales logits by output_multiplier"):
        add_states_function(model)
    model = trl_models.text_model().model
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="head of Qwen2ForCausalLM is Sequential"):
        add_states_function(model)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    with pytest.raises(ValueError, match="encoder-decoder"):
        add_states_function(hf.BartForConditionalGeneration(hf.BartConfig(**small)))
