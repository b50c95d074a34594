"""Every example of docs/loading.md runs as it stands, in the order of the page, offline."""

import math
import re
from pathlib import Path

import pytest
import torch

import load_data

PAGE = (Path(__file__).parents[1] / "docs" / "loading.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)


def rows_of_weight_1(*args, **options):
    made = ROWS(*args, **options)
    for pair in made.pairs:
        pair["weight"] = 1.0
    return made


ROWS = load_data.rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A dataset of text, and a language model of a few thousand random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    monkeypatch.setattr(load_data, "rows", rows_of_weight_1)
    load_data.write(tmp_path / "SHARDS", queries=40, text_only=True)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "MODEL")
    return tmp_path


# Trainer asks for pinned memory, and names no use for it on a CPU.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_every_example_runs_in_the_order_of_the_page(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    for block in BLOCKS:
        # A dataset as small as this one fills a few packs only if these are small.
        exec(compile(block.replace("16_384", "300"), "docs/loading.md", "exec"), names)
    assert len(names["loader"]) > 5
    assert names["state"]["epoch"] == 1
    assert len(names["losses"]) > 5
    trained = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    for losses in (names["losses"], trained):
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert abs(losses[-1] - math.log(2)) > 1e-5
    assert len(trained) == names["trainer"].state.global_step == 3


def test_a_resumed_trainer_sees_the_batches_that_are_left(folder, monkeypatch):
    """In the middle of the second epoch, whose order the trainer's loader has to ask for."""
    monkeypatch.chdir(folder)
    names = {}
    for block in BLOCKS:
        block = block.replace("16_384", "300").split("args = TrainingArguments")[0]
        exec(compile(block, "docs/loading.md", "exec"), names)

    def rows(max_steps, **resume):
        """The pairs of each step of a run, which saves a checkpoint after each."""
        seen = []

        class Recorded(names["PreferenceTrainer"]):
            def compute_loss(self, model, inputs, *args, **kwargs):
                seen.append(inputs["batch"].pair_row.tolist())
                return super().compute_loss(model, inputs, *args, **kwargs)

        arguments = names["TrainingArguments"](
            "RUN", max_steps=max_steps, save_steps=1, report_to=[], logging_steps=1
        )
        model = names["AutoModelForCausalLM"].from_pretrained("MODEL")
        dataset = names["PreferenceDataset"]("SHARDS", tokens=300)
        trainer = Recorded(model, names["reference"], arguments, dataset)
        trainer.train(**resume)
        return seen, len(dataset)

    whole, length = rows(max_steps := 14)
    assert length + 3 < max_steps < 2 * length
    resumed, _ = rows(max_steps, resume_from_checkpoint=f"RUN/checkpoint-{length + 3}")
    assert resumed == whole[length + 3 :]
