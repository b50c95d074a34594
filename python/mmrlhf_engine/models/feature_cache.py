"""The outputs of a frozen vision tower, before the projector, kept on disk.

They are the same in every epoch and for every policy with this tower. An entry is a file of its
own, named by what it depends on: the prepared bytes of the picture, the weights and settings of the
tower, and the type it computes in. It is written beside its name and renamed, so that processes may
share a folder, and carries a checksum. Nothing is ever removed; the folder may be deleted.

An entry has the bytes of all hidden states of a picture: a tower of width 1,152 gives 1.7 MB for
each tile of 729 patches in bfloat16.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.vision import Vision
from mmrlhf_engine.models.parts import is_partitioned, part_of

__all__ = ["FeatureCache", "TowerFeatures"]

_LOG = logging.getLogger(__name__)
_CHECKSUM = "sha256"
_NAME = "features"
# Of a tower's configuration, what no output depends on.
_NOT_SETTINGS = ("transformers_version", "dtype", "torch_dtype", "architectures")


class FeatureCache:
    """A folder of outputs of vision towers.

    Args:
        folder: Made where it is not there.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def of_tower(self, model: Any, vision: Vision) -> "TowerFeatures":
        """The entries of one model's tower.

        Args:
            model: A ``PreTrainedModel``, all of its weights there.
            vision: Where its tower is.

        Raises:
            ConfigError: the tower is trained, or its weights are divided between ranks.
        """
        return TowerFeatures(self.folder, model, vision)


class TowerFeatures:
    """The outputs of one frozen tower; see :class:`FeatureCache`.

    Its weights are hashed when the first picture is asked for: they must not change after that.
    """

    def __init__(self, folder: Path, model: Any, vision: Vision) -> None:
        self._folder = folder
        self._vision = vision
        self._config = model.config
        self._tower = _of_tower(model.named_parameters(), model, vision)
        # The statistics of a batch norm; what is rebuilt from the configuration is not kept.
        kept = model.state_dict(keep_vars=True)
        buffers = ((name, value) for name, value in model.named_buffers() if name in kept)
        self._buffers = _of_tower(buffers, model, vision)
        self._check_frozen()
        if is_partitioned(model):
            raise ConfigError(
                "features: the tower's weights are divided between ranks",
                hint="ZeRO stage 2, or features=None",
            )

    def _check_frozen(self) -> None:
        trained = [name for name, parameter in self._tower.items() if parameter.requires_grad]
        if trained:
            raise ConfigError(
                f"features: the tower is trained ({trained[0]})",
                hint="freeze the tower, and leave it out of an adapter; or features=None",
            )

    @cached_property
    def _identity(self) -> str:
        """Of the weights, and of the settings that the output depends on."""
        self._check_frozen()
        hashed = hashlib.sha256()
        for name, weight in sorted({**self._tower, **self._buffers}.items()):
            hashed.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            hashed.update(_bytes_of(weight))
        config = self._config
        settings = {
            name: value
            for name, value in config.vision_config.to_dict().items()
            if name not in _NOT_SETTINGS and not name.startswith("_")
        }
        layer = getattr(config, "vision_feature_layer", None)
        strategy = getattr(config, "vision_feature_select_strategy", None)
        told = [config.model_type, settings, layer, strategy]
        hashed.update(json.dumps(told, sort_keys=True, default=str).encode())
        return hashed.hexdigest()

    @torch.no_grad()
    def encode(self, base: Any, pictures: DistinctPictures) -> Tensor:
        """The tower's output [B, ...] of all pictures, computed for those that are not there yet.

        Args:
            base: The base model.
            pictures: Of a pack.
        """
        device = pictures.pixels.device
        files = [self._file(content, device.type) for content in pictures.hashes]
        found = [_read(file) for file in files]
        missing = [place for place, kept in enumerate(found) if kept is None]
        if missing:
            blocks = pictures.split(pictures.pixels)
            pixels = torch.cat([blocks[place] for place in missing])
            encoded = self._vision.encode(base, pixels, pictures.grids[missing])
            parts = encoded.split([len(blocks[place]) for place in missing])
            for place, part in zip(missing, parts, strict=True):
                found[place] = part
                _write(files[place], part)
        return torch.cat([kept.to(device) for kept in found if kept is not None])

    def _file(self, content: str, device: str) -> Path:
        autocast = torch.is_autocast_enabled(device)
        computed = str(torch.get_autocast_dtype(device)) if autocast else "as the weights"
        told = json.dumps([content, self._identity, computed])
        name = hashlib.sha256(told.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _read(file: Path) -> Tensor | None:
    """An entry; None where it is not there, or damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(_NAME)
            expected = (opened.metadata() or {}).get(_CHECKSUM)
    except (OSError, SafetensorError) as error:
        _LOG.warning("%s: cannot be read, and is computed again: %s", file, error)
        return None
    if hashlib.sha256(_bytes_of(tensor)).hexdigest() != expected:
        _LOG.warning("%s: its checksum is wrong, and it is computed again", file)
        return None
    return tensor


def _write(file: Path, tensor: Tensor) -> None:
    from safetensors.torch import save

    # A part of a tensor would be saved with the memory of the whole.
    own = tensor.detach().cpu().clone().contiguous()
    checksum = hashlib.sha256(_bytes_of(own)).hexdigest()
    content = save({_NAME: own}, {_CHECKSUM: checksum})
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        Path(partial).replace(file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _of_tower(
    tensors: Iterable[tuple[str, Tensor]], model: Any, vision: Vision
) -> dict[str, Tensor]:
    return {name: one for name, one in tensors if part_of(name, model, vision) == "tower"}
