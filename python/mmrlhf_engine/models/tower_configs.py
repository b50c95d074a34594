"""Vision towers of this project, by which the configuration of a model may name its tower.

transformers finds a tower by the ``model_type`` of ``vision_config``. That of a tower which is
defined here is registered with it first; its modules are imported where weights are read, so that
tokenizers and processors of such a model need no torch.
"""

import importlib
import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

__all__ = ["Lite0TowerConfig", "register_towers"]


class Lite0TowerConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of :class:`mmrlhf_engine.models.lite0_tower.Lite0Tower`."""

    model_type = "efficientnet_lite0"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    """Features of a patch."""
    image_size: int = 64
    """Pixels along each side of a picture."""
    patch_size: int = 32
    """Pixels along each side of what one row of features is computed for, without its margin."""


_MODULES = {Lite0TowerConfig.model_type: "mmrlhf_engine.models.lite0_tower"}

AutoConfig.register(Lite0TowerConfig.model_type, Lite0TowerConfig, exist_ok=True)


def register_towers(name: str, *, weights: bool = True) -> None:
    """Make the towers of this project known that the configuration of a model names.

    Args:
        name: A folder; a name on the hub has none of them, and nothing is done.
        weights: Whether the model will be made, which needs torch. Its configuration, tokenizer and
            processor are read without.
    """
    file = Path(name) / "config.json"
    if not weights or not file.is_file():
        return
    vision = json.loads(file.read_text(encoding="utf-8")).get("vision_config") or {}
    module = _MODULES.get(vision.get("model_type", ""))
    if module is not None:
        importlib.import_module(module)
