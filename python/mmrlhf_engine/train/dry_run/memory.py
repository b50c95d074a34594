"""Memory of a training step by part, from sizes alone.

Weights, gradients and optimizer state are exact. Activations are those that a decoder layer of
transformers keeps for the backward pass, with attention that keeps no scores; what a kernel needs
for a moment, and what the allocator loses, comes on top.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from mmrlhf_engine.train.dry_run.costs import head_plans, seen_by_tower
from mmrlhf_engine.train.dry_run.epoch_counts import EpochCounts
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes, TextShape
from mmrlhf_engine.train.settings import TrainSettings

__all__ = [
    "MemoryPart",
    "collected_bytes",
    "element_size",
    "layer_bytes",
    "memory_of_step",
    "optimizer_bytes",
    "total",
]

_FLOAT32 = 4


class MemoryPart(NamedTuple):
    """What one thing takes on a device."""

    name: str
    bytes: int
    divided: bool
    """Whether ZeRO-3 divides it over the devices."""


def element_size(settings: TrainSettings) -> int:
    """Bytes of a number in products on a GPU."""
    return 4 if settings.precision == "float32" else 2


def memory_of_step(
    sizes: ModelSizes, counts: EpochCounts, settings: TrainSettings, element: int
) -> list[MemoryPart]:
    """The parts on a single device, for the largest pack of the epoch.

    ==========================  ====================================================================
    trained weights             4 bytes a parameter
    copies in bfloat16          2 bytes a trained parameter, where products are in bfloat16; and a
                                float32 weight of the text that is frozen, where no activations are
                                computed again
    frozen weights              4 bytes a parameter, or 2 by ``frozen_weights``
    gradients                   4 bytes a trained parameter
    optimizer state             :func:`optimizer_bytes`
    activations of the text     :func:`layer_bytes` for each token, of every layer, or of one layer
                                and the input of each with ``gradient_checkpointing``; and the
                                gradient of hidden states, twice
    activations of the tower    the same if it trains; else what one layer computes
    log-probabilities           the workspace of the schedule, the most over all packs
    pixels                      uint8 and float32, the most over all packs
    ==========================  ====================================================================

    Args:
        sizes: Of the model.
        counts: Of the epoch.
        settings: Of training.
        element: Bytes of a number in products, 2 or 4.
    """
    trained, frozen = sizes.count(trained=True), sizes.count(trained=False)
    frozen_size = 2 if settings.frozen_weights == "bfloat16" else _FLOAT32
    copied = trained
    if "text" not in sizes.trained and frozen_size > element and _keeps_all(sizes, settings):
        copied += sizes.products["text"]
    copies = copied * element if element < _FLOAT32 else 0
    plans = head_plans(sizes, counts, settings, element)
    parts = [
        MemoryPart("trained weights", trained * _FLOAT32, True),
        MemoryPart("copies in bfloat16", copies, True),
        MemoryPart("frozen weights", frozen * frozen_size, True),
        MemoryPart("gradients", trained * _FLOAT32, True),
        MemoryPart(
            f"optimizer state ({settings.optimizer.name})",
            optimizer_bytes(settings.optimizer.name, sizes.shapes),
            True,
        ),
        MemoryPart(
            "activations of the text",
            _text_bytes(sizes, counts.most("tokens"), settings, element),
            False,
        ),
        MemoryPart(
            "activations of the tower", _tower_bytes(sizes, counts, settings, element), False
        ),
        MemoryPart("log-probabilities", max((p.workspace for p in plans), default=0), False),
        MemoryPart("pixels", counts.most("pixel_bytes") * (1 + _FLOAT32), False),
    ]
    return [part for part in parts if part.bytes]


def total(parts: Iterable[MemoryPart], sizes: ModelSizes, devices: int, element: int) -> int:
    """Bytes on each of several devices under ZeRO-3; on one device, without it."""
    return collected_bytes(sizes, devices, element) + sum(
        -(-part.bytes // devices) if part.divided else part.bytes for part in parts
    )


def collected_bytes(sizes: ModelSizes, devices: int, element: int) -> int:
    """Whole parameters that ZeRO-3 holds: of a module while it computes, and of the next one."""
    return 2 * sizes.largest_module * element if devices > 1 else 0


def optimizer_bytes(name: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """State of an optimizer of ``torch.optim`` over parameters of these shapes, float32.

    ``adamw`` has two running means of each gradient, ``sgd`` none without momentum, ``adafactor``
    one of the squares along each of the last two axes (arXiv 1804.04235), or of all where there is
    one axis.
    """
    if name == "sgd":
        return 0
    if name == "adamw":
        return sum(2 * _FLOAT32 * math.prod(shape) for shape in shapes)
    return _FLOAT32 * sum(map(_factored, shapes))


def _factored(shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    return count if len(shape) < 2 else count // shape[-1] + count // shape[-2]


def layer_bytes(text: TextShape, *, weights: bool, inputs: bool, element: int) -> int:
    """Bytes that a decoder layer keeps for each token until its backward pass.

    With H the width, A that of all heads together, n heads, I the width of the feed-forward part
    and b = ``element``: of each of two norms its input, its root mean square and, for its weight,
    the normalised input, in float32; query, key and value for every head and what attention gives,
    4 b A + 4 n; gate, its activation and up, 3 b I; and where linear layers train or have
    adapters their inputs, which are b H a layer in bfloat16 (each casts for itself: 5) and a norm
    in float32 (2), and b I.

    Args:
        text: The shape of the layer.
        weights: Whether its own weights train.
        inputs: Whether linear layers keep their inputs, for their own weights or for adapters.
        element: Bytes of a number in products, 2 or 4.
    """
    hidden, width = text.hidden, text.attention_width
    norms = 2 * (_FLOAT32 * hidden + _FLOAT32 + _FLOAT32 * hidden * weights)
    attention = 4 * element * width + _FLOAT32 * text.heads
    linear = (hidden * (5 if element < _FLOAT32 else 2) + text.intermediate) * element * inputs
    return norms + attention + 3 * element * text.intermediate + linear


def _keeps_all(sizes: ModelSizes, settings: TrainSettings) -> bool:
    """Whether every layer of the text keeps what its backward pass needs."""
    return not settings.gradient_checkpointing and not sizes.trained <= {"head"}


def _text_bytes(sizes: ModelSizes, tokens: int, settings: TrainSettings, element: int) -> int:
    if sizes.trained <= {"head"}:
        return 0
    text, weights = sizes.text, "text" in sizes.trained
    # Hidden states are what the embeddings are.
    halved = settings.frozen_weights == "bfloat16" and "embeddings" not in sizes.trained
    state = text.hidden * (2 if halved else _FLOAT32)
    inputs = weights or "adapters" in sizes.trained
    layer = layer_bytes(text, weights=weights, inputs=inputs, element=element)
    kept = text.layers * layer
    if settings.gradient_checkpointing:
        kept = text.layers * state + layer
    return tokens * (kept + 2 * state)


def _tower_bytes(
    sizes: ModelSizes, counts: EpochCounts, settings: TrainSettings, element: int
) -> int:
    """Of the pack with the most blocks."""
    if sizes.tower is None or not counts.total("blocks"):
        return 0
    share = counts.most("blocks") / counts.total("blocks")
    tokens = round(seen_by_tower(sizes.tower, counts).tokens * share)
    width, inner = sizes.tower.width, sizes.tower.intermediate
    if "tower" not in sizes.trained:
        return tokens * (6 * width + 2 * inner) * element
    # Two norms, four inputs of linear layers, four tensors of attention, two of the MLP.
    layer = 2 * _FLOAT32 * width + 8 * element * width + 2 * element * inner
    if settings.gradient_checkpointing:
        return tokens * (sizes.tower.layers * _FLOAT32 * width + layer)
    return tokens * sizes.tower.layers * layer
