"""The arguments of a model's ``forward`` for one pack; see ``PreferenceBatch.model_inputs``.

With ``torch_dataset``, the only module of ``shards`` that needs torch.
"""

from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families import FAMILIES
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.layout import attention_mask

__all__ = ["forward_inputs"]


def forward_inputs(batch: Any, device: Any, dtype: Any, attention: str) -> dict[str, Any]:
    """See :meth:`mmrlhf_engine.PreferenceBatch.model_inputs`."""
    import torch

    tensors = batch.to_torch(pin=False)
    positions = tensors.position_ids.long()
    inputs = {
        "input_ids": tensors.input_ids.long()[None].to(device),
        # [1, T], or [3, 1, T] where time, row and column are told apart
        "position_ids": positions.unsqueeze(-2).to(device),
        **_attention(tensors, device, attention),
    }
    if batch.processor is None:
        if len(tensors.placeholder_start):
            raise InputError(
                "the batch has pictures, and the dataset records no processor",
                hint="pack with --model, or take the arrays of the batch as they are",
            )
        return inputs
    family = FAMILIES[batch.processor["family"]]
    settings = batch.processor["pictures"]
    shown = ShownPictures(tensors, settings, device, dtype or torch.float32)
    return inputs | family.forward_inputs(shown)


def _attention(tensors: Any, device: Any, attention: str) -> dict[str, Any]:
    import torch

    if attention == "mask":
        mask = torch.from_numpy(attention_mask(tensors))
        return {"attention_mask": mask[None, None].to(device)}
    if (tensors.prefix_sequence >= 0).any():
        raise InputError(
            "attention 'varlen': a prompt is shared by several responses, which sequence lengths "
            "cannot say",
            hint="unit 'pair' or 'response', or attention='mask'",
        )
    starts = tensors.cu_seqlens.to(device)
    longest = int(tensors.cu_seqlens.diff().max())
    return {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
