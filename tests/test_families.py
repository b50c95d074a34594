"""Every model family through pack and the loader, against the family's own processor."""

import json
import os
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.video_utils import VideoMetadata

from command import INSTALLED
from mmrlhf_engine import (
    Budget,
    PictureSettings,
    PlanSettings,
    PreferenceLoader,
    open_dataset,
    plan_json,
)
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.families import FAMILIES
from mmrlhf_engine.pack import pack
from model_families import MAKERS, TOKENS_PER_SECOND, WITH_VIDEOS, processor_folder, prompts
from pack_data import picture, put, write_lines

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


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_two_hundred_prompts_are_as_the_processor_makes_them(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    differences, processor = compare(name, 200, folder, tmp_path, seed=7)
    step = 1 / 255 / min(processor.image_processor.image_std)
    print(name, {key: round(value / step, 3) for key, value in differences.items()})
    assert differences["pixel_values"] <= (3 if name == "internvl" else 1e-3) * step
    assert differences["pixel_values_videos"] <= (3 + 1e-3) * step


def test_loading_takes_the_recorded_settings_and_refuses_others(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor_folder("qwen2_5_vl", folder)
    packed(folder, [prompts(1, tmp_path / "f", videos=False, seed=2)[0].row], tmp_path / "ds")
    recorded = open_dataset(tmp_path / "ds").processor
    assert recorded["family"] == "qwen2_5_vl"
    assert recorded["image_rule"]["video"]["tokens_per_second"] == TOKENS_PER_SECOND
    assert recorded["pictures"]["mean"] == [0.4, 0.5, 0.6]
    settings = PlanSettings(budget=Budget(tokens=9999), packs_per_step=1)
    plan = plan_json(settings, recorded["image_rule"])
    batch = next(PreferenceLoader(tmp_path / "ds", plan))
    assert batch.processor == recorded
    other = PictureSettings.model_validate(recorded["pictures"] | {"mean": [0.5, 0.5, 0.5]})
    with pytest.raises(InputError, match=r"pictures\.mean: found \[0\.5, 0\.5, 0\.5\]"):
        PreferenceLoader(tmp_path / "ds", plan, pictures=other)
    smaller = plan_json(settings, recorded["image_rule"] | {"max_pixels": 28 * 28 * 8})
    with pytest.raises(InputError, match=r"image_rule\.max_pixels: found 6272, expected 23520"):
        PreferenceLoader(tmp_path / "ds", smaller)


@pytest.mark.parametrize(
    ("processor", "error", "message"),
    [
        ({"processor_class": "Idefics3Processor"}, InputError, "found Idefics3Processor, expected"),
        ({"image_processor": {"do_rescale": False}}, ConfigError, "do_rescale is false"),
        ({"image_processor": {"rescale_factor": 0.5}}, ConfigError, "rescale_factor is 0.5"),
        ({"image_processor": {"resample": 0}}, ConfigError, "resample is 0"),
    ],
)
def test_a_processor_that_is_not_followed_is_refused(processor, error, message, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor_folder("qwen2_vl", folder)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    for key, value in processor.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(settings))
    row = prompts(1, tmp_path / "f", videos=False)[0].row
    with pytest.raises(error, match=message):
        packed(folder, [row], tmp_path / "ds")


def animation(folder, frames=6):
    """A GIF of frames of a tenth of a second each."""
    images = [Image.new("RGB", (56, 56), (40 * number, 90, 200)) for number in range(frames)]
    images[0].save(
        folder / "clip.gif", save_all=True, append_images=images[1:], duration=100, loop=0
    )


def test_an_animation_is_a_video_or_its_first_frame(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor_folder("qwen2_5_vl", folder)
    animation(tmp_path)
    names = [put(tmp_path / f"{side}.png", picture(side, 40)) for side in (40, 41)]
    rows = [
        {"video": "clip.gif", "prompt": "<video>What moves?", **PAIR},
        {"image": "clip.gif", "prompt": "<image>What is this?", **PAIR},
        {"video": [names], "prompt": "<video>Frames of two sizes?", **PAIR},
    ]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    config = pack.PackConfig(sources=[str(source)], model=str(folder), frames=4)
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["changed"] == {"first_frame": 1}
    assert report["dropped"] == {"frame_sizes": 1}
    batches = alone(tmp_path / "ds")
    video, image = (batches[row] for row in sorted(batches) if row % 2 == 0)
    assert video.image_frames.tolist() == [4]
    assert video.image_grid_thw[0][0] == 2
    times = open_dataset(tmp_path / "ds").queries.collect()["media_t"].to_list()[0]
    assert times == pytest.approx([0.0, 0.1, 0.3, 0.5])
    assert image.image_frames.tolist() == [0]


def test_a_family_without_videos_takes_their_frames_when_told(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor_folder("llava", folder)
    animation(tmp_path)
    rows = [{"video": "clip.gif", "prompt": "<video>What moves?", **PAIR}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    config = pack.PackConfig(sources=[str(source)], model=str(folder), frames=3)
    with pytest.raises(InputError, match="llava takes no videos; --videos frames"):
        pack.pack_dataset(config, tmp_path / "ds")
    pack.pack_dataset(config.model_copy(update={"videos": "frames"}), tmp_path / "frames")
    batch = next(iter(alone(tmp_path / "frames").values()))
    assert batch.placeholder_length.tolist() == [16, 16, 16]


def test_a_model_is_found_by_its_name_in_the_cache_of_the_hub(tmp_path):
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    processor_folder("qwen3_vl", snapshot)
    refs = tmp_path / "hub" / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    rows = [{"prompt": "Which?", **PAIR}]
    source = str(write_lines(tmp_path / "rows.jsonl", rows))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}

    def pack_by_name(name):
        command = [str(INSTALLED), "pack", source, "--out", str(tmp_path / "ds"), "--model", name]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    unknown = pack_by_name("org/other")
    assert unknown.returncode == 2
    assert "no file of such a model is on this machine" in unknown.stderr
    known = pack_by_name("org/tiny")
    assert known.returncode == 0, known.stderr
    assert open_dataset(tmp_path / "ds").processor["family"] == "qwen3_vl"


def test_families_are_known_by_one_name_each():
    assert len({family.processor_class for family in FAMILIES.values()}) == len(FAMILIES) == 8
