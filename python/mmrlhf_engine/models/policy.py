"""A model of transformers that reads packs: text attended to without padding, every picture once.

The head is not applied here. It is handed, with the hidden states of the rows that predict answers,
to a function of the caller, which may compute log-probabilities without holding logits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.adapters import Lora, add_lora
from mmrlhf_engine.models.checkpoint import read_model
from mmrlhf_engine.models.families.family import Family
from mmrlhf_engine.models.families.pictures import DistinctPictures
from mmrlhf_engine.models.families.vision import Vision
from mmrlhf_engine.models.identity import processor_record, weights_hash
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.packed_attention import Segments, use_packed_attention
from mmrlhf_engine.models.parts import freeze_parts, turn_dropout_off

__all__ = [
    "LinearHead",
    "PackedPolicy",
    "head_of",
    "load_policy",
    "processor_record",
    "unwrapped",
    "weights_hash",
]

Result = TypeVar("Result")

_ATTENTION_MODULES = ("self_attn", "attn", "attention", "self_attention")


class LinearHead(NamedTuple):
    """``x = logit_scale * (hidden @ weight.T + bias)``.

    The logits are x; with a softcap they are ``softcap * tanh(x / softcap)``.
    """

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""
    softcap: float | None
    """As ``final_logit_softcapping`` of Gemma 2."""
    logit_scale: float
    """As ``logit_scale`` of Cohere, and one by ``logits_scaling`` of Granite."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits [N, V] of hidden states [N, H], all of them in memory."""
        logits = self.logit_scale * nn.functional.linear(hidden, self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def unwrapped(model: Any) -> Any:
    """The model of transformers itself, where peft has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> LinearHead:
    """The output head of a model of transformers.

    Raises:
        InputError: it has none.
    """
    model = unwrapped(model)
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output head")
    config = model.config.get_text_config()
    return LinearHead(
        head.weight,
        getattr(head, "bias", None),
        getattr(config, "final_logit_softcapping", None),
        float(getattr(config, "logit_scale", 1.0) or 1.0)
        / float(getattr(config, "logits_scaling", 1.0) or 1.0),
    )


class PackedPolicy(nn.Module):
    """A model of transformers, and how it reads a :class:`ModelPack`.

    Args:
        model: A ``PreTrainedModel`` that :func:`mmrlhf_engine.models.packed_attention.
            use_packed_attention` has prepared, or a ``PeftModel`` of one.
        family: Its family; None where it reads text alone.

    Raises:
        InputError: packs are not given to models of this family.
    """

    def __init__(self, model: Any, family: Family | None = None) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.vision: Vision | None = None
        if family is not None:
            if isinstance(family.vision, str):
                raise InputError(f"{family.name} cannot read packs: {family.vision}")
            self.vision = family.vision

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
        model = unwrapped(self.model)
        output = model.base_model.get_decoder()(
            position_ids=pack.position_ids,
            segments=pack.segments,
            use_cache=False,
            **self._text_inputs(pack),
        )
        hidden = output.last_hidden_state[0].index_select(0, pack.rows)
        return head(hidden, head_of(model), pack)

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
            blank = _blank_picture(self.vision, base.config, embeddings)
            (features,) = self._features(self.vision, blank)
            embeddings = embeddings + (0.0 * features.sum()).to(embeddings.dtype)
        return {"inputs_embeds": embeddings}

    def _features(self, vision: Vision, pictures: DistinctPictures) -> list[Tensor]:
        """The features of each picture, [length, ...]."""
        base = unwrapped(self.model).base_model
        return vision.project(base, vision.encode(base, pictures.pixels, pictures.grids), pictures)


def _blank_picture(vision: Vision, config: Any, like: Tensor) -> DistinctPictures:
    shape, grid = vision.blank(config)
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    content = torch.zeros(shape, dtype=torch.uint8)
    return DistinctPictures(
        pixels=like.new_zeros(shape),
        blocks=[0, shape[0]],
        grids=torch.tensor([grid], device=like.device),
        sizes=torch.tensor([shape[-2:]], device=like.device),
        frames=[0],
        lengths=[0],
        tokens=none,
        features=none,
        content=content,
        settings={},
    )


def load_policy(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
    freeze: Sequence[str] = ("tower",),
    lora: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> PackedPolicy:
    """A model that reads packs, in evaluation mode.

    Its dropout is off, so that training mode computes the same, except that of a new adapter.

    Args:
        name: A folder or a name on the hub. An adapter alone gives its base with it merged.
        dtype: Of the weights.
        device: Where the weights are put; None is the CPU.
        freeze: Parts that are not trained: ``tower``, ``projector``, ``text`` (with embeddings),
            ``head``. Weights that two parts share are frozen with either.
        lora: ``rank``, ``alpha``, ``dropout`` and ``targets`` of a new adapter, as in
            :class:`mmrlhf_engine.models.adapters.Lora`; then it alone is trained.
        gradient_checkpointing: Compute activations of layers again in the backward pass, in
            training mode.
        compile: Compile the feed-forward networks and norms of the text model's layers by
            ``torch.compile``, for any number of tokens.

    Raises:
        ConfigError: there is no such model, it cannot read packs, or an argument does not fit it.
        MissingExtraError: an adapter is wanted, and peft is not installed.
    """
    adapter = None if lora is None else Lora.of(lora)
    model, family = read_model(name, dtype)
    use_packed_attention(model)
    turn_dropout_off(model)
    policy = PackedPolicy(model.to(device), family).eval()
    _check_head(name, model)
    freeze_parts(model, policy.vision, freeze)
    if gradient_checkpointing:
        # transformers 5.2x has renamed it.
        enable = "activation_checkpointing_enable"
        if not hasattr(model, enable):
            enable = "gradient_checkpointing_enable"
        getattr(model, enable)({"use_reentrant": False})
    if compile:
        _compile_layers(model.base_model.get_decoder())
    if adapter is not None:
        policy.model = add_lora(model, policy.vision, adapter)
    return policy.eval()


def _compile_layers(text: nn.Module) -> None:
    """Attention stays outside, as it depends on the lengths of a pack's sequences, not on T."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in text.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for name, part in layer.named_children():
                if name not in _ATTENTION_MODULES:
                    part.compile(dynamic=True)


@torch.no_grad()
def _check_head(name: str, model: Any) -> None:
    """The logits of one token must be those that :class:`LinearHead` says."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # The weights are divided between ranks until the engine runs the model.
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    states: list[Any] = []
    text = model.base_model.get_decoder()
    hook = text.register_forward_hook(lambda *given: states.append(given[-1]))
    try:
        segments = Segments.of([0, 1], [-1], model.device)
        output = model(input_ids=token, position_ids=token, segments=segments, use_cache=False)
    except InputError as error:
        raise ConfigError(f"{name}: {error.args[0]}", hint=error.hint) from None
    finally:
        hook.remove()
    found = head_of(model).logits(states[0].last_hidden_state[0]).float()
    expected = output.logits[0].float()
    if not torch.allclose(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())):
        raise ConfigError(
            f"{name}: the logits of {type(model).__name__} are not those of a linear head with "
            "logit_scale, logits_scaling and final_logit_softcapping",
            hint="take a model with a plain output head",
        )
