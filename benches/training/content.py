"""The pairs of both sides: one Parquet file with encoded pictures, as ``datasets`` writes it."""

import io
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.models import PICTURE_SIDE, made_up_words

PROMPT = 360
"""Tokens of every prompt, picture and marks of the chat template included."""
_END = 2
"""Tokens of the end of an answer's turn, which count as the answer's."""


def write_pairs(
    processor: Any, family: str, file: Path, *, queries: int, answers: int, answer: int
) -> None:
    """All pairs of the answers of each query, the earlier answer being the better one.

    Args:
        processor: That of the model; it counts the tokens.
        family: One of ``training.models.FAMILIES``.
        file: The Parquet file to write.
        queries: How many; each has one picture.
        answers: Of each query.
        answer: Tokens of each answer, with the end of its turn.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as Picture

    words = _single_tokens(processor.tokenizer)
    side = PICTURE_SIDE[family]
    asked = PROMPT - _prompt_tokens(processor, side)
    message = List({"role": Value("string"), "content": Value("string")})
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {
            "images": List(Picture()),
            "prompt": List({"role": Value("string"), "content": List(part)}),
            "chosen": message,
            "rejected": message,
        }
    )
    generator = random.Random(1)
    rows = []
    for query in range(queries):
        picture = {"bytes": _jpeg(query, side), "path": None}
        question = "".join(generator.choices(words, k=asked))
        content = [{"type": "image", "text": None}, {"type": "text", "text": question}]
        texts = ["".join(generator.choices(words, k=answer - _END)) for _ in range(answers)]
        rows += [
            {
                "images": [picture],
                "prompt": [{"role": "user", "content": content}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for chosen, rejected in itertools.combinations(texts, 2)
        ]
    Dataset.from_list(rows, features=features).to_parquet(str(file))


def _single_tokens(tokenizer: Any) -> list[str]:
    """Words with a blank before them that are one token each."""
    words = [f" {word}" for word in made_up_words(1000)]
    return [word for word in words if len(tokenizer(word).input_ids) == 1]


def _prompt_tokens(processor: Any, side: int) -> int:
    """Tokens of a prompt that asks nothing about its picture."""
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor(text=text, images=[Image.new("RGB", (side, side))]).input_ids
    return len(ids[0])


def _jpeg(seed: int, side: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    content = io.BytesIO()
    picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    picture.save(content, "JPEG", quality=90)
    return content.getvalue()
