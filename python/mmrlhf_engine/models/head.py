"""The output head of a model of transformers, as numbers that a loss can use without its logits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.packed_attention import Segments
from mmrlhf_engine.models.parts import is_partitioned

__all__ = ["LinearHead", "check_head", "head_of", "unwrapped"]


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

    Args:
        model: A ``PreTrainedModel`` or a ``PeftModel``.

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
        float(getattr(config, "logit_scale", None) or 1.0)
        / float(getattr(config, "logits_scaling", None) or 1.0),
    )


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """The logits of one token must be those that :class:`LinearHead` says.

    Not looked at where the weights are divided between ranks.

    Args:
        name: Of the model, for messages.
        model: A ``PreTrainedModel`` with packed attention.

    Raises:
        ConfigError: they are not, or its attention is not followed.
    """
    if is_partitioned(model):
        return
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
