"""Batches of preference pairs out of mapped shards, in the order of a plan, made ahead by threads.

A batch is one pack of the plan. Its cursor says where to go on after it: any number of ranks,
workers and threads yields the same packs from there.
"""

import copy
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families import inputs
from mmrlhf_engine.run.config import Section
from mmrlhf_engine.run.differences import differences
from mmrlhf_engine.shards.arguments import (
    added_tokens_of,
    check_number,
    check_rank,
    cursor_json,
    folder,
)
from mmrlhf_engine.shards.batch import METADATA, PreferenceBatch, assembled
from mmrlhf_engine.shards.columns import (
    ColumnRequest,
    check_columns,
    checked_requests,
    provenance,
)

__all__ = ["ColumnRequest", "PictureSettings", "PreferenceBatch", "PreferenceLoader", "normalise"]

_NEEDED_IN_CORE = {"filter", "temporal", "background", "max_decode_pixels", "upright"}


class PictureSettings(Section):
    """How images reach a model, beyond the sizes and tokens of the plan's image rule."""

    image_token: NonNegativeInt
    """The id that stands for one feature of an image."""
    video_token: NonNegativeInt | None = None
    """The id that stands for one feature of a video; None is that of images."""
    image_start_token: NonNegativeInt | None = None
    """Put before the features of an image, where the packer has not written it."""
    image_end_token: NonNegativeInt | None = None
    """Put after them."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Taken from each channel by :func:`normalise`; pixels go from 0 to 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What each channel is divided by after that."""
    filter: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    """Of every resize."""
    temporal: PositiveInt = Field(default=2, le=16)
    """Frames in a patch of Qwen2-VL; a still image is repeated."""
    background: tuple[int, int, int] = (127, 127, 127)
    """``int(255 * mean)``: LLaVA-OneVision pads an image among several with it."""
    max_decode_pixels: PositiveInt = 89_478_485
    """An image of more pixels stays blank; Pillow begins to warn there."""
    upright: bool = True
    """Turn images as their EXIF block asks, as ``datasets`` and ``load_image`` do."""


def normalise(pixels: Any, settings: PictureSettings) -> Any:
    """``(pixels / 255 - mean) / std`` of a torch tensor of tiles or patches, on its own device."""
    return inputs.normalise(pixels, settings.mean, settings.std)


class PreferenceLoader:
    """An iterator over the batches of one rank, without torch; ``PreferenceDataset`` is made of it.

    Iterating goes on after the last batch handed out. ``state_dict`` is that position, the same on
    every rank at the end of a step; in the middle of a step it is the step's start. Opening without
    a state reads what every unit of the plan costs, so that a unit above the budget or a row that
    cannot be read is found before the first step.

    Args:
        path: The folder of the dataset.
        plan: The plan's JSON, from :func:`mmrlhf_engine.shards.plan.plan_json`.
        rank: Which of the processes that share a step this is.
        world_size: How many there are. Where it does not divide the plan's ``packs_per_step``,
            empty batches even the ranks out.
        pictures: Needed if the plan has an image rule.
        columns: Sidecar columns of pairs or responses that batches carry, by their names there.
        epochs: The iterator ends before this epoch.
        balance: Share the packs of a step out so that the ranks' work on images is even.
        threads: 0 is one less than there are cores; where workers share them, a part of that.
        prefetch_bytes: No batch is begun while so many bytes wait to be taken.
        cache_bytes: Kept of prepared images that a later batch needs.
        look_ahead: Batches that are looked through for images that are needed again.
        version: Of the dataset; None is the highest.
        verify: When checksums are compared.
        pixels: Whether images are decoded; without, ``pixel_values`` is empty and the rest of each
            batch is the same, but for the images that would turn out to be unreadable.
        added_tokens: uint32 [responses], tokens that the caller adds to each response after
            loading, and that count for the plan's budget; the plan states their hash.
        state: Where to go on, from ``state_dict``.

    Raises:
        InputError: a number is out of range, a column is not a :class:`ColumnRequest`, or a token
            is outside the dataset's vocabulary.
        InputError: units are above the plan's budget, and the plan does not say what becomes of
            them.
        InputError: the plan's part of the dataset has no query.
        InputError: the dataset cannot be opened, or the state is of another dataset or plan;
            the message names the settings that differ.
        CorruptDataError: the dataset is damaged.
    """

    def __init__(
        self,
        path: Path | str,
        plan: str,
        rank: int = 0,
        world_size: int = 1,
        *,
        pictures: PictureSettings | None = None,
        columns: Mapping[str, ColumnRequest] | None = None,
        epochs: int = 1,
        balance: bool = True,
        threads: int = 0,
        prefetch_bytes: int = 256 << 20,
        cache_bytes: int = 256 << 20,
        look_ahead: int = 512,
        version: int | None = None,
        verify: Literal["off", "lazy", "open"] = "lazy",
        pixels: bool = True,
        added_tokens: npt.NDArray[np.uint32] | None = None,
        state: Mapping[str, Any] | str | None = None,
    ) -> None:
        self._path, self._version, self._verify = folder(path), version, verify
        self._plan, self._pictures = plan, pictures
        self._columns = checked_requests(columns)
        self._column_names: dict[str, list[str]] = {"pairs": [], "responses": []}
        self._rank, self._world_size, self._balance = rank, world_size, balance
        self._epochs, self._threads, self._look_ahead = epochs, threads, look_ahead
        self._pixels = pixels
        self._added_tokens: Any = added_tokens_of(added_tokens)[0]
        self._prefetch_bytes, self._cache_bytes = prefetch_bytes, cache_bytes
        self._cursor: str | None = None
        self._worker, self._workers = 0, 1
        self._taken, self._number = 0, 0
        self._core: _core.BatchLoader | None = None
        self._part: _core.DatasetPart | None = None
        if state is not None:
            self.load_state_dict(state)
        self._processor: dict[str, Any] | None = None
        self._core = self._open()
        self._cursor = self._core.cursor()
        self.units_above_budget: int | None = None
        """Left out or in packs of their own, as ``too_large`` says; None where a state was given,
        whose plan was checked before its first step."""
        if state is None:
            self.units_above_budget = self._core.check_units(0, threads=threads)

    def __iter__(self) -> Iterator[PreferenceBatch[np.ndarray]]:
        """The batches that are left.

        Raises:
            InputError: in one of several workers of torch, each of which would make every batch.
        """
        torch = sys.modules.get("torch.utils.data")
        worker = None if torch is None else torch.get_worker_info()
        if worker is not None and worker.num_workers > self._workers:
            raise InputError(
                f"found a loader of all batches in worker {worker.id} of {worker.num_workers}",
                hint="PreferenceDataset shares the batches out to the workers of a DataLoader",
            )
        return self

    def __next__(self) -> PreferenceBatch[np.ndarray]:
        """The next batch.

        Raises:
            StopIteration: the last epoch is over.
            CorruptDataError: the dataset is damaged where the plan or the batch needs it; the
                message names table, row and file.
        """
        if self._core is None:
            self._core = self._open()
        made = self._core.next_batch()
        self._cursor = self._core.cursor()
        self._taken, self._number = self._core.taken()
        if made is None:
            raise StopIteration
        memory, layout, step, unreadable, zero_weight_pairs = made
        values = (*step, unreadable, zero_weight_pairs, self._column_names, self._processor)
        metadata = dict(zip(METADATA, values, strict=True))
        return assembled(np.frombuffer(memory, np.uint8), layout, metadata)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on after the last batch handed out."""
        return dict(json.loads(self._cursor)) if self._cursor else {}

    def load_state_dict(self, state: Mapping[str, Any] | str) -> None:
        """Go on from a state, or from the cursor of a batch."""
        self.close()
        self._cursor = cursor_json(state)
        self._taken, self._number = 0, 0
        if self._core is not None:
            self._core = self._open()

    def close(self) -> None:
        """End the threads; iterating begins them again."""
        if self._core is not None:
            self._core.stop()

    def part(
        self,
        cursor: str | None,
        epochs: int,
        *,
        worker: int = 0,
        workers: int = 1,
        taken: int = 0,
        number: int = 0,
    ) -> "PreferenceLoader":
        """A loader of every ``workers``-th batch from a cursor on, the units not checked again.

        Args:
            cursor: Of a batch, or :meth:`state_dict` as JSON; None is the start of training.
            epochs: The iterator ends before this epoch.
            worker: Its first batch, below ``workers``.
            workers: How many loaders share the batches of this rank.
            taken: Batches of the rank after the cursor that are passed over.
            number: Of the first batch after those, which decides whose it is.
        """
        part = copy.copy(self)
        part._part = self._part  # Left out of copies, as of pickles.
        part._cursor, part._epochs = cursor, epochs
        part._worker, part._workers = worker, workers
        part._taken, part._number = taken, number
        part._verify = "lazy" if self._verify == "open" else self._verify
        part._core = part._open()
        part._cursor = part._core.cursor()
        return part

    def position(self) -> tuple[str, int, int]:
        """Cursor, ``taken`` and ``number`` of :meth:`part` after the last batch handed out."""
        return self._cursor or "", self._taken, self._number

    def epoch(self, cursor: str) -> tuple[int, str]:
        """The batches of this rank in the epoch of a cursor, and the start of the next epoch.

        Reads what every unit costs.
        """
        if self._core is None:
            self._core = self._open()
        return self._core.epoch(cursor, threads=self._threads)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what belongs to this process."""
        return {**self.__dict__, "_core": None, "_part": None}

    def _check_numbers(self) -> None:
        check_rank(self._rank, self._world_size)
        least = {"threads": 0, "prefetch_bytes": 0, "cache_bytes": 0, "epochs": 1, "look_ahead": 1}
        for name, lowest in least.items():
            check_number(name, getattr(self, f"_{name}"), lowest)

    def _open(self) -> _core.BatchLoader:
        pictures = self._pictures
        threads = self._threads
        if threads == 0 and self._workers > 1:
            threads = max(1, (_cores() - 1) // self._workers)
        self._check_numbers()
        dataset = _core.Dataset(self._path, self._version, self._verify)
        self._processor = json.loads(dataset.tokenizer).get("processor")
        pictures = pictures_of(self._processor, self._plan, pictures)
        settings = pictures.model_dump(include=_NEEDED_IN_CORE) if pictures else {}
        if pictures is not None:
            _check_tokens(pictures, json.loads(dataset.tokenizer).get("vocabulary"))
        shown = None if pictures is None else pictures.model_dump(mode="json")
        conditions = provenance(dataset, self._plan, pictures=shown)
        self._column_names = check_columns(dataset, self._columns, conditions)
        of_pairs, of_responses = (
            [(self._columns[name].column_set, self._columns[name].field) for name in names]
            for names in self._column_names.values()
        )
        return _core.BatchLoader(
            dataset,
            self._plan,
            part=self._part_of(dataset),
            pair_columns=of_pairs,
            response_columns=of_responses,
            processor=json.dumps(settings),
            image_token=pictures.image_token if pictures else None,
            video_token=pictures.video_token if pictures else None,
            image_start_token=pictures.image_start_token if pictures else None,
            image_end_token=pictures.image_end_token if pictures else None,
            rank=self._rank,
            ranks=self._world_size,
            balance=self._balance,
            worker=self._worker,
            workers=self._workers,
            epochs=self._epochs,
            cursor=self._cursor,
            taken=self._taken,
            number=self._number,
            threads=threads,
            prefetch_bytes=self._prefetch_bytes,
            cache_bytes=self._cache_bytes,
            look_ahead=self._look_ahead if self._cache_bytes else 1,
            pixels=self._pixels,
            added_tokens=self._added_tokens,
        )

    def _part_of(self, dataset: _core.Dataset) -> _core.DatasetPart | None:
        """The part of the dataset that the plan is of, found once in a process."""
        if "hold_out" not in json.loads(self._plan):
            return None
        if self._part is None or self._part.fingerprint != dataset.fingerprint:
            self._part = _core.DatasetPart(dataset, self._plan)
        return self._part


def pictures_of(
    processor: Mapping[str, Any] | None, plan: str, pictures: PictureSettings | None
) -> PictureSettings | None:
    """How the pictures of a dataset are prepared: as it records, unless it records nothing.

    Args:
        processor: What the dataset records.
        plan: The plan's JSON; its image rule must be the recorded one.
        pictures: What was asked for; None asks for what is recorded.

    Raises:
        InputError: the plan, or what was asked for, is another than the dataset was packed for.
    """
    rule = json.loads(plan)["image_rule"]
    if processor is None or (rule is None and pictures is None):
        return pictures
    recorded = PictureSettings.model_validate(processor["pictures"])
    asked = recorded if pictures is None else pictures
    found = {"image_rule": rule, "pictures": asked.model_dump(mode="json")}
    expected = {"image_rule": processor["image_rule"], "pictures": recorded.model_dump(mode="json")}
    lines = differences("", found, expected)
    if lines:
        raise InputError(
            "the dataset was packed for a processor with other settings: " + "; ".join(lines),
            hint="leave them out, and they are taken from the dataset; or pack for this processor",
        )
    return recorded


def _check_tokens(pictures: PictureSettings, vocabulary: int | None) -> None:
    """Refuse ids that no embedding of the dataset's tokenizer can have."""
    for name in ("image_token", "video_token", "image_start_token", "image_end_token"):
        token = getattr(pictures, name)
        if vocabulary is not None and token is not None and token >= vocabulary:
            raise InputError(
                f"{name}: found {token}, expected below {vocabulary}, "
                "the vocabulary of the dataset's tokenizer"
            )


def _cores() -> int:
    import os

    return os.cpu_count() or 1
