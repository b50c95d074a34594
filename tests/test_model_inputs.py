"""`batch.model_inputs` in the forward of each family: packed answers score as each one alone."""

import pytest
import torch
import transformers as hf

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

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
}
SIDES = {"qwen2_vl": 56, "qwen2_5_vl": 56, "qwen3_vl": 64}
"""Of frames in pixels."""


def tiny_model(name, processor):
    """A random model that fits the tiny processor of a family."""
    tokenizer = processor.tokenizer
    text = TEXT | {"vocab_size": len(tokenizer)}
    ids = {"image_token_id": processor.image_token_id}
    if getattr(processor, "video_token_id", None) is not None:
        ids["video_token_id"] = processor.video_token_id
    torch.manual_seed(0)
    if name.startswith("qwen"):
        vision = {"depth": 2, "num_heads": 2, "temporal_patch_size": 2, "spatial_merge_size": 2}
        rope = dict(ROPE)
        if name == "qwen2_vl":
            vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
            kind = hf.Qwen2VLConfig
        elif name == "qwen2_5_vl":
            vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
            vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
            vision |= {"tokens_per_second": 2}
            kind = hf.Qwen2_5_VLConfig
        else:
            vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
            vision |= {"patch_size": 16, "num_position_embeddings": 36}
            vision |= {"deepstack_visual_indexes": [0, 1]}
            rope |= {"mrope_interleaved": True}
            text |= {"head_dim": 8}
            kind = hf.Qwen3VLConfig
        config = kind(text_config=text | {"rope_parameters": rope}, vision_config=vision, **ids)
    elif name == "llava_onevision":
        config = hf.LlavaOnevisionConfig(
            vision_config=hf.SiglipVisionConfig(**TOWER, patch_size=5, vision_use_head=False),
            text_config=hf.Qwen2Config(**text),
            image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
            **ids,
        )
    elif name in ("llava", "llava_next"):
        kind, more = hf.LlavaConfig, {}
        if name == "llava_next":
            pinpoints = processor.image_processor.image_grid_pinpoints
            kind, more = hf.LlavaNextConfig, {"image_grid_pinpoints": pinpoints}
        config = kind(
            vision_config=hf.CLIPVisionConfig(**TOWER, patch_size=7),
            text_config=hf.Qwen2Config(**text),
            vision_feature_layer=-1,
            **ids,
            **more,
        )
    else:
        config = hf.InternVLConfig(
            vision_config=TOWER | {"image_size": [28, 28], "patch_size": [7, 7]},
            text_config=text | {"model_type": "qwen2"},
            downsample_ratio=0.5,
            **ids,
        )
    model = hf.AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


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
