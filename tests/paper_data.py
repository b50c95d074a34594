"""Shards and model folders in the shape of MM-RLHF: LLaVA-OneVision, a picture, ranked answers."""

import io
import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np
import transformers as hf
from PIL import Image

from model_families import MAKERS
from pack_data import words
from test_families import packed

SIZES = [(1920, 1080), (640, 480), (384, 384), (1280, 720), (3000, 1500)]
"""Width and height in pixels; a picture of one colour is a small file. 1,485 to 7,284 tokens."""

TEXT = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
"""Qwen2 as published."""
TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
"""SigLIP so400m without its last layer, as LLaVA-OneVision has it."""


def model_folder(folder: Path, size: str) -> Path:
    """``config.json`` with published sizes and a processor with a tiny tokenizer; no weights."""
    tokenizer = MAKERS["llava_onevision"]().tokenizer
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessorPil(),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        vision_aspect_ratio="anyres_max_9",
    )
    processor.save_pretrained(folder)
    text = hf.Qwen2Config(**TEXT[size], max_position_embeddings=32_768)
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER),
        text_config=text,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


def paper_shards(model: Path, out: Path, queries: int, *, words_of_answer: int = 110) -> Path:
    """Queries with a picture, four answers, and 3 to 5 of the 6 pairs; 250 have 1,000."""
    rows = []
    for query in range(queries):
        prompt = [{"type": "image"}, {"type": "text", "text": words(query, 30)}]
        answers = [words(1000 + 10 * query + n, words_of_answer + 5 * n) for n in range(4)]
        sides = list(itertools.combinations(range(4), 2))
        for chosen, rejected in sides[: 3 + (query + 1) % 3]:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": answers[chosen]}],
                    "rejected": [{"role": "assistant", "content": answers[rejected]}],
                    "images": [{"bytes": _one_colour(query), "path": None}],
                    "margin": float(rejected - chosen),
                }
            )
    packed(model, rows, out)
    return out


@lru_cache
def _one_colour(number: int) -> bytes:
    image = Image.new("P", SIZES[number % len(SIZES)])
    image.putpalette(np.random.default_rng(number).integers(0, 255, 3).tolist())
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()
