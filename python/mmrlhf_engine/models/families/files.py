"""The JSON files that say what a model's processor does, read without torch.

transformers 5 writes one ``processor_config.json`` with the settings of the image and the video
processor inside; older checkpoints have a file each. What is missing has the value of the class.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import ConfigError, MissingExtraError

__all__ = ["ProcessorFiles", "read_processor_files"]

_PROCESSOR = "processor_config.json"
_IMAGE = "preprocessor_config.json"
_VIDEO = "video_preprocessor_config.json"
_MODEL = "config.json"


@dataclass(frozen=True)
class ProcessorFiles:
    """Settings as they are written, each a JSON object."""

    name: str = ""
    """Name or folder of the model, for messages."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """Of the processor itself."""
    image: Mapping[str, Any] = field(default_factory=dict)
    """Of its image processor."""
    video: Mapping[str, Any] = field(default_factory=dict)
    """Of its video processor; where it has no file, that of the image processor, as transformers
    reads it."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The model's own configuration; empty where there is none."""

    @property
    def processor_class(self) -> str:
        """The class that transformers would make; empty where no file says so."""
        named = (settings.get("processor_class") for settings in (self.processor, self.image))
        return next((str(name) for name in named if name), "")


def read_processor_files(name: str) -> ProcessorFiles:
    """The files of a model's processor, from a folder or by a name on the hub.

    Raises:
        ConfigError: there is no such folder or model, or none of the files.
        MissingExtraError: a name is given, and transformers is not installed.
    """
    found = {file: _read(name, file) for file in (_PROCESSOR, _IMAGE, _VIDEO, _MODEL)}
    if not any(found.values()) and not Path(name).is_dir():
        raise ConfigError(
            f"--model {name}: not a folder, and no file of such a model is on this machine or can "
            "be had from the hub",
            hint="a folder or a name on the hub; HF_HUB_OFFLINE=1 keeps from asking it",
        )
    if not found[_PROCESSOR] and not found[_IMAGE]:
        raise ConfigError(
            f"{name}: neither {_PROCESSOR} nor {_IMAGE} is there",
            hint="give a model with a processor, or for text alone --tokenizer",
        )
    processor = found[_PROCESSOR]
    of_image = processor.get("image_processor") or found[_IMAGE]
    of_video = processor.get("video_processor") or found[_VIDEO] or of_image
    return ProcessorFiles(name, processor, of_image, of_video, found[_MODEL])


def _read(name: str, file: str) -> dict[str, Any]:
    folder = Path(name)
    path: Path | str | None = folder / file
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise ConfigError(f"--model {name}: no such folder")
        path = _from_hub(name, file)
    if path is None or not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _from_hub(name: str, file: str) -> str | None:
    try:
        from transformers.utils import cached_file
    except ImportError:
        raise MissingExtraError("transformers", extra="pack", needed_for="--model") from None
    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"--model {name}: cannot be loaded: {first}", hint="a folder or a name on the hub"
        ) from None
    return None if path is None else str(path)
