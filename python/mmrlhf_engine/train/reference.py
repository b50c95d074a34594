"""Log-probabilities of a reference model, computed once and kept beside the shards.

MM-DPO compares the policy with the model it began as. That model's log-probability of each response
does not change, so it is a sidecar column, made by the same forward pass as training; no second
model is in memory then. The column says which weights, tokenizer, template, image rule and
precision it was made with, and training refuses another one.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import PositiveInt
from torch import Tensor

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import FeatureCache, LinearHead, load_policy, weights_hash
from mmrlhf_engine.run.command import finished_report, run_command
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.run.folder import read_json
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.compatible import check_model_fits, model_folder
from mmrlhf_engine.train.device import accelerator_for, with_precision
from mmrlhf_engine.train.logps import sequence_logps
from mmrlhf_engine.train.reference_columns import FIELD, column_set_of, model_conditions
from mmrlhf_engine.train.settings import ModelSettings
from mmrlhf_engine.train.setup import halve_frozen_weights

__all__ = ["STAGE", "ReferenceConfig", "run_in"]

_KEEP_EVERY = 50
"""Steps, of a pack for each process, between two records of what is done."""


class ReferenceConfig(ModelSettings):
    """Settings of ``reference``."""

    name: str | None = None
    """Of the column set, after ``reflogp/``; null is the last part of the model's name."""
    frozen_weights: Literal["float32", "bfloat16"] = "float32"
    """How weights are kept; as training keeps those of its text model."""
    tokens: PositiveInt = 16_384
    """The most that a pack may hold, of text and images together."""
    too_large: Literal["error", "alone", "drop"] = "error"
    """What becomes of a query that fits no pack; a response left out has no value."""


def run_in(config: ReferenceConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Score in ``out/12_reference``, and see to it that the dataset has the column; the report.

    What is finished in the folder is made again where the dataset lacks the column, since another
    run has replaced it or this is another copy of the shards.

    Args:
        config: The settings.
        out: The run folder.
        progress: What is said on the way.

    Raises:
        MmrlhfError: a setting or an input does not fit, or the work failed.
    """
    report = finished_report(STAGE, out)
    lost = report is not None and not _is_there(config, report)
    return run_command(STAGE, config, out, progress, restart=lost)


def run(config: ReferenceConfig, context: StageContext) -> None:
    """Score every response, then write the column; what was scored is kept on the way."""
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    made_with = _provenance(config, dataset)
    column_set = _column_set(config, dataset, made_with)
    with accelerator_for(str(config.precision)) as accelerator:
        # The first process has cleared the folder when all of them are here.
        accelerator.wait_for_everyone()
        scores = _Scores(context.scratch, dataset, column_set, made_with)
        kept = config.cache_features
        policy = load_policy(
            config.model,
            device=accelerator.device,
            freeze=("tower", "text"),
            features=None if kept is None else FeatureCache(kept),
        )
        policy.requires_grad_(False).eval()
        if config.frozen_weights == "bfloat16":
            halve_frozen_weights(policy)
        # Nothing trains: processes divide the packs among them, and share no gradients or weights.
        model = accelerator.prepare_model(policy, evaluation_mode=True)
        _score(config, context, model, accelerator, scores)
        scores.merge(accelerator)
        if accelerator.is_main_process:
            scores.write(dataset, column_set, made_with)
        accelerator.wait_for_everyone()
    not_scored = dataset.rows("responses") - scores.count
    context.finish(
        rows_in=dataset.rows("responses"),
        rows_out=scores.count,
        dropped={"not_scored": not_scored} if not_scored else {},
        column_set=column_set,
        pictures_blank=scores.blank,
    )


@torch.no_grad()
def _score(
    config: ReferenceConfig,
    context: StageContext,
    model: Any,
    accelerator: Accelerator,
    scores: "_Scores",
) -> None:
    data = PreferenceDataset(
        config.shards,
        config.tokens,
        unit="query",
        too_large=config.too_large,
        threads=config.threads,
        state=scores.cursor,
    )
    done, steps, total = scores.packs, 0, len(data)
    for batch in data:
        responses = batch.sequence_response
        wanted = responses >= 0
        if not scores.known(responses[wanted]):
            pack = ModelPack.of(batch, accelerator.device)
            values = model(pack, _all_answers).cpu().numpy()
            scores.add(responses[wanted], values[wanted], batch)
        done += 1
        context.progress("packs", done, total)
        steps += batch.ends_step
        if batch.ends_step and steps % _KEEP_EVERY == 0:
            scores.merge(accelerator)
            if accelerator.is_main_process:
                scores.keep(batch.cursor, done)


def _all_answers(hidden: Tensor, head: LinearHead, pack: ModelPack) -> Tensor:
    return sequence_logps(hidden, head, pack, pack.targets)


class _Scores:
    """Values by response, in the scratch folder until all are there.

    Args:
        folder: The scratch folder.
        dataset: Values that the column has already are not computed again.
        column_set: Name of the column.
        made_with: Its provenance.
    """

    def __init__(
        self, folder: Path, dataset: ShardDataset, column_set: str, made_with: dict[str, Any]
    ) -> None:
        self._file, self._state = folder / "logp.npy", folder / "position.json"
        position = read_json(self._state) or {}
        self.cursor: str | None = position.get("cursor")
        self.packs = int(position.get("packs", 0))
        self._blank: set[int] = set(position.get("blank", []))
        self._before = _existing(dataset, column_set, made_with)
        if self.cursor is not None:
            self._values = np.load(self._file)
        else:
            self._values = self._before.copy()

    @property
    def blank(self) -> int:
        """Pictures that could not be decoded."""
        return len(self._blank)

    @property
    def count(self) -> int:
        """Responses that have a value."""
        return int((~np.isnan(self._values)).sum())

    def known(self, responses: np.ndarray) -> bool:
        """Whether all of these responses have a value."""
        return not np.isnan(self._values[responses]).any()

    def add(self, responses: np.ndarray, values: np.ndarray, batch: Any) -> None:
        """Keep the values of a pack."""
        wrong = ~np.isfinite(values)
        if wrong.any():
            row = int(responses[wrong][0])
            raise ConfigError(
                f"response {row}: the model's log-probability is {values[wrong][0]}",
                hint="precision=float32; or the weights are damaged",
            )
        self._values[responses] = values
        self._blank |= {blob for blob, _ in batch.unreadable}

    def merge(self, accelerator: Accelerator) -> None:
        """Take over what the other processes have scored; all of them call it."""
        if accelerator.num_processes == 1:
            return
        own = torch.from_numpy(self._values)[None].to(accelerator.device)
        for values in accelerator.gather(own).cpu().numpy():
            self._values = np.where(np.isnan(self._values), values, self._values)
        self._blank = set(gather_object(sorted(self._blank)))

    def keep(self, cursor: str, packs: int) -> None:
        """Record what is done: values first, then the position that goes with them."""
        partial = self._file.with_name(".logp.npy")
        with partial.open("wb") as file:
            np.save(file, self._values)
        partial.replace(self._file)
        position = {"cursor": cursor, "packs": packs, "blank": sorted(self._blank)}
        write_atomically(self._state, json.dumps(position))

    def write(self, dataset: ShardDataset, column_set: str, made_with: dict[str, Any]) -> None:
        """Write the values that the column lacks."""
        lacking = np.isnan(self._before) & ~np.isnan(self._values)
        if lacking.any():
            start = int(lacking.argmax())
            new = np.where(lacking, self._values, np.float32("nan"))
            values = pl.Series(FIELD, new[start:]).fill_nan(None)
            dataset.add_column(
                values.to_frame(),
                table="responses",
                column_set=column_set,
                provenance=made_with,
                start=start,
            )


def _column_set(config: ReferenceConfig, dataset: ShardDataset, made_with: dict[str, Any]) -> str:
    """The set by the model's name; where another model or precision has it, by its hash as well.

    Trained models are all called ``model``, and their columns must not replace each other.
    """
    if config.name is not None:
        return column_set_of(config.name)
    plain = column_set_of(str(model_folder(config.model).name))
    for entry in dataset.column_sets:
        compared = [
            (made.get("model", {}).get("weights"), made.get("precision"))
            for made in (entry.provenance, made_with)
        ]
        if entry.name == plain and compared[0] != compared[1]:
            weights = made_with["model"]["weights"].rpartition(":")[2][:8]
            return f"{plain}-{weights}-{made_with['precision']['products']}"
    return plain


def _existing(dataset: ShardDataset, column_set: str, made_with: dict[str, Any]) -> np.ndarray:
    """Float32 [responses], the column as it is, NaN where it has no value of this provenance."""
    for entry in dataset.column_sets:
        if entry.name == column_set and entry.provenance == made_with:
            return dataset.column(column_set, FIELD).fill_null(float("nan")).to_numpy().copy()
    return np.full(dataset.rows("responses"), np.nan, np.float32)


def _provenance(config: ReferenceConfig, dataset: ShardDataset) -> dict[str, Any]:
    conditions = model_conditions(
        weights_hash(config.model), str(config.precision), config.frozen_weights
    )
    conditions["model"]["name"] = model_folder(config.model).name
    return dataset.provenance(**conditions)


def _is_there(config: ReferenceConfig, report: dict[str, Any]) -> bool:
    """Whether the dataset has as many values of this provenance as the report counts."""
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    made_with = _provenance(config, dataset)
    name = _column_set(config, dataset, made_with)
    return any(
        entry.name == name and entry.provenance == made_with and entry.filled >= report["rows_out"]
        for entry in dataset.column_sets
    )


def _external(config: ReferenceConfig) -> list[object]:
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    return [dataset.fingerprint, _provenance(config, dataset)]


STAGE = Stage(
    name="reference",
    config=ReferenceConfig,
    run=run,
    external=_external,
    no_effect_on_output=frozenset({"threads", "shards", "model", "cache_features"}),
)
