"""An export for TRL is loaded by ``datasets`` and trains a small Qwen2-VL by TRL's ``DPOTrainer``.

Skipped where TRL and datasets are not installed; ``make bench`` runs it where they are.
"""

import copy
import math

import pytest

from mmrlhf_engine import run_pack
from mmrlhf_engine.shards.export import export
from pack_data import CHATML, picture, put, tokenizer_folder, words, write_lines

pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

VISION = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer with the special tokens of Qwen2-VL, and it."""
    from transformers import AutoTokenizer

    folder = tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))
    fast = AutoTokenizer.from_pretrained(folder)
    fast.add_special_tokens({"additional_special_tokens": VISION})
    fast.pad_token = "<|endoftext|>"
    fast.save_pretrained(folder)
    return folder, fast


def qwen2_vl(fast):
    """A model of random weights, and its processor."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    ids = {name: fast.convert_tokens_to_ids(name) for name in VISION}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(fast),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
            "eos_token_id": fast.eos_token_id,
            "pad_token_id": fast.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**size),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(**size),
        chat_template=CHATML,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def exported(tmp_path, folder, counts):
    """Pairs whose prompts have so many pictures, packed, exported and loaded."""
    for number in range(max(counts)):
        put(tmp_path / f"{number}.png", picture(seed=number))
    rows = [
        {
            "images": [f"{number}.png" for number in range(count)],
            "prompt": "<image>" * count + words(row),
            "chosen": words(100 + row),
            "rejected": words(200 + row),
            "margin": 0.5,
        }
        for row, count in enumerate(counts)
    ]
    source = write_lines(tmp_path / "pairs.jsonl", rows)
    settings = {"tokenizer": str(folder), "image_rule": "qwen2_vl"}
    run_pack(source, tmp_path / "shards", settings)
    file = tmp_path / "trl.parquet"
    options = {"tokenizer": str(folder), "image_token": "<|image_pad|>"}
    export(tmp_path / "shards", file, to="trl", **options)
    return datasets.load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )


# What TRL, transformers and torch warn each other of is not ours.
@pytest.mark.filterwarnings("default")
def test_an_export_with_pictures_trains_by_trl(tokenizer, tmp_path):
    import torch
    from trl import DPOConfig, DPOTrainer

    folder, fast = tokenizer
    data = exported(tmp_path, folder, [1, 2, 1, 1])
    assert data.features["images"] == datasets.List(datasets.Image())
    assert [[image.size for image in row["images"]] for row in data.select(range(2))] == [
        [(64, 48)],
        [(64, 48)] * 2,
    ]
    torch.manual_seed(0)
    model, processor = qwen2_vl(fast)
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=4,  # all pairs: the second step has those of the first
            learning_rate=2e-3,
            logging_steps=1,
            max_length=None,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=data,
        processing_class=processor,
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print("losses", losses)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # no preference yet
    assert losses[1] < losses[0]
    changed = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    assert any("visual" in name for name in changed)
