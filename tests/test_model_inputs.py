"""`batch.model_inputs` in the forward of each family: packed answers score as each one alone."""

import pytest
import torch

from mmrlhf_engine import (
    Budget,
    PlanSettings,
    PreferenceLoader,
    answer_rows,
    open_dataset,
    plan_json,
)
from mmrlhf_engine.errors import InputError
from model_families import WITH_VIDEOS, processor_folder, prompts
from test_families import by_processor, packed
from tiny_models import SIDES, tiny_model


@torch.no_grad()
@pytest.mark.parametrize("unit", ["query", "pair"])
@pytest.mark.parametrize("name", [*WITH_VIDEOS, "llava", "llava_next"])
def test_packed_answers_score_as_each_alone(name, unit, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor = processor_folder(name, folder)
    model = tiny_model(name, processor)
    # Frames that no processor resizes, as that is not the same to the last bit; and videos of one
    # length, as LLaVA-OneVision's forward takes them.
    videos = {"videos": name in WITH_VIDEOS, "frames": 3, "side": SIDES.get(name, 28)}
    rows = prompts(12, tmp_path / "frames", seed=3, **videos)
    packed(folder, [prompt.row for prompt in rows], tmp_path / "ds")
    dataset = open_dataset(tmp_path / "ds")
    pairs = dataset.pairs.collect()
    plan = plan_json(
        PlanSettings(budget=Budget(tokens=2500), packs_per_step=1, unit=unit),
        dataset.processor["image_rule"],
    )
    scores = {}
    for batch in PreferenceLoader(tmp_path / "ds", plan, threads=1):
        logits = model(**batch.model_inputs(), use_cache=False).logits[0]
        answers = answer_rows(batch)
        logp = logits[answers.row].log_softmax(-1).gather(1, torch.tensor(answers.target)[:, None])
        ends = answers.cu_seqlens.tolist()
        for place, response in enumerate(batch.sequence_response.tolist()):
            if response >= 0:
                scores[response] = logp[ends[place] : ends[place + 1], 0]
    assert len(scores) == 24
    for prompt, chosen in zip(rows, pairs["chosen"].to_list(), strict=True):
        expected = by_processor(processor, prompt, name)
        known = expected["input_ids"][0, 1:]
        alone = model(**expected, use_cache=False).logits[0, :-1].log_softmax(-1)
        alone = alone.gather(1, known[:, None])[:, 0]
        assert torch.allclose(scores[chosen], alone[-len(scores[chosen]) :], atol=2e-5)


def test_what_cannot_be_said_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor_folder("qwen2_vl", folder)
    rows = prompts(4, tmp_path / "frames", videos=False)
    packed(folder, [prompt.row for prompt in rows], tmp_path / "ds")
    rule = open_dataset(tmp_path / "ds").processor["image_rule"]
    settings = PlanSettings(budget=Budget(tokens=9999), packs_per_step=1)
    batch = next(PreferenceLoader(tmp_path / "ds", plan_json(settings, rule)))
    with pytest.raises(InputError, match="a prompt is shared"):
        batch.model_inputs(attention="varlen")
    pairs = settings.model_copy(update={"unit": "pair"})
    batch = next(PreferenceLoader(tmp_path / "ds", plan_json(pairs, rule)))
    inputs = batch.model_inputs(attention="varlen", dtype=torch.bfloat16)
    assert inputs["cu_seq_lens_q"].tolist() == batch.cu_seqlens.tolist()
    assert inputs["max_length_k"] == int((batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).max())
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert "attention_mask" not in inputs
