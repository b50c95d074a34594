"""A function of a model's last hidden states and its head, run inside the model's own forward.

There and not outside, because DDP installs its hooks at forward, and because ZeRO-3 gathers a
head's weight where it is read within a forward.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Head", "add_states_function", "head_of"]

_OTHER_SCALES = ("output_multiplier", "lm_head_multiplier")
"""What some configs multiply logits by; no model with one was tried."""


class Head(NamedTuple):
    """What makes logits of hidden states; as arguments of ``fused_linear_logp``."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V] or None."""
    softcap: float | None
    logit_scale: float


def head_of(model: Any) -> Head:
    """The head of a causal language model or vision-language model of transformers.

    Raises:
        ValueError: It is not a plain linear layer, or the config changes logits in another way than
            by a scale (Cohere, Granite) and a softcap (Gemma 2).
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    known = "hint: use fused_linear_logp in a loop of your own"
    if not isinstance(layer, nn.Linear) or layer.weight.shape[0] != layer.out_features:
        raise ValueError(
            f"the head of {type(model).__name__} is {type(layer).__name__}; expected nn.Linear, "
            "neither quantized nor adapted; hint: leave it out of target_modules, modules_to_save "
            "and quantization"
        )
    others = [name for name in _OTHER_SCALES if getattr(config, name, None) is not None]
    if others or config.model_type == "hyperclovax":
        raise ValueError(
            f"the config of {type(model).__name__} scales logits by "
            f"{', '.join(others) or 'logits_scaling'}, which is not supported; {known}"
        )
    scale = getattr(config, "logit_scale", None)
    if scale is None:
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    if not isinstance(scale, int | float):
        raise ValueError(f"logit_scale is {scale!r}; expected a number; {known}")
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, softcap, float(scale))


def add_states_function(model: Any) -> None:
    """Let ``model(..., of_states=f)`` return ``f(hidden [B, T, H], head)``.

    Without ``of_states`` the forward is the one of before. A second call changes nothing.

    Raises:
        ValueError: See :func:`head_of`; or the model is an encoder-decoder.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; expected a decoder")
    head_of(model)
    before = model.forward.__func__
    if getattr(before, "takes_states_function", False):
        return

    # The signature stays that of the class: ``generate`` checks its arguments against it.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, of_states: Callable[[Tensor, Head], Any] | None = None, **kwargs: Any
    ) -> Any:
        if of_states is None:
            return before(self, *args, **kwargs)
        found = self.base_model(*args, use_cache=False, **kwargs)
        return of_states(found.last_hidden_state, head_of(self))

    forward.takes_states_function = True  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
