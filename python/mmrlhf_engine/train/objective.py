"""What a training command minimises, one pack at a time and with the totals of the step.

A step has several packs, on one process or many, and packs differ in pairs and tokens. A mean is
over the step, not over its packs: how many pairs and tokens the step has is counted before its
first pack, and each pack's loss is its part of the step's loss.
"""

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import PackedPolicy, load_policy
from mmrlhf_engine.models.tails import Tail
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.train.logps import IGNORED

__all__ = ["Head", "Objective", "PackOutput", "StepMetrics", "Totals", "targets_of"]

Batch = PreferenceBatch[Any]


class Totals(NamedTuple):
    """What the means of a step are over."""

    pairs: int
    tokens: int
    """Tokens that the supervised loss is of."""
    ties: int = 0
    """Pairs of equal rank among the pairs."""


class PackOutput(NamedTuple):
    """What one pack adds to a step; a tuple, in whose tensors DeepSpeed finds the graph."""

    loss: Tensor
    """Scalar with a gradient; the sum over the packs of a step is the step's loss."""
    parts: dict[str, Tensor]
    """Terms of the loss by the name they are logged under, scalars that add up likewise."""
    per_pair: dict[str, Tensor]
    """[P] values of the pack's live pairs, logged as their mean over the step."""
    pair_row: Tensor | None
    """int64 [P] rows of the live pairs; None where a loss has none."""


Head = Callable[..., PackOutput]
"""In the model's ``forward``: from hidden states [N, H] of the tokens that predict, the
:class:`LinearHead` and the :class:`ModelPack`; of a reward model, and the rewards [S]."""


class Objective(abc.ABC):
    """A loss over packs; what is not abstract holds for a loss that keeps nothing of its steps."""

    name: str
    ties_train: bool
    """Whether pairs of equal rank are trained on."""
    columns: Mapping[str, ColumnRequest]
    """Sidecar columns that it reads of a batch."""

    @abc.abstractmethod
    def totals(self, batch: Batch) -> Totals:
        """Live pairs of a pack, and tokens of the supervised loss."""

    @abc.abstractmethod
    def head(self, batch: Batch, totals: Totals, device: torch.device) -> Head:
        """The loss of a pack as a part of a step with these totals."""

    @abc.abstractmethod
    def means(self, sums: Mapping[str, float], totals: Totals) -> dict[str, float]:
        """Values of :meth:`StepMetrics.values` under totals of one, as means over these totals."""

    def load_model(self, name: str, **options: Any) -> PackedPolicy:
        """The model that trains, by :func:`mmrlhf_engine.models.policy.load_policy`."""
        return load_policy(name, **options)

    def inputs(self) -> dict[str, Any]:
        """What else of the shards it depends on, as JSON; a run goes on with the same alone."""
        return {}

    @property
    def added_tokens(self) -> npt.NDArray[np.uint32] | None:
        """uint32 [responses], tokens of the tails; None without."""
        return None

    def tails(self, batch: Batch) -> list[Tail] | None:  # noqa: ARG002
        """What the model reads after each sequence of a pack; None is nothing."""
        return None

    def after_step(self, metrics: Mapping[str, float], totals: Totals) -> None:  # noqa: B027
        """Keep what later steps need of this one."""

    def save(self, folder: Path) -> None:  # noqa: B027
        """Write what a checkpoint has beside the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept of the steps so far, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from :meth:`state_dict`."""


class StepMetrics:
    """The outputs of a step's packs on this process, gathered to what is logged."""

    def __init__(self) -> None:
        self._outputs: list[PackOutput] = []

    def add(self, output: PackOutput) -> None:
        """Keep the values of a pack, without its graph."""
        parts = {name: value.detach() for name, value in output.parts.items()}
        per_pair = {name: value.detach() for name, value in output.per_pair.items()}
        self._outputs.append(PackOutput(output.loss.detach(), parts, per_pair, output.pair_row))

    def values(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Loss and parts summed, values of pairs averaged, over all processes.

        Of ``beta`` the smallest and the largest are given too. ``gather`` joins a tensor [n] of
        each process along its axis; n may differ.
        """
        outputs = self._outputs
        found = {"loss": float(gather(_total([output.loss for output in outputs])).sum())}
        for name in outputs[0].parts:
            parts = [output.parts[name] for output in outputs]
            found[name] = float(gather(_total(parts)).sum())
        for name in outputs[0].per_pair:
            values = gather(torch.cat([output.per_pair[name] for output in outputs]))
            if not values.numel():
                continue
            if name == "beta":
                found |= {"beta/min": float(values.min()), "beta/max": float(values.max())}
                found["beta/mean"] = float(values.mean())
            else:
                found[name] = float(values.mean())
        return found

    def not_finite(self) -> tuple[str, int] | None:
        """Name of the first value that is not finite, and the row of its pair (-1: of none)."""
        for output in self._outputs:
            for name, values in output.per_pair.items():
                wrong = (~values.isfinite()).nonzero()
                if len(wrong) and output.pair_row is not None:
                    return name, int(output.pair_row[wrong[0, 0]])
        for output in self._outputs:
            for name, value in {"loss": output.loss, **output.parts}.items():
                if not bool(value.isfinite()):
                    return name, -1
        return None


def _total(values: list[Tensor]) -> Tensor:
    """[1], the sum in float32."""
    return torch.stack([value.float() for value in values]).sum()[None]


def targets_of(pack: ModelPack, sequences: Tensor) -> Tensor:
    """Targets [N] of the pack's rows, :data:`IGNORED` where their sequence is none of these."""
    used = torch.zeros(len(pack.cu_rows) - 1, dtype=torch.bool, device=pack.targets.device)
    used[sequences] = True
    return pack.targets.masked_fill(~used.repeat_interleave(pack.cu_rows.diff()), IGNORED)
