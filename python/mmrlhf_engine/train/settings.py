"""Settings that every training command shares; each command adds its own in its own file."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from mmrlhf_engine.run.config import Section, parse_share

__all__ = [
    "CheckpointSettings",
    "DataSettings",
    "EvaluationSettings",
    "LoraSettings",
    "ModelSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "TrainSettings",
]


def _check_share(text: str) -> str:
    parse_share(text, "data.max_unreadable")
    return text


class DataSettings(Section):
    """Which units of the shards make a step."""

    tokens: PositiveInt = 16_384
    """The most that a pack may hold, of text and images together."""
    packs_per_step: PositiveInt = 8
    """Packs of a step over all processes: the global batch."""
    unit: Literal["query", "pair"] = "query"
    """What is packed as a whole; a query computes its prompt and images once for its answers."""
    pairs_per_query: PositiveInt | Literal["all"] = "all"
    """Pairs taken of each query, chosen again each epoch."""
    too_large: Literal["error", "alone", "drop"] = "error"
    """What becomes of a unit that fits no pack."""
    max_unreadable: Annotated[str, AfterValidator(_check_share)] = "1%"
    """Training stops when more of the pictures cannot be decoded; pairs that show one have no
    weight."""


class EvaluationSettings(Section):
    """Pairs that are never trained on, and when they are scored."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the queries that are held out; queries that share a picture stay together."""
    seed: NonNegativeInt = 0
    """Of which they are; the expected number of queries is the share of them."""
    shards: str | None = None
    """Another dataset to evaluate on, in place of a share of this one."""
    every: PositiveInt = 100
    """Steps between evaluations; there is one before the first step, and one after the last."""


class LoraSettings(Section):
    """Adapters in place of the weights (LoRA, arXiv 2106.09685), by peft."""

    rank: PositiveInt = 64
    """Columns of the adapters."""
    alpha: PositiveFloat = 128
    """The product of the adapters is multiplied by ``alpha / rank``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' input."""
    targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers of the text model that have adapters; ``all-linear`` is all."""


_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(Section):
    """How gradients become steps."""

    name: Literal["adamw", "adafactor", "sgd"] = "adamw"
    """Of ``torch.optim``."""
    learning_rate: PositiveFloat = 1e-6
    """The highest; adapters want about ten times that of the weights."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """Decay of the running means of adamw."""
    epsilon: PositiveFloat = 1e-8
    """Added to the denominator of adamw."""
    weight_decay: NonNegativeFloat = 0.0
    """Not of biases and of parameters with one axis, such as those of norms."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; null leaves them as they are."""


class ScheduleSettings(Section):
    """How the learning rate moves."""

    name: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "cosine"
    """As ``transformers.get_scheduler`` has them, after the warmup."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0."""


class CheckpointSettings(Section):
    """When a run can go on from."""

    every: PositiveInt = 200
    """Steps between checkpoints; there is one after the last step, and one on Ctrl-C."""
    keep: PositiveInt = 2
    """Checkpoints that are kept, the newest ones."""


class ModelSettings(Section):
    """What every command can be told that runs a model over shards."""

    shards: str = ""
    """The dataset of preference shards."""
    model: str = ""
    """A name on the hub or a folder; of an adapter, its base with the adapter merged."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of products. Null is bfloat16 on a GPU, float32 on a CPU."""
    other_template: bool = False
    """Whether the shards may be rendered by another chat template than the model's own."""
    cache_features: str | None = None
    """A folder for what the frozen tower makes of each picture, so that it runs once a picture."""
    threads: NonNegativeInt = 0
    """Threads of the loader; 0 is one less than there are cores."""


class TrainSettings(ModelSettings):
    """What every training command can be told. Weights that train are kept in float32."""

    seed: int = Field(default=0, ge=0)
    """Of the order and of everything random."""
    epochs: PositiveInt = 1
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Ends after so many steps, if the epochs have more."""
    frozen_weights: Literal["float32", "bfloat16"] = "float32"
    """How weights that do not train are kept; bfloat16, for adapters, halves their memory."""
    freeze: tuple[Literal["tower", "projector", "text", "head"], ...] = ("tower",)
    """Parts whose weights stay as they are."""
    lora: LoraSettings | None = None
    """Adapters in place of the weights; null trains the weights."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: a third more work, far less memory."""
    compile: bool = False
    """Compile the layers of the text model (``torch.compile``)."""
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go, beside ``metrics.jsonl`` and the page."""
