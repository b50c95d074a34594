"""MM-DPO in TRL's trainer equals a loop without one, and TRL's own DPO where beta is constant.

The loop runs each answer alone through the model's own forward, unpadded, and takes the loss of
``mmrlhf_kernels.reference``. Skipped where TRL is not installed; ``make bench`` runs it.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not among the requirements of this project")

from datasets import Dataset

import trl_models
from mmrlhf_kernels import reference
from mmrlhf_kernels.integrations.trl import MMDPOConfig, MMDPOTrainer

# What TRL, datasets, transformers and torch warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")
BETA, RATE, SFT_WEIGHT, PAIRS_OF_STEP = 0.1, 1e-3, 0.1, 2
TOLERANCE = 1e-5
FAMILIES = ("text", *trl_models.VISION)


def tiny(family, **more):
    if family == "text":
        return trl_models.text_model(**more)
    return trl_models.VISION[family]()


def settings(folder, kind=MMDPOConfig, **changes):
    """A run on the CPU with a constant rate, without clipping, in the order of the rows."""
    defaults = {
        "max_steps": 10,
        "per_device_train_batch_size": PAIRS_OF_STEP,
        "per_device_eval_batch_size": PAIRS_OF_STEP,
        "train_sampling_strategy": "sequential",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_length": None,
        "beta": BETA,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    return kind(output_dir=str(folder), **(defaults | changes))


def train(tested, rows, args, kind=MMDPOTrainer, ref_model=None, resume=None, **more):
    """(trainer, what it logged of each step)."""
    data = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    trainer = kind(
        tested.model, ref_model, args, train_dataset=data, processing_class=tested.processor, **more
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, [line for line in trainer.state.log_history if "loss" in line]


def answer_sum(tested, row, side):
    """(summed log-probability, number of tokens) of one answer, by the model's own forward."""

    def ids_of(messages, **how):
        text = tested.processor.apply_chat_template(messages, tokenize=False, **how)
        given = {"images": [row["images"]]} if "images" in row else {}
        return tested.processor(text=[text], return_tensors="pt", **given)

    prompt = ids_of(row["prompt"], add_generation_prompt=True)["input_ids"].shape[1]
    whole = ids_of(row["prompt"] + row[side])
    ids = whole["input_ids"][0]
    logits = tested.model(**whole).logits[0, prompt - 1 : -1]
    return reference.select_logp(logits, ids[prompt:]).sum(), len(ids) - prompt


def bare_loop(tested, rows, steps, pairs_of_step=PAIRS_OF_STEP):
    """(loss, mean of the reward margins, mean of beta) of each step. Changes the model."""
    with torch.no_grad():
        before = [
            [answer_sum(tested, row, side)[0] for side in ("chosen", "rejected")] for row in rows
        ]
    optimizer = torch.optim.AdamW(tested.model.parameters(), lr=RATE, weight_decay=0.0)
    curve = []
    for step in range(steps):
        taken = [(step * pairs_of_step + k) % len(rows) for k in range(pairs_of_step)]
        chosen = [answer_sum(tested, rows[k], "chosen") for k in taken]
        rejected = [answer_sum(tested, rows[k], "rejected")[0] for k in taken]
        ahead = torch.stack([logp for logp, _ in chosen])
        tokens = torch.tensor([count for _, count in chosen])
        ratios = [
            ahead - torch.stack([before[k][0] for k in taken]),
            torch.stack(rejected) - torch.stack([before[k][1] for k in taken]),
        ]
        beta = reference.dynamic_beta(torch.tensor([rows[k]["margin"] for k in taken]), BETA)
        columns = {
            name: torch.tensor([rows[k][name] for k in taken])
            for name in ("weight", "tie")
            if name in rows[0]
        }
        loss = reference.mm_dpo_loss(*ratios, beta, **columns)
        loss = loss + SFT_WEIGHT * reference.supervised_loss(ahead, tokens, "token")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        margins = beta * (ratios[0] - ratios[1])
        curve.append(
            [float(value) for value in (loss.detach(), margins.detach().mean(), beta.mean())]
        )
    return curve


def apart(lines, curve, names=("loss", "rewards/margins", "beta/mean")):
    """Largest difference of the logged values from those of the curve."""
    assert len(lines) == len(curve)
    found = torch.tensor([[line[name] for name in names] for line in lines])
    return float((found - torch.tensor(curve)).abs().max())


def values(lines, *names):
    """What was logged under some names, a list a step."""
    return [[line[name] for name in names] for line in lines]


@pytest.fixture
def pairs():
    return trl_models.preferences(pictures=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_with_cached_references_follow_the_bare_loop(family, tmp_path):
    rows = trl_models.preferences(pictures=family != "text")
    curve = bare_loop(tiny(family), rows, 10)
    tested = tiny(family)
    args = settings(tmp_path, precompute_ref_log_probs=True, sft_weight=SFT_WEIGHT)
    trainer, lines = train(tested, rows, args)
    assert trainer.ref_model is None
    assert apart(lines, curve) < TOLERANCE
    betas = reference.dynamic_beta(torch.tensor([row["margin"] for row in rows]), BETA)
    for step, line in enumerate(lines):
        of_step = betas.roll(-step * PAIRS_OF_STEP)[:PAIRS_OF_STEP]
        wanted = {"mean": of_step.mean(), "min": of_step.min(), "max": of_step.max()}
        assert {k: line[f"beta/{k}"] for k in wanted} == pytest.approx(
            {k: float(v) for k, v in wanted.items()}
        )


@pytest.mark.parametrize("family", ["text", "qwen2_vl"])
def test_weights_and_ties_follow_the_bare_loop(family, tmp_path):
    rows = trl_models.preferences(pictures=family != "text")
    for place, row in enumerate(rows):
        row |= {"weight": 0.5 + place, "tie": place % 3 == 0}
    curve = bare_loop(tiny(family), rows, 4)
    args = settings(tmp_path, max_steps=4, precompute_ref_log_probs=True, sft_weight=SFT_WEIGHT)
    _, lines = train(tiny(family), rows, args)
    assert apart(lines, curve) < TOLERANCE
    assert lines[0]["rewards/accuracies"] == pytest.approx(0.25)  # a tie counts 1/2


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("text", {"loss_type": "sigmoid"}),
        ("text", {"loss_type": "hinge"}),
        ("text", {"loss_type": "robust", "label_smoothing": 0.1}),
        ("text", {"loss_type": "bco_pair"}),
        ("qwen2_vl", {}),
        ("llava_onevision", {}),
    ],
)
def test_without_an_effect_of_margins_it_is_the_dpo_of_trl(family, changes, tmp_path):
    from trl import DPOConfig, DPOTrainer

    rows = trl_models.preferences(pictures=family != "text")
    mine, theirs = tiny(family), tiny(family)
    args = settings(tmp_path / "a", beta_w=0.0, max_steps=5, **changes)
    _, found = train(mine, rows, args, ref_model=copy.deepcopy(mine.model))
    args = settings(tmp_path / "b", DPOConfig, max_steps=5, **changes)
    _, wanted = train(theirs, rows, args, DPOTrainer, ref_model=copy.deepcopy(theirs.model))
    names = [
        "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
        "logps/chosen", "logps/rejected", "num_tokens", "grad_norm",
    ]  # fmt: skip
    assert torch.allclose(
        torch.tensor(values(found, *names)), torch.tensor(values(wanted, *names)), atol=1e-4
    )


def test_margins_change_beta_and_the_steps(pairs, tmp_path):
    surer = [row | {"margin": row["margin"] + 2.0} for row in pairs]
    runs = [
        train(tiny("text"), rows, settings(tmp_path, precompute_ref_log_probs=True))[1]
        for rows in (pairs, surer)
    ]
    assert all(b["beta/mean"] > a["beta/mean"] for a, b in zip(*runs, strict=True))
    assert runs[0][0]["loss"] == pytest.approx(runs[1][0]["loss"])  # ln 2, whatever beta is
    assert abs(runs[0][-1]["loss"] - runs[1][-1]["loss"]) > 1e-3


@pytest.mark.parametrize("sft_mean", ["token", "sequence"])
def test_a_step_in_micro_batches_is_the_step_of_the_whole(pairs, sft_mean, tmp_path):
    for place, row in enumerate(pairs):
        row["weight"] = 1.0 + place
    common = {"max_steps": 4, "sft_weight": 0.5, "sft_mean": sft_mean}
    common |= {"precompute_ref_log_probs": True, "num_train_epochs": 4}
    sizes = {
        # Six pairs in micro-batches of four and two: their means have unequal shares.
        "whole": {"per_device_train_batch_size": 6},
        "parts": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    }
    logs = {
        name: train(tiny("text"), pairs, settings(tmp_path / name, **common, **size))[1]
        for name, size in sizes.items()
    }
    assert torch.allclose(*(torch.tensor(values(log, "loss")) for log in logs.values()), atol=1e-5)


def test_two_ranks_take_the_step_of_one(pairs, tmp_path):
    alone = settings(tmp_path, max_steps=4, sft_weight=0.5, precompute_ref_log_probs=True)
    _, wanted = train(tiny("text"), pairs, alone)
    Dataset.from_list(pairs).save_to_disk(str(tmp_path / "data"))
    worker = Path(trl_models.__file__).with_name("trl_worker.py")
    folders = [str(Path(path)) for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(worker), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "ranks.json").read_text())
    names = "loss", "rewards/margins", "loss/sft", "beta/min", "beta/max", "num_tokens"
    assert torch.allclose(
        torch.tensor(values(found, *names)), torch.tensor(values(wanted, *names)), atol=1e-5
    )


@pytest.mark.parametrize("family", ["text", "qwen2_vl"])
def test_a_run_goes_on_from_a_checkpoint(family, tmp_path):
    rows = trl_models.preferences(pictures=family != "text")
    args = {"precompute_ref_log_probs": True, "max_steps": 6}
    _, whole = train(tiny(family), rows, settings(tmp_path / "a", **args))
    saved = settings(tmp_path / "b", **args, save_strategy="steps", save_steps=3)
    train(tiny(family), rows, saved)
    resumed = settings(tmp_path / "b", **args)
    _, lines = train(tiny(family), rows, resumed, resume=str(tmp_path / "b" / "checkpoint-3"))
    names = "loss", "rewards/margins", "beta/mean"
    assert values(lines[3:], *names) == values(whole[3:], *names)
    assert "mm-dpo" in (tmp_path / "b" / "README.md").read_text()


def test_the_best_checkpoint_of_a_model_of_pictures_is_loaded_whole(tmp_path):
    rows = trl_models.preferences(pictures=True)
    args = settings(
        tmp_path,
        max_steps=4,
        precompute_ref_log_probs=True,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_logps/rejected",
        greater_is_better=True,  # falls: the first checkpoint is the best
    )
    held_out = Dataset.from_list(rows)
    trainer, _ = train(tiny("qwen2_vl"), rows, args, eval_dataset=held_out)
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    saved = type(trainer.model).from_pretrained(best).state_dict()
    assert all(
        torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_references_of_a_model_of_columns_and_precomputed_are_one(family, tmp_path):
    rows = trl_models.preferences(pictures=family != "text")
    tested, steps = tiny(family), {"max_steps": 3}
    args = settings(tmp_path, **steps)
    _, live = train(tested, rows, args, ref_model=copy.deepcopy(tested.model))
    args = settings(tmp_path, **steps, precompute_ref_log_probs=True)
    trainer, cached = train(tiny(family), rows, args)
    columns = trainer.train_dataset.select_columns(["ref_chosen_logps", "ref_rejected_logps"])
    given = [row | both for row, both in zip(rows, columns, strict=True)]
    tested = tiny(family)
    for parameter in tested.model.parameters():
        parameter.data.mul_(1.01)  # no reference any more: what it computes would show
    trainer, of_columns = train(tested, given, settings(tmp_path, **steps))
    assert trainer.ref_model is None
    assert torch.allclose(
        torch.tensor(values(live, "loss")), torch.tensor(values(cached, "loss")), atol=1e-6
    )
    for before, answers in zip(columns, trainer.train_dataset, strict=True):
        assert before["ref_chosen_logps"] == answers["ref_chosen_logps"]
    assert abs(of_columns[0]["rewards/margins"]) > 1e-4


def test_precomputed_references_are_kept_by_model_rows_and_processor(tmp_path, monkeypatch):
    Dataset.from_list(trl_models.preferences(pictures=True)).save_to_disk(str(tmp_path / "data"))
    runs = []
    compute = MMDPOTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        runs.append(1)
        return compute(self, model, inputs)

    monkeypatch.setattr(MMDPOTrainer, "compute_ref_log_probs", counted)

    def forwards(change=None):
        runs.clear()
        tested = tiny("qwen2_vl")
        if change:
            change(tested)
        args = settings(tmp_path / "out", max_steps=1, precompute_ref_log_probs=True)
        train(tested, Dataset.load_from_disk(str(tmp_path / "data")), args)
        return len(runs)

    def smaller(tested):
        tested.processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 1568}

    assert forwards() == 3
    assert forwards() == 0
    assert forwards(lambda tested: tested.model.lm_head.weight.data.mul_(1.1)) == 3
    assert forwards(smaller) == 3


@pytest.mark.parametrize("family", ["text", "llava_onevision"])
def test_evaluation_logs_the_same_names(family, tmp_path):
    rows = trl_models.preferences(pictures=family != "text")
    args = settings(tmp_path, max_steps=2, precompute_ref_log_probs=True, eval_strategy="no")
    held_out = Dataset.from_list(rows[:3])
    trainer, _ = train(tiny(family), rows, args, eval_dataset=held_out)
    found = trainer.evaluate()
    names = "loss", "rewards/margins", "rewards/accuracies", "beta/mean", "logps/chosen", "loss/dpo"
    assert all(f"eval_{name}" in found for name in names)
    # Three pairs in batches of two and one; the figures are means over batches, as in TRL.
    assert found["eval_beta/max"] == pytest.approx(
        float(reference.dynamic_beta(torch.tensor([rows[2]["margin"]]), BETA)), rel=1e-5
    )


def test_metrics_of_a_user_are_given_logits(pairs, tmp_path):
    args = settings(tmp_path, max_steps=1, precompute_ref_log_probs=True)
    more = {"compute_metrics": lambda found: {"vocabulary": found.predictions.shape[-1]}}
    data = Dataset.from_list(pairs[:2])
    trainer, _ = train(tiny("text"), pairs, args, eval_dataset=data, **more)
    assert trainer.evaluate()["eval_vocabulary"] == trainer.model.config.vocab_size


def test_a_reference_that_follows_the_policy_is_read_in_each_step(pairs, tmp_path):
    follow = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    tested = tiny("text")
    args = settings(tmp_path, max_steps=3, **follow)
    _, lines = train(tested, pairs, args, ref_model=copy.deepcopy(tested.model))
    # It is the policy of before each step, so that no step sees a preference.
    assert [line["loss/dpo"] for line in lines] == pytest.approx([0.693147] * 3, abs=1e-5)


def test_bfloat16_follows_float32(pairs, tmp_path):
    steps = {"max_steps": 3, "precompute_ref_log_probs": True, "sft_weight": SFT_WEIGHT}
    _, exact = train(tiny("text"), pairs, settings(tmp_path, **steps))
    _, found = train(tiny("text"), pairs, settings(tmp_path, **steps, bf16=True))
    assert torch.allclose(
        torch.tensor(values(found, "loss")), torch.tensor(values(exact, "loss")), atol=0.05
    )


@pytest.mark.parametrize("family", ["text", "qwen2_vl"])
@pytest.mark.parametrize("cached", [True, False])
def test_the_reference_of_an_adapter_is_the_model_without_it(family, cached, tmp_path):
    peft = pytest.importorskip("peft")
    rows = trl_models.preferences(pictures=family != "text")
    args = settings(tmp_path, max_steps=4, precompute_ref_log_probs=cached, learning_rate=1e-2)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer, lines = train(tiny(family), rows, args, peft_config=lora)
    assert trainer.ref_model is None
    assert lines[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    last = trainer.compute_ref_log_probs(trainer.model, _batch(trainer))
    other = tiny(family)
    with torch.no_grad():
        wanted = [answer_sum(other, row, "chosen")[0] for row in rows[:PAIRS_OF_STEP]]
    assert torch.allclose(last[0], torch.stack(wanted), atol=1e-3)
    assert abs(lines[-1]["rewards/margins"]) > 1e-3
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)


def test_the_reference_of_a_second_training_is_the_adapter_it_began_with(pairs, tmp_path):
    peft = pytest.importorskip("peft")
    tested = tiny("text")
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = tested._replace(model=peft.get_peft_model(tested.model, lora))
    _, lines = train(adapted, pairs, settings(tmp_path, max_steps=2))
    assert lines[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert lines[1]["rewards/chosen"] != 0.0


def _batch(trainer):
    return next(iter(trainer.get_train_dataloader()))
