"""Whether shards were packed for the model that is to read them.

Token ids, the chat template and the layout of pictures are those of one model's tokenizer and
processor. Under another one, training would run and mean nothing, so a difference is an error.
"""

import hashlib
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.policy import processor_record
from mmrlhf_engine.run.differences import differences
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer, sha256_of_tokenizer

__all__ = ["check_model_fits", "model_folder"]


def check_model_fits(dataset: ShardDataset, model: str, *, other_template: bool) -> None:
    """Compare tokenizer, chat template and processor of a model with those of a dataset.

    Args:
        dataset: The shards.
        model: A name on the hub or a folder.
        other_template: Whether the chat template may be another one.

    Raises:
        InputError: something differs; the message says what, and what it is on both sides.
    """
    tokenizer = load_fast_tokenizer(model, needed_for="training")
    recorded = dataset.tokenizer
    found = {"tokenizer": sha256_of_tokenizer(tokenizer, model)}
    expected = {"tokenizer": recorded.get("sha256")}
    template = tokenizer.chat_template
    if template is not None and not other_template:
        found["chat_template"] = hashlib.sha256(_text_of(template).encode()).hexdigest()
        expected["chat_template"] = recorded.get("chat_template_sha256")
    lines = differences("", expected, found)
    if dataset.processor is not None:
        record = processor_record(model)
        if record is None:
            family = dataset.processor.get("family")
            lines.append(f"processor: found that of {family}, but the model reads text alone")
        else:
            lines += differences("processor", dataset.processor, record)
    if lines:
        raise InputError(
            f"{dataset.path}: packed for another model than {model}; found in the shards, expected "
            f"by the model: {'; '.join(lines)}",
            hint="pack with --model of this model; a template of one's own needs "
            "other_template=true",
        )


def _text_of(template: Any) -> str:
    """A model may have several templates by name; the default one is used."""
    if isinstance(template, dict):
        return str(template.get("default", ""))
    return str(template)


def model_folder(name: str) -> Path:
    """The folder of a model's files: itself, or where the hub's files are kept on this machine."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils import cached_file

    return Path(str(cached_file(name, "config.json"))).parent
