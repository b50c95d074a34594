"""``config.json`` of LLaVA-NeXT's code for LLaVA-OneVision on Qwen2, as transformers has it.

Settings under which that code computes something else than transformers does are refused by name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmrlhf_engine.errors import ConfigError

__all__ = ["check_released", "released_config"]

_TEXT = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
)
"""Settings of Qwen2, which lie beside those of the picture in the one file."""
_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "mm_vision_tower",
    "image_aspect_ratio",
)
_TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
"""Vision towers by the last part of their names."""
_RANGE = re.compile(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)")

_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "image_aspect_ratio": (
        "anyres_max_N",
        lambda found: re.fullmatch(r"anyres_max_\d+", str(found)) is not None,
    ),
    "mm_projector_type": ("mlp2x_gelu", lambda found: found == "mlp2x_gelu"),
    "mm_patch_merge_type": ("spatial_unpad", lambda found: found == "spatial_unpad"),
    "mm_spatial_pool_mode": ("bilinear", lambda found: found in (None, "bilinear")),
    "mm_newline_position": ("one_token", lambda found: found in (None, "one_token")),
    "mm_resampler_type": ("null", lambda found: found is None),
    "mm_use_im_start_end": ("false", lambda found: not found),
    "add_faster_video": ("false", lambda found: not found),
}


def released_config(
    source: Mapping[str, Any], name: str, *, image_token: int, video_token: int
) -> Any:
    """A ``LlavaOnevisionConfig``.

    Of the vision tower all layers but the last are kept, as LLaVA-NeXT's code keeps them, and its
    pooling head is left out.

    Args:
        source: The content of the released ``config.json``.
        name: Of its folder, for messages and towers in folders beside it.
        image_token: Id of the token that stands for an image.
        video_token: The same of a video.

    Raises:
        ConfigError: it is of another model, or of one that transformers computes otherwise.
    """
    from huggingface_hub.errors import StrictDataclassError

    check_released(source, name)
    try:
        return _converted(source, name, image_token=image_token, video_token=video_token)
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        # transformers checks the types of settings by errors of several classes.
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ConfigError(
            f"{name}: config.json has a setting of another type or value: {said}",
            hint="get the file again, as it was published",
        ) from None


def _converted(source: Mapping[str, Any], name: str, *, image_token: int, video_token: int) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config

    text = Qwen2Config(**{key: source[key] for key in _TEXT if key in source})
    vision = _tower(str(source["mm_vision_tower"]), name)
    highest = max(image_token, video_token)
    if highest >= text.vocab_size:
        raise ConfigError(
            f"{name}: vocab_size {text.vocab_size:,}, but the token of an image or a video is "
            f"{highest:,}",
            hint="a processor whose tokenizer has <image> and <video> within the vocabulary",
        )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        video_token_index=video_token,
        image_grid_pinpoints=_canvases(source.get("image_grid_pinpoints"), vision, name),
        vision_aspect_ratio=source["image_aspect_ratio"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(source.get("tie_word_embeddings", False)),
    )
    config.dtype = source.get("torch_dtype") or source.get("dtype")
    return config


def check_released(source: Mapping[str, Any], name: str) -> None:
    """Refuse what is no LLaVA-OneVision of LLaVA-NeXT's code, or is computed otherwise there.

    Args:
        source: The content of ``config.json``.
        name: Of its folder, for messages.

    Raises:
        ConfigError: it is; the message says what.
    """
    given = source.get("architectures") or []
    classes = ", ".join(map(str, given if isinstance(given, list) else [given]))
    if source.get("model_type") != "llava_qwen" and "LlavaQwen" not in classes:
        raise ConfigError(
            f"{name}: model_type {source.get('model_type')!r} ({classes or 'no architectures'}), "
            "expected llava_qwen",
            hint="a model in transformers' format already is read as it is, and needs no import",
        )
    missing = [key for key in _NEEDED if source.get(key) is None]
    if missing:
        raise ConfigError(f"{name}: config.json has no {', '.join(missing)}")
    for key, (expected, holds) in _EXPECTED.items():
        if not holds(source.get(key)):
            raise ConfigError(
                f"{name}: {key} is {source.get(key)!r}, expected {expected}",
                hint="the LLaVA-OneVision of transformers computes no other",
            )


def _tower(tower: str, name: str) -> Any:
    """The configuration of a SigLIP, by its name or from the ``config.json`` of its folder."""
    from transformers import AutoConfig, SiglipVisionConfig

    known = _TOWERS.get(PurePosixPath(tower).name)
    if known is None:
        folder = next((path for path in (Path(tower), Path(name) / tower) if path.is_dir()), None)
        found = None
        if folder is not None and (folder / "config.json").is_file():
            found = AutoConfig.from_pretrained(folder)
            found = getattr(found, "vision_config", found)
        if found is None or found.model_type != "siglip_vision_model":
            raise ConfigError(
                f"{name}: mm_vision_tower is {tower!r}, expected {', '.join(_TOWERS)}, or a folder "
                "with the config.json of a SigLIP",
                hint="put the config.json of the tower into such a folder",
            )
        known = found.to_dict()
    kept = known | {"num_hidden_layers": known["num_hidden_layers"] - 1, "vision_use_head": False}
    return SiglipVisionConfig(**kept)


def _canvases(found: Any, vision: Any, name: str) -> list[list[int]]:
    """Height and width of each canvas; in the source it is width and height, or a range of both."""
    range_of_tiles = _RANGE.fullmatch(found.replace(" ", "")) if isinstance(found, str) else None
    if range_of_tiles is not None:
        since, since_across, upto, upto_across = map(int, range_of_tiles.groups())
        found = [
            [across * vision.image_size, down * vision.image_size]
            for across in range(since, upto + 1)
            for down in range(since_across, upto_across + 1)
        ]
    if not isinstance(found, list) or not found:
        raise ConfigError(
            f"{name}: image_grid_pinpoints is {found!r}, expected a list of sizes or "
            "(1x1),...,(6x6)"
        )
    turned = [[height, width] for width, height in found]
    # Where the set has both directions, the order is kept, which decides between equal canvases,
    # as transformers' own conversion keeps it.
    same = {tuple(size) for size in turned} == {tuple(size) for size in found}
    return [list(size) for size in found] if same else turned
