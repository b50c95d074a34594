"""Processors of transformers for every family, tiny and made in code, and prompts for them."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pack_data import TEXTS

_VISION = ("<|vision_start|>", "<|vision_end|>")
_PARTS = (
    "{%- for message in messages -%}OPEN"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}IMAGE"
    "{%- elif part['type'] == 'video' -%}VIDEO"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}CLOSE{%- endfor -%}"
    "{%- if add_generation_prompt -%}START{%- endif -%}"
)
_CHATML = (
    _PARTS.replace("OPEN", "{{ '<|im_start|>' + message['role'] + '\\n' }}")
    .replace("CLOSE", "{{ '<|im_end|>\\n' }}")
    .replace("START", "{{ '<|im_start|>assistant\\n' }}")
)
# Images first, then videos, then text, as LLaVA-OneVision's own template has it.
_ONEVISION = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}"
    "{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'video') -%}"
    "{{ '<video>\\n' }}{%- endfor -%}"
    "{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}"
    "{{ part['text'] }}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_LLAVA = (
    _PARTS.replace("OPEN", "{{ message['role'].upper() + ': ' }}")
    .replace("CLOSE", "{{ ' ' if message['role'] == 'user' else '</s>' }}")
    .replace("START", "{{ 'ASSISTANT:' }}")
    .replace("IMAGE", "{{ '<image>\\n' }}")
)
_GEMMA = "{{ bos_token }}" + _PARTS.replace(
    "message['role']", "('model' if message['role'] == 'assistant' else 'user')"
).replace("OPEN", "{{ '<start_of_turn>' + ROLE + '\\n' }}").replace(
    "ROLE", "('model' if message['role'] == 'assistant' else 'user')"
).replace("CLOSE", "{{ '<end_of_turn>\\n' }}").replace(
    "START", "{{ '<start_of_turn>model\\n' }}"
).replace("IMAGE", "{{ '<start_of_image>' }}")


def _qwen_template() -> str:
    return _CHATML.replace("IMAGE", "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}").replace(
        "VIDEO", "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    )


def _tokenizer(
    special: tuple[str, ...], template: str, *, named: dict[str, str] | None = None, bos: str = ""
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained here; with ``bos``, one that puts this before every text."""
    from tokenizers.processors import TemplateProcessing

    ends = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *((bos, "</s>") if bos else ()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*ends, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "\n\n\n\n Frame1: <0.5 seconds>"], trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos or None,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named or {},
    )
    fast.chat_template = template
    return fast


def _qwen(name: str, patch: int) -> Any:
    tokens = (*_VISION, "<|image_pad|>", "<|video_pad|>")
    tokenizer, side = _tokenizer(tokens, _qwen_template()), 2 * patch
    least, most = side * side * 4, side * side * 30
    size = {"shortest_edge": least, "longest_edge": most}
    pixels = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.25, 0.2]}
    video_class = hf.Qwen3VLVideoProcessor if name == "Qwen3VL" else hf.Qwen2VLVideoProcessor
    scale = 6 if name == "Qwen3VL" else 1
    return getattr(hf, f"{name}Processor")(
        image_processor=hf.Qwen2VLImageProcessorPil(size=size, patch_size=patch, **pixels),
        tokenizer=tokenizer,
        video_processor=video_class(
            size={"shortest_edge": least * scale // 2, "longest_edge": most * scale // 2},
            patch_size=patch,
            **pixels,
        ),
        chat_template=tokenizer.chat_template,
    )


def _llava_onevision() -> Any:
    tokenizer = _tokenizer(("<image>", "<video>"), _ONEVISION)
    size = {"height": 28, "width": 28}
    canvases = [[28 * down, 28 * across] for down in (1, 2, 3) for across in (1, 2, 3)]
    return hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessorPil(
            size=size, image_grid_pinpoints=canvases
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        vision_aspect_ratio="anyres_max_4",
    )


def _llava_next() -> Any:
    tokenizer = _tokenizer(("<image>",), _LLAVA, bos="<s>")
    canvases = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    return hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=canvases,
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _llava(**settings: Any) -> Any:
    tokenizer = _tokenizer(("<image>",), _LLAVA, bos="<s>")
    return hf.LlavaProcessor(
        image_processor=hf.LlavaImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **settings
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _internvl() -> Any:
    template = _CHATML.replace("IMAGE", "{{ '<IMG_CONTEXT>\\n' }}").replace(
        "VIDEO", "{{ '<video>\\n' }}"
    )
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(tuple(named.values()), template, named=named)
    size = {"height": 28, "width": 28}
    return hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size=size, max_patches=5),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )


def _gemma3() -> Any:
    named = {
        "boi_token": "<start_of_image>",
        "image_token": "<image_soft_token>",
        "eoi_token": "<end_of_image>",
    }
    tokens = (*named.values(), "<start_of_turn>", "<end_of_turn>")
    tokenizer = _tokenizer(tokens, _GEMMA, named=named, bos="<bos>")
    return hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        chat_template=_GEMMA,
        image_seq_length=16,
    )


MAKERS = {
    "qwen2_vl": lambda: _qwen("Qwen2VL", 14),
    "qwen2_5_vl": lambda: _qwen("Qwen2_5_VL", 14),
    "qwen3_vl": lambda: _qwen("Qwen3VL", 16),
    "llava_onevision": _llava_onevision,
    "llava_next": _llava_next,
    "llava": _llava,
    "llava_padded": lambda: _llava(do_pad=True),
    "internvl": _internvl,
    "gemma3": _gemma3,
}
WITH_VIDEOS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")
TOKENS_PER_SECOND = 2


def processor_folder(name: str, folder: Path) -> Any:
    """The processor of a family, saved to a folder, with a minimal ``config.json``."""
    processor = MAKERS[name]()
    processor.save_pretrained(folder)
    config = {"vision_config": {"tokens_per_second": TOKENS_PER_SECOND}}
    (folder / "config.json").write_text(json.dumps(config))
    return processor


@dataclass
class Prompt:
    """A row as TRL writes it, and its pictures in the order of the parts."""

    row: dict[str, Any]
    images: list[Image.Image]
    videos: list[list[Image.Image]]

    def conversation(self) -> list[dict[str, Any]]:
        """The messages of the prompt and the chosen answer, pictures as bare parts."""
        return [*self.row["prompt"], *self.row["chosen"]]


def prompts(
    count: int,
    folder: Path,
    *,
    videos: bool,
    seed: int = 0,
    frames: int | None = None,
    side: int | None = None,
) -> list[Prompt]:
    """Random prompts of 0 to 4 images of odd sizes and 0 to 2 videos; frames go to ``folder``.

    Videos have ``frames`` frames with sides of ``side`` pixels, where these are given.
    """
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        images = [_picture(generator) for _ in range(generator.integers(0, 5))]
        # Of one length, as some processors stack the videos of a prompt.
        length = frames or int(generator.integers(2, 7))
        clips = [_clip(generator, length, side) for _ in range(generator.integers(0, 3) * videos)]
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        parts += [{"type": "video"} for _ in clips]
        parts += [{"type": "text", "text": _text(generator)} for _ in range(2)]
        generator.shuffle(parts)
        row = {
            "prompt": [{"role": "user", "content": parts}],
            "chosen": [{"role": "assistant", "content": f"{_text(generator)} {number}"}],
            "rejected": [{"role": "assistant", "content": "No."}],
            "images": [{"bytes": _png(image), "path": None} for image in images],
            "videos": [
                _write_frames(folder / f"{number}-{place}", clip)
                for place, clip in enumerate(clips)
            ],
        }
        made.append(Prompt(row, images, clips))
    return made


def _picture(generator: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in generator.integers(9, 130, 2))
    coarse = generator.integers(0, 255, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _clip(generator: np.random.Generator, length: int, side: int | None) -> list[Image.Image]:
    size = (side, side) if side else _picture(generator).size
    return [_picture(generator).resize(size) for _ in range(length)]


def _text(generator: np.random.Generator) -> str:
    vocabulary = " ".join(TEXTS).split()
    chosen = generator.integers(0, len(vocabulary), int(generator.integers(1, 6)))
    return " ".join(vocabulary[int(place)] for place in chosen)


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _write_frames(folder: Path, frames: list[Image.Image]) -> str:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number:03}.png")
    return str(folder)
