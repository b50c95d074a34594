"""Import a checkpoint of LLaVA-NeXT's code, as MM-RLHF released its models, for transformers.

Weights are renamed and their shapes checked, one at a time; the configuration is converted. Where
the checkpoint has a reward head, what is written is a reward model, else a policy. Nothing is
written unless every weight of the source has a place and every weight of the model has a value.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.families import family_of
from mmrlhf_engine.models.families.files import read_processor_files
from mmrlhf_engine.models.parts import REWARD_HEAD
from mmrlhf_engine.models.released_config import check_released, released_config
from mmrlhf_engine.models.released_files import StoredTensor, stored_tensors, write_tensors
from mmrlhf_engine.models.released_names import is_computed, released_name, transformers_name
from mmrlhf_engine.models.reward_head import RewardHeadSettings, reward_class
from mmrlhf_engine.train.checkpoint import copy_processor
from mmrlhf_engine.train.compatible import model_folder

__all__ = ["Imported", "import_checkpoint"]

_IMAGE_TOKEN, _VIDEO_TOKEN = 151_646, 151_647
"""Ids of <image> and <video> in LLaVA-OneVision's tokenizers, which extend that of Qwen2."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 8


@dataclass(frozen=True)
class Imported:
    """What was written."""

    kind: str
    """The class of the model."""
    activation: str | None
    """Of its reward head; None for a policy."""
    weights: int
    """How many tensors."""
    left_out: tuple[str, ...]
    """Buffers of the source that are computed, not read."""


def import_checkpoint(
    source: Path, out: Path, *, processor: str | None = None, shard_bytes: int = 5_000_000_000
) -> Imported:
    """Write a folder for transformers from one of LLaVA-NeXT's code.

    Args:
        source: With ``config.json`` and weights as safetensors or ``pytorch_model*.bin``.
        out: The new folder; it must not be there.
        processor: A name on the hub or a folder of a LLaVA-OneVision of transformers, whose
            tokenizer and processor are copied; None leaves them out.
        shard_bytes: Of a file of weights.

    Raises:
        ConfigError: there is a weight without a place, a place without a weight, another shape, a
            setting that transformers does not follow, or a processor of another model.
        InputError: there is no such source, or ``out`` is there.
        CorruptDataError: a file of weights cannot be read.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder", hint="the folder of the checkpoint")
    if out.exists():
        raise InputError(f"{out}: is there, expected a new folder", hint="another --out")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{out}: {above} is a file, expected a folder", hint="another --out")
    files = stored_tensors(source)
    settings = _settings(source)
    check_released(settings, str(source))
    left_out = tuple(sorted(name for name in files if is_computed(name)))
    named = _renamed(source, {name: files[name] for name in files if name not in left_out})
    config = _config(source, settings, processor)
    head = _head(source, settings, named)
    model = _empty_model(source, config, head)
    _check(source, model, named, tied=config.tie_word_embeddings)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(partial)
        if processor is not None:
            copy_processor(model_folder(processor), partial)
        write_tensors(partial, named, shard_bytes=shard_bytes)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    activation = None if head is None else head.activation
    return Imported(type(model).__name__, activation, len(named), left_out)


def _renamed(source: Path, files: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    names = {name: transformers_name(name) for name in files}
    unknown = sorted(name for name, own in names.items() if own is None)
    if unknown:
        raise ConfigError(
            f"{source}: {len(unknown)} weights have names that are unknown: {', '.join(unknown)}",
            hint="expected the names of LLaVA-OneVision on Qwen2 in LLaVA-NeXT's code",
        )
    return {str(names[name]): _kept_in_float32(str(names[name]), files[name]) for name in files}


def _kept_in_float32(name: str, tensor: StoredTensor) -> StoredTensor:
    """The head is read in float32 whatever the model's type, so it is written in it."""
    if not name.startswith(f"{REWARD_HEAD}.") or tensor.dtype not in _FLOATS:
        return tensor
    return StoredTensor(tensor.shape, torch.float32, tensor.read)


def _settings(source: Path) -> dict[str, Any]:
    """The content of ``config.json``."""
    file = source / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file", hint="the folder of the checkpoint") from None
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file}: found {type(settings).__name__}, expected a JSON object")
    return settings


def _config(source: Path, settings: Mapping[str, Any], processor: str | None) -> Any:
    if processor is None:
        return released_config(
            settings, str(source), image_token=_IMAGE_TOKEN, video_token=_VIDEO_TOKEN
        )
    from transformers import AutoTokenizer

    try:
        files = read_processor_files(processor)
    except ConfigError as error:
        # The function reads that of --model elsewhere.
        found = str(error.args[0]).removeprefix("--model ").removeprefix(f"{processor}: ")
        raise ConfigError(
            f"--processor {processor}: {found}",
            hint="a LLaVA-OneVision of transformers, as a folder or a name on the hub",
        ) from None
    family = family_of(files)
    if family.name != "llava_onevision":
        raise ConfigError(f"--processor {processor}: that of {family.name}, not llava_onevision")
    tokenizer = AutoTokenizer.from_pretrained(processor)
    image, video = (
        _token(processor, tokenizer, str(files.processor.get(f"{kind}_token") or f"<{kind}>"))
        for kind in ("image", "video")
    )
    config = released_config(settings, str(source), image_token=image, video_token=video)
    _fit(config, family.read(files, tokenizer).image_rule, processor)
    return config


def _token(processor: str, tokenizer: Any, token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ConfigError(f"--processor {processor}: its tokenizer has no token {token}")
    return int(found)


def _fit(config: Any, rule: Mapping[str, Any], processor: str) -> None:
    """Compare how the processor and the model divide pictures; take over the order of canvases."""
    vision = config.vision_config
    expected = {
        "tile": vision.image_size,
        "tile_tokens": (vision.image_size // vision.patch_size) ** 2,
        "max_tiles": int(config.vision_aspect_ratio.removeprefix("anyres_max_")),
        "canvases": sorted(map(list, config.image_grid_pinpoints)),
    }
    found = {**rule, "canvases": sorted(map(list, rule["canvases"]))}
    differ = [
        f"{key} {found[key]}, not {expected[key]}"
        for key in expected
        if found[key] != expected[key]
    ]
    if differ:
        raise ConfigError(
            f"--processor {processor}: divides pictures otherwise than the model: "
            f"{'; '.join(differ)}",
            hint="the processor of the LLaVA-OneVision that the checkpoint began as",
        )
    config.image_grid_pinpoints = [list(size) for size in rule["canvases"]]


def _head(
    source: Path, settings: Mapping[str, Any], named: Mapping[str, StoredTensor]
) -> RewardHeadSettings | None:
    """The released head has two layers and tanh; one of one layer is that of the paper."""
    own = {name for name in named if name.startswith(f"{REWARD_HEAD}.")}
    if own:
        two = any(name.startswith(f"{REWARD_HEAD}.dense.") for name in own)
        return RewardHeadSettings(activation="tanh" if two else "linear")
    if settings.get("is_rm"):
        raise ConfigError(
            f"{source}: config.json says is_rm, but there are no weights of {REWARD_HEAD}",
            hint="get all files of the checkpoint",
        )
    return None


def _empty_model(source: Path, config: Any, head: RewardHeadSettings | None) -> Any:
    """The model without values, for names and shapes."""
    from transformers import LlavaOnevisionForConditionalGeneration

    kind: Any = LlavaOnevisionForConditionalGeneration
    if head is not None:
        config.is_rm, config.reward_head = True, head.model_dump()
        kind = reward_class(kind)
    try:
        with torch.device("meta"):
            return kind(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"{source}: no model can be made of its config.json: {error}") from None


def _check(source: Path, model: Any, named: dict[str, StoredTensor], *, tied: bool) -> None:
    """Every weight has a place and every place a weight, of one shape and a type that is kept."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if tied:
        del wanted["lm_head.weight"]
        _remove_tied_head(source, named)
    problems = {
        "have no place in the model": [name for name in named if name not in wanted],
        "are missing": [name for name in wanted if name not in named],
        "have another shape": [
            name for name in named if wanted.get(name, named[name].shape) != named[name].shape
        ],
        "are neither float32, float16 nor bfloat16": [
            name for name, value in named.items() if value.dtype not in _FLOATS
        ],
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(_described(name, named, wanted) for name in sorted(names)[:_SHOWN])
            raise ConfigError(
                f"{source}: {len(names)} weights {problem}: {shown}"
                f"{', ...' if len(names) > _SHOWN else ''}",
                hint="the files of the checkpoint must fit its config.json",
            )


def _described(
    name: str, named: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]
) -> str:
    shapes = ""
    if name in named and name in wanted and named[name].shape != wanted[name]:
        shapes = f" {list(named[name].shape)}, expected {list(wanted[name])}"
    return f"{released_name(name)}{shapes}"


def _remove_tied_head(source: Path, named: dict[str, StoredTensor]) -> None:
    """Leave out an output head that is the table of embeddings, as the configuration says."""
    head = named.pop("lm_head.weight", None)
    table = named.get("model.language_model.embed_tokens.weight")
    if head is not None and table is not None and not torch.equal(head.read(), table.read()):
        raise ConfigError(
            f"{source}: lm_head.weight differs from model.embed_tokens.weight, but "
            "tie_word_embeddings is true",
            hint="set tie_word_embeddings to false in its config.json",
        )
