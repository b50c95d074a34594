"""Every model family through pack and the loader, against the family's own processor."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from transformers.video_utils import VideoMetadata

from mmrlhf_engine import (
    Budget,
    PlanSettings,
    PreferenceLoader,
    open_dataset,
    plan_json,
)
from mmrlhf_engine.pack import pack
from model_families import MAKERS, TOKENS_PER_SECOND, WITH_VIDEOS, processor_folder, prompts

FRAMES_PER_SECOND = 2.0
PAIR = {"chosen": "A cat on a table.", "rejected": "A dog."}


def packed(folder, rows, out, **settings):
    """Pack rows given as Python objects for the processor in ``folder``."""
    pq.write_table(pa.Table.from_pylist([row_of(row) for row in rows]), folder / "rows.parquet")
    config = pack.PackConfig(
        sources=[str(folder / "rows.parquet")],
        model=str(folder),
        frames_per_second=FRAMES_PER_SECOND,
        root="/",
        **settings,
    )
    return pack.pack_dataset(config, out)


def row_of(row):
    """Messages as JSON would have them: parts of one type, or text."""
    prompt = [
        {"role": turn["role"], "content": [{"text": None, **part} for part in turn["content"]]}
        for turn in row["prompt"]
    ]
    return {**row, "prompt": prompt}


def alone(out, unit="response"):
    """Every unit of a dataset in a pack of its own, by the row of its first response."""
    dataset = open_dataset(out)
    settings = PlanSettings(
        budget=Budget(tokens=1), packs_per_step=1, unit=unit, too_large="alone", window=64
    )
    plan = plan_json(settings, dataset.processor and dataset.processor["image_rule"])
    loader = PreferenceLoader(out, plan, threads=1)
    return {int(b.sequence_response[b.sequence_response >= 0][0]): b for b in loader}


def by_processor(processor, prompt, name):
    """What the processor makes of prompt and chosen answer."""
    conversation = prompt.conversation()
    text = processor.apply_chat_template(conversation, tokenize=False)
    bos = processor.tokenizer.bos_token
    given = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    if prompt.videos:
        given["videos"] = [[np.array(frame) for frame in clip] for clip in prompt.videos]
        given["do_sample_frames"] = False
        given["video_metadata"] = [
            VideoMetadata(
                total_num_frames=len(clip),
                fps=FRAMES_PER_SECOND,
                frames_indices=list(range(len(clip))),
            )
            for clip in prompt.videos
        ]
    images = [prompt.images] if prompt.images else None
    return processor(text=[text], images=images, return_tensors="pt", **given)


def rope_index(name, processor, expected):
    """Position ids as the model of the family computes them."""
    kinds = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    if name not in kinds:
        return torch.arange(expected["input_ids"].shape[1])[None]
    vision = {"depth": 1, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if name == "qwen2_5_vl":
        vision["tokens_per_second"] = TOKENS_PER_SECOND
    config = getattr(hf, f"{kinds[name]}Config")(
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 8,
            "vocab_size": 64,
        },
        vision_config=vision,
    )
    with torch.device("meta"):
        model = getattr(hf, f"{kinds[name]}Model")(config)
    known = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = {key: expected[key] for key in known if key in expected}
    if "second_per_grid_ts" in grids:
        grids["second_per_grid_ts"] = torch.as_tensor(grids["second_per_grid_ts"])
    positions, _ = model.get_rope_index(
        expected["input_ids"], mm_token_type_ids=expected["mm_token_type_ids"], **grids
    )
    return positions


def largest_difference(mine, theirs):
    """Of normalised pixels, brought to units of one step of a byte."""
    assert mine.shape == theirs.shape
    return float((mine - theirs).abs().max()) if mine.numel() else 0.0


def compare(name, count, folder, tmp_path, seed):
    """Pack ``count`` prompts, and compare every one; the largest difference of pixels by kind."""
    processor = processor_folder(name, folder)
    rows = prompts(count, tmp_path / "frames", videos=name in WITH_VIDEOS, seed=seed)
    report = packed(folder, [prompt.row for prompt in rows], tmp_path / "ds")
    assert report["pairs_out"] == count, report["dropped"]
    dataset = open_dataset(tmp_path / "ds")
    batches = alone(tmp_path / "ds")
    chosen = dataset.pairs.collect()["chosen"].to_list()
    texts = dataset.queries.collect()["prompt_text"]
    assert len(texts) == count
    differences = {"pixel_values": 0.0, "pixel_values_videos": 0.0}
    for prompt, row in zip(rows, chosen, strict=True):
        expected = by_processor(processor, prompt, name)
        given = batches[row].model_inputs()
        assert given["input_ids"].tolist() == expected["input_ids"].tolist()
        assert torch.equal(given["position_ids"], rope_index(name, processor, expected))
        for key in ("image_grid_thw", "video_grid_thw", "image_sizes", "token_type_ids"):
            if key in expected:
                assert torch.equal(given[key], torch.as_tensor(expected[key])), key
        for key in differences:
            assert (key in given) == (key in expected), key
            if key in given:
                theirs = torch.as_tensor(expected[key])
                worst = largest_difference(given[key], theirs.to(given[key].dtype))
                differences[key] = max(differences[key], worst)
    return differences, processor


@pytest.mark.parametrize("name", MAKERS)
def test_a_family_is_as_its_processor(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    differences, processor = compare(name, 30, folder, tmp_path, seed=len(name))
    step = 1 / 255 / min(processor.image_processor.image_std)
    # InternVL has images and videos under one name.
    of_images = 2 if name == "internvl" else 0
    assert differences["pixel_values"] <= (of_images + 1e-3) * step
    # Video processors resize by torchvision, which rounds some bytes otherwise than Pillow.
    assert differences["pixel_values_videos"] <= (2 + 1e-3) * step
