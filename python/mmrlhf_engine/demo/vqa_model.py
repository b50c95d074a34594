"""A small vision-language model for the demo, as a folder like any other of transformers.

It is a LLaVA: EfficientNet-Lite0, which is trained, as its frozen tower, 2 x 2 tokens a picture, a
projector, and a text model of two layers that knows the words of the demo and nothing else. Every
command takes its folder as ``--model``. Only this file knows how it is made.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json

__all__ = ["JUDGE", "build_model"]

JUDGE = "judge the answer"
"""What the user's turn says to which a critique is the answer."""

_HIDDEN = 96
_LAYERS = 2
_HEADS = 3
_INITIAL = 0.1
"""Deviation of the first weights; the usual 0.02 is for wider models, and learns late here."""
_END = "<end>"
_IMAGE = "<image>"
_SPECIAL = ("<pad>", "<unk>", _END, _IMAGE, "<user>", "<assistant>")
# A turn of the user opens with its mark alone; an answer has one at its end as well.
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '<end>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}"
)
_MADE = "made.json"


def build_model(folder: Path, words: list[str], seed: int) -> Path:
    """Write weights, tokenizer and processor, unless they are there for the same arguments.

    Args:
        folder: Of the model.
        words: That it reads and writes, beside its special tokens and those of :data:`JUDGE`.
        seed: Of the weights that are not the tower's.

    Raises:
        MissingExtraError: a package of the ``[demo]`` extra is not installed.
    """
    known = sorted({*words, *JUDGE.split()})
    made = {
        "words": known,
        "seed": seed,
        "template": _TEMPLATE,
        "initial": _INITIAL,
    }
    if read_json(folder / _MADE) == made:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = _tokenizer(known)
    _processor(tokenizer).save_pretrained(folder)
    _write_weights(folder, tokenizer, seed)
    write_atomically(folder / _MADE, json.dumps(made))
    return folder


def _tokenizer(words: list[str]) -> Any:
    """A token a word; a text becomes words at white space and marks."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in _SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=_END
    )
    fast.chat_template = _TEMPLATE
    return fast


def _processor(tokenizer: Any) -> Any:
    """Pictures of 64 pixels, scaled as EfficientNet-Lite0 wants them: ``(x - 127) / 128``."""
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    side = 64
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=_IMAGE,
        chat_template=tokenizer.chat_template,
    )


def _write_weights(folder: Path, tokenizer: Any, seed: int) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, set_seed
    from transformers.utils import logging

    from mmrlhf_engine.models.lite0_tower import pretrained_lite0
    from mmrlhf_engine.models.tower_configs import Lite0TowerConfig

    ids = tokenizer.get_vocab()
    text = Qwen2Config(
        vocab_size=len(ids),
        hidden_size=_HIDDEN,
        intermediate_size=3 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=256,
        initializer_range=_INITIAL,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids[_END],
        pad_token_id=ids["<pad>"],
    )
    config = LlavaConfig(
        vision_config=Lite0TowerConfig(),
        text_config=text,
        image_token_index=ids[_IMAGE],
        image_seq_length=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    # Standard error may carry progress as JSON.
    logging.disable_progress_bar()
    set_seed(seed)
    model = LlavaForConditionalGeneration(config)
    tower = pretrained_lite0(config.vision_config)
    model.base_model.vision_tower.load_state_dict(tower.state_dict())
    model.save_pretrained(folder)
