"""A model of transformers that reads packs: text attended to without padding, every picture once.

The head is not applied here. It is handed, with the hidden states of the rows that predict answers,
to a function of the caller, which may compute log-probabilities without holding logits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.adapters import Lora, add_lora
from mmrlhf_engine.models.checkpoint import read_model
from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.vision import Vision
from mmrlhf_engine.models.feature_cache import FeatureCache, TowerFeatures
from mmrlhf_engine.models.head import LinearHead, check_head, head_of, unwrapped
from mmrlhf_engine.models.identity import processor_record, weights_hash
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.packed_attention import use_packed_attention
from mmrlhf_engine.models.parts import (
    blank_picture,
    freeze_parts,
    freeze_unused_tower,
    turn_dropout_off,
)

__all__ = [
    "FeatureCache",
    "LinearHead",
    "PackedPolicy",
    "head_of",
    "load_policy",
    "prepared",
    "processor_record",
    "weights_hash",
]

Result = TypeVar("Result")

_ATTENTION_MODULES = ("self_attn", "attn", "attention", "self_attention")


class PackedPolicy(nn.Module):
    """A model of transformers, and how it reads a :class:`ModelPack`.

    Args:
        model: A ``PreTrainedModel`` that :func:`mmrlhf_engine.models.packed_attention.
            use_packed_attention` has prepared, or a ``PeftModel`` of one.
        family: Its family; None where it reads text alone.
        features: Where the outputs of its vision tower are kept, which must not be trained; None
            computes them for each pack.

    Raises:
        ConfigError: outputs of the tower cannot be kept.
        InputError: packs are not given to models of this family.
    """

    def __init__(
        self, model: Any, family: Family | None = None, *, features: FeatureCache | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.vision: Vision | None = None
        if family is not None:
            if isinstance(family.vision, str):
                raise InputError(f"{family.name} cannot read packs: {family.vision}")
            self.vision = family.vision
        self._kept: TowerFeatures | None = None
        if features is not None and self.vision is not None:
            self._kept = features.of_tower(unwrapped(model), self.vision)

    def forward(
        self, pack: ModelPack, head: Callable[[Tensor, LinearHead, ModelPack], Result]
    ) -> Result:
        """What ``head`` makes of the hidden states of the answers.

        Args:
            pack: On the device of the model.
            head: Takes hidden states [N, H] of ``pack.rows``, the head, and the pack. The head's
                weights may be partitioned between ranks outside this call.

        Raises:
            InputError: the pack has pictures, and the model reads text alone; or a picture has
                another number of tokens than the model makes features of it.
        """
        states = self.states(pack)
        return head(states.index_select(0, pack.rows), head_of(self.model), pack)

    def states(self, pack: ModelPack, cache: Any = None) -> Tensor:
        """The hidden states [T, H] of all tokens, after the last norm.

        Args:
            pack: On the device of the model.
            cache: An empty ``DynamicCache``, which then has the keys and values of the T tokens.
        """
        output = unwrapped(self.model).base_model.get_decoder()(
            position_ids=pack.position_ids,
            segments=pack.segments,
            past_key_values=cache,
            use_cache=cache is not None,
            **self._text_inputs(pack),
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def _text_inputs(self, pack: ModelPack) -> dict[str, Any]:
        """Token ids, or their embeddings with the features of pictures in their places."""
        if self.vision is None:
            if pack.pictures is not None:
                raise InputError(
                    f"the pack has pictures, and {type(unwrapped(self.model)).__name__} reads text "
                    "alone",
                    hint="pack for the processor of this model, or take a model that sees",
                )
            return {"input_ids": pack.input_ids}
        base = unwrapped(self.model).base_model
        embeddings = base.get_input_embeddings()(pack.input_ids)
        if pack.pictures is not None:
            features = pack.pictures.shown(self._features(self.vision, pack.pictures))
            placed, others = self.vision.place(embeddings[0], features, pack.pictures.tokens)
            return {"inputs_embeds": placed[None], **others}
        if pack.needs_vision:
            blank = blank_picture(self.vision, base.config, embeddings)
            encoded = self.vision.encode(base, blank.pixels, blank.grids)
            (features,) = self.vision.project(base, encoded, blank)
            embeddings = embeddings + (0.0 * features).sum().to(embeddings.dtype)
        return {"inputs_embeds": embeddings}

    def _features(self, vision: Vision, pictures: DistinctPictures) -> list[Tensor]:
        """The features of each picture, [length, ...]."""
        base = unwrapped(self.model).base_model
        if self._kept is not None:
            encoded = self._kept.encode(base, pictures)
        else:
            encoded = vision.encode(base, pictures.pixels, pictures.grids)
        return vision.project(base, encoded, pictures)


def load_policy(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
    freeze: Sequence[str] = ("tower",),
    lora: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    features: FeatureCache | None = None,
) -> PackedPolicy:
    """A model that reads packs, in evaluation mode.

    Its dropout is off, so that training mode computes the same, except that of a new adapter.

    Args:
        name: A folder or a name on the hub. An adapter alone gives its base with it merged.
        dtype: Of the weights.
        device: Where the weights are put; None is the CPU.
        freeze: Parts that are not trained: ``tower``, ``projector``, ``text`` (with embeddings),
            ``head``. Weights that two parts share are frozen with either. What of the tower no
            feature depends on is never trained.
        lora: ``rank``, ``alpha``, ``dropout`` and ``targets`` of a new adapter, as in
            :class:`mmrlhf_engine.models.adapters.Lora`; then it alone is trained.
        gradient_checkpointing: Compute activations of layers again in the backward pass, in
            training mode.
        compile: Compile the feed-forward networks and norms of the text model's layers by
            ``torch.compile``, for any number of tokens.
        features: Keeps the outputs of a frozen vision tower on disk; without effect on a model
            that reads text alone.

    Raises:
        ConfigError: there is no such model, it cannot read packs, or an argument does not fit it.
        MissingExtraError: an adapter is wanted, and peft is not installed.
    """
    adapter = None if lora is None else Lora.of(lora)
    model, family = read_model(name, dtype)
    model = prepared(
        name,
        model,
        family,
        device=device,
        freeze=freeze,
        lora=adapter,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
    )
    return PackedPolicy(model, family, features=features).eval()


def prepared(
    name: str,
    model: Any,
    family: Family | None,
    *,
    device: Any = None,
    freeze: Sequence[str] = ("tower",),
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Any:
    """A model that was read, ready for packs; see :func:`load_policy`.

    Raises:
        ConfigError: it cannot read packs, or an argument does not fit it.
        MissingExtraError: an adapter is wanted, and peft is not installed.
    """
    use_packed_attention(model)
    turn_dropout_off(model)
    model.to(device)
    check_head(name, model)
    vision = None if family is None or isinstance(family.vision, str) else family.vision
    freeze_parts(model, vision, freeze)
    if vision is not None:
        freeze_unused_tower(model, vision)
    if gradient_checkpointing:
        # Of a frozen tower no activation is kept, and checkpointing would run it backward as well.
        tower_trains = vision is not None and "tower" not in freeze and lora is None
        _checkpoint_activations(model if tower_trains else model.base_model.get_decoder())
    if compile:
        _compile_layers(model.base_model.get_decoder())
    return model if lora is None else add_lora(model, vision, lora)


def _checkpoint_activations(model: Any) -> None:
    # transformers has two names for it, and warns of the older one where it has both.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})


def _compile_layers(text: nn.Module) -> None:
    """Attention stays outside, as it depends on the lengths of a pack's sequences, not on T."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in text.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for name, part in layer.named_children():
                if name not in _ATTENTION_MODULES:
                    part.compile(dynamic=True)
