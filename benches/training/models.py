"""Small random models of two families with their processors, saved as Hugging Face folders.

The vocabulary is a byte-level BPE trained on made-up words until it has 32,000 entries, so that the
head is as large beside the layers as that of a small released model.
"""

import random
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 32_000
FAMILIES = ("llava_onevision", "qwen2_vl")
PICTURE_SIDE = {"llava_onevision": 224, "qwen2_vl": 504}
"""Pixels; pictures of this side are not resized, and have 336 and 324 tokens."""
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
}
_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_ENDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save_model(family: str, folder: Path) -> None:
    """Model and processor of a family, both with ``AutoProcessor`` and ``AutoModel`` to load."""
    torch.manual_seed(0)
    model, processor = _llava_onevision() if family == "llava_onevision" else _qwen2_vl()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def made_up_words(count: int) -> list[str]:
    """Distinct words of two to four syllables, always the same ones."""
    generator = random.Random(0)
    syllables = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(generator.choices(syllables, k=generator.randint(2, 4)))] = None
    return list(words)


def _tokenizer(special: list[str], image: str) -> hf.PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*_ENDS, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = made_up_words(34_000)
    # The first words stand in the text more often, so that each of them becomes one token.
    bare.train_from_iterator([" ".join(["", *words[:1000]] * 20), " ".join(["", *words])], trainer)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
    )
    fast.chat_template = _TEMPLATE.replace("IMAGE", image)
    return fast


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, **ids, "vocab_size": len(tokenizer), **more}


def _llava_onevision() -> tuple[Any, Any]:
    """Tiles of 112 pixels, 64 tokens each."""
    tokenizer = _tokenizer(["<image>", "<video>"], "<image>")
    side, patch = 112, 14
    canvases = [[side * down, side * across] for down in (1, 2) for across in (1, 2)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
            vision_use_head=False,
        ),
        text_config=hf.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=canvases,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    size = {"height": side, "width": side}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=canvases
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        vision_aspect_ratio="anyres_max_4",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen2_vl() -> tuple[Any, Any]:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _tokenizer(special, "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(special)
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = hf.Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": PICTURE_SIDE["qwen2_vl"] ** 2}
    processor = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorPil(size=size),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(size=size),
        chat_template=tokenizer.chat_template,
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor
