"""Everything that a training run holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mmrlhf_engine.models.policy import PackedPolicy
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.accounting import Accounting
from mmrlhf_engine.train.checkpoint import Checkpoints
from mmrlhf_engine.train.metrics import MetricsWriter
from mmrlhf_engine.train.objective import Objective
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["Training"]


@dataclass
class Training:
    """Everything that a run holds; ``setup.py`` makes it."""

    config: TrainSettings
    objective: Objective
    accelerator: Accelerator
    policy: PackedPolicy
    data: PreferenceDataset
    evaluation: PreferenceDataset | None
    evaluation_objective: Objective
    """The same objective over the pairs of the evaluation, which may be in other shards."""
    total_steps: int
    checkpoints: Checkpoints
    metrics: MetricsWriter | None
    """None on all processes but the first."""
    accounting: Accounting
    processor: Path
    """Folder of the model whose tokenizer and processor go into checkpoints."""
    state: dict[str, Any] | None = None
    """That of the checkpoint to go on from."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Shards, weights and columns as :func:`training_stage.inputs_of` describes them; a checkpoint
    goes on with the same alone."""
    evaluated: frozenset[int] = frozenset()
    """Steps that were evaluated before the checkpoint, and are in the metrics."""
    step: int = 0
