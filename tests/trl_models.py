"""Tiny models with tokenizer or processor, and preferences with margins, all made in code."""

from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
}
QUESTIONS = ("How many objects are there?", "Describe the picture.", "What is left of the circle?")
ANSWERS = (
    "Three cats.",
    "A red square and two dogs.",
    "There is nothing.",
    "Blue",
    "Some dots there.",
)
_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


class Tiny(NamedTuple):
    """A model, and what makes its inputs."""

    model: Any
    processor: Any


def tokenizer(special: tuple[str, ...] = (), image: str = "") -> Any:
    """A byte-level BPE trained on a few sentences."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([*QUESTIONS, *ANSWERS], trainer)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(special),
    )
    fast.chat_template = _TEMPLATE.replace("IMAGE", image)
    return fast


def _text(fast: Any, **more: Any) -> dict[str, Any]:
    ids = {"eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    return {**TEXT, **ids, "vocab_size": len(fast), **more}


def text_model(config: Any = None, **more: Any) -> Tiny:
    """A Qwen2, or a model of another class of config."""
    fast = tokenizer()
    torch.manual_seed(0)
    made = (config or hf.Qwen2Config)(**_text(fast, **more))
    return Tiny(hf.AutoModelForCausalLM.from_config(made), fast)


def llava_onevision() -> Tiny:
    """Tiles of 56 pixels, 16 tokens each."""
    fast = tokenizer(("<image>", "<video>"), "<image>")
    side, patch = 56, 14
    canvases = [[side * down, side * across] for down in (1, 2) for across in (1, 2)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=side,
            patch_size=patch,
            vision_use_head=False,
        ),
        text_config=hf.Qwen2Config(**_text(fast)),
        image_token_id=fast.convert_tokens_to_ids("<image>"),
        video_token_id=fast.convert_tokens_to_ids("<video>"),
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
        tokenizer=fast,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=fast.chat_template,
        vision_aspect_ratio="anyres_max_4",
    )
    torch.manual_seed(0)
    return Tiny(hf.LlavaOnevisionForConditionalGeneration(config), processor)


def qwen2_vl() -> Tiny:
    """Pictures of at most 16 tokens."""
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    fast = tokenizer(special, "<|vision_start|><|image_pad|><|vision_end|>")
    start, end, image, video = fast.convert_tokens_to_ids(list(special))
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = hf.Qwen2VLConfig(
        text_config=_text(fast, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
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
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    processor = hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorPil(size=size),
        tokenizer=fast,
        video_processor=hf.Qwen2VLVideoProcessor(size=size),
        chat_template=fast.chat_template,
    )
    torch.manual_seed(0)
    return Tiny(hf.Qwen2VLForConditionalGeneration(config), processor)


VISION = {"llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl}


def preferences(pictures: bool, count: int = 6) -> list[dict[str, Any]]:
    """Rows in TRL's conversational columns: answers of odd lengths, margins from -1 to 6."""
    draw = np.random.default_rng(0)
    rows = []
    for place, margin in enumerate(np.linspace(-1.0, 6.0, count)):
        width, height = (int(side) for side in draw.integers(30, 120, 2))
        pixels = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
        text = {"type": "text", "text": QUESTIONS[place % len(QUESTIONS)]}
        parts = [{"type": "image"}, text] if pictures else text["text"]
        chosen, rejected = (" ".join(draw.choice(ANSWERS, draw.integers(1, 3))) for _ in "12")
        row = {
            "prompt": [{"role": "user", "content": parts}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": f"{rejected} {place}"}],
            "margin": float(margin),
        }
        rows.append(row | ({"images": [Image.fromarray(pixels)]} if pictures else {}))
    return rows
