"""Names of weights in the format of LLaVA-NeXT's code, and in that of transformers, both ways.

MM-RLHF released its checkpoints, reward model included, in the former: LLaVA-OneVision on Qwen2
with ``rm_head`` beside ``lm_head``. No weight is changed but in its name.
"""

import re

__all__ = ["is_computed", "released_name", "transformers_name"]

_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
    ("rm_head.", "rm_head."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
)
"""How a name begins: released, and in transformers."""
_COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|embeddings\.position_ids)$")


def transformers_name(name: str) -> str | None:
    """What transformers calls a weight of a released checkpoint; None for an unknown one."""
    return _renamed(name, [(released, own) for released, own in _PREFIXES])


def released_name(name: str) -> str | None:
    """What a released checkpoint calls a weight of transformers; None for an unknown one."""
    return _renamed(name, [(own, released) for released, own in _PREFIXES])


def is_computed(name: str) -> bool:
    """Whether it is a buffer that older versions saved, and that is computed from settings."""
    return _COMPUTED.search(name) is not None


def _renamed(name: str, prefixes: list[tuple[str, str]]) -> str | None:
    for before, after in prefixes:
        if name.startswith(before):
            return after + name[len(before) :]
    return None
