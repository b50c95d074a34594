"""Tiny random models of every family, for the tiny processors of ``model_families``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from mmrlhf_engine import Budget, PlanSettings, PreferenceLoader, open_dataset, plan_json
from model_families import WITH_VIDEOS, Prompt, processor_folder, prompts
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


def tiny_model(name, processor, sharpness=3.0):
    """A random model that fits the tiny processor of a family.

    Its weights are scaled so that a token seen or not seen matters.
    """
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
            parameter.mul_(sharpness)
    return model


@dataclass
class Case:
    """A model of a family saved to a folder, and preferences packed for it."""

    name: str
    folder: Path
    dataset: Path
    processor: Any
    model: Any
    prompts: list[Prompt]

    def batches(self, unit="query", tokens=2500, too_large="error", **settings):
        """The packs of the dataset, in order; ``settings`` are the loader's."""
        rule = open_dataset(self.dataset).processor["image_rule"]
        plan = PlanSettings(
            budget=Budget(tokens=tokens),
            packs_per_step=settings.get("world_size", 1),
            unit=unit,
            seed=3,
            too_large=too_large,
        )
        return PreferenceLoader(self.dataset, plan_json(plan, rule), threads=1, **settings)

    def alone(self, kind):
        """Row of the response, and arguments of ``forward``, of each prompt with one answer.

        ``kind`` is ``chosen`` or ``rejected``; the arguments are the processor's.
        """
        rows = open_dataset(self.dataset).pairs.collect()[kind].to_list()
        for prompt, row in zip(self.prompts, rows, strict=True):
            answered = replace(prompt, row={**prompt.row, "chosen": prompt.row[kind]})
            yield row, by_processor(self.processor, answered, self.name)


def make_case(name, folder, *, count=12, seed=3, sharpness=2.0, frames=None):
    """See :class:`Case`. Videos of one prompt are of one length, as some processors stack them."""
    saved = folder / "model"
    saved.mkdir()
    processor = processor_folder(name, saved)
    model = tiny_model(name, processor, sharpness)
    model.save_pretrained(saved)
    # Frames that no processor resizes, as that is not the same to the last bit.
    side = SIDES.get(name, 28)
    videos = {"videos": name in WITH_VIDEOS, "frames": frames, "side": side}
    rows = prompts(count, folder / "frames", seed=seed, **videos)
    packed(saved, [prompt.row for prompt in rows], folder / "ds")
    return Case(name, saved, folder / "ds", processor, model, rows)
