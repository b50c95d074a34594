"""What the packs of an epoch hold, counted by going through them without their pixels.

The packs are those that training would take: the loader makes them, of the same plan.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.arguments import added_tokens_of
from mmrlhf_engine.shards.dataset import FLAGS, ShardDataset
from mmrlhf_engine.shards.loader import PreferenceLoader
from mmrlhf_engine.shards.plan import plan_json
from mmrlhf_engine.train.critiques import Critiques
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.plan import plan_of
from mmrlhf_engine.train.reward import Reward, RewardConfig
from mmrlhf_engine.train.settings import TrainSettings

__all__ = ["EpochCounts", "count_epoch"]

Numbers = npt.NDArray[np.int64]
_PREFETCH_BYTES = 64 << 20


@dataclass(frozen=True)
class EpochCounts:
    """The first epoch of a run, and the length of the others."""

    queries: int
    """Of the dataset."""
    pairs: int
    """Of the dataset."""
    held_out: int
    """Queries that are in no pack, as they are for evaluation."""
    left_out: int
    """Units that fit no pack and were left out of all; or that have a pack of their own."""
    steps: int
    """Of all epochs, or as many as ``steps`` of the settings allows."""
    block_shape: tuple[int, ...]
    """Of a tile (3, height, width), or of a patch (values,); that of pixels, uint8."""
    packs: pl.DataFrame
    """A row a pack, in the order of training; see :func:`count_epoch`."""

    @property
    def steps_of_epoch(self) -> int:
        """Of the first epoch."""
        return int(self.packs["step"].n_unique())

    def total(self, column: str) -> int:
        """The sum of a column of ``packs``."""
        return int(self.packs[column].sum())

    def most(self, column: str) -> int:
        """The largest value of a column of ``packs``."""
        return int(self.packs[column].max())  # type: ignore[arg-type]


def count_epoch(settings: TrainSettings, *, window: int = 0) -> EpochCounts:
    """Go through the packs of the first epoch; no picture is decoded.

    The columns of ``packs``, int64 unless something else is said. Tokens of text around pictures
    are counted as the text they stand in.

    =====================  =========================================================================
    step                   of training
    tokens                 T, all that are in the pack
    prompt_tokens          text of prompts, once a query where units are queries
    image_tokens           that stand for pictures
    answer_tokens          text of answers
    critique_tokens        that follow answers for a reward model
    seen                   pairs of tokens of which one sees the other: of a sequence of L tokens
                           after a prefix of P, ``L P + L (L + 1) / 2``
    rows                   N, tokens of answers whose log-probabilities the loss reads: of those in
                           pairs that are trained on, for ``sft`` of the chosen ones, for
                           ``reward`` tokens of critiques
    pairs                  that are trained on
    ties                   pairs of equal rank that are not
    pair_rows              list of int64, rows of each pair that is trained on, both answers
    shares_answers         bool, whether an answer is in several of these pairs
    pictures               distinct images and videos
    frames                 of them, an image being one
    blocks                 tiles or patches of them
    grid                   per picture, frames times the square of the patches of a frame, summed;
                           0 for tiles
    window_grid            the same of windows of ``window`` by ``window`` patches
    first_pictures, ...    the same four columns, of pictures that no earlier pack had
    pixel_bytes            of the pixels, uint8
    repeated_tokens,       tokens, ``seen``, pictures and blocks if every pair had two sequences of
    repeated_seen, ...     its own, each with prompt and pictures
    =====================  =========================================================================

    Args:
        settings: Of training.
        window: Patches along a side of the windows of the tower's attention; 0 where it has none.

    Raises:
        InputError: the dataset cannot be opened, or a unit is above the budget of a pack.
        CorruptDataError: the dataset is damaged.
    """
    dataset = ShardDataset(settings.shards)
    rule = dataset.processor and dataset.processor["image_rule"]
    critiques = Reward(settings, dataset).critiques if isinstance(settings, RewardConfig) else None
    lengths = None if critiques is None else critiques.lengths
    _, added = added_tokens_of(lengths)
    plan = plan_json(plan_of(settings).model_copy(update={"added_tokens": added}), rule)
    loader = PreferenceLoader(
        Path(settings.shards),
        plan,
        threads=settings.threads,
        prefetch_bytes=_PREFETCH_BYTES,
        pixels=False,
        added_tokens=lengths,
    )
    counter = _Counter(settings, window, critiques)
    try:
        rows = [counter.count(batch) for batch in loader if len(batch.input_ids)]
    finally:
        loader.close()
    if not rows:
        raise InputError(f"{settings.shards}: found no pair to train on, expected some")
    queries = dataset.rows("queries")
    return EpochCounts(
        queries=queries,
        pairs=dataset.rows("pairs"),
        held_out=queries - len(counter.queries) if settings.evaluation.share else 0,
        left_out=loader.units_above_budget or 0,
        steps=_steps(settings, loader, rows[-1]["step"] + 1),
        block_shape=counter.block_shape,
        packs=pl.DataFrame(rows),
    )


def _steps(settings: TrainSettings, loader: PreferenceLoader, of_first: int) -> int:
    """Steps of all epochs; those after the first are planned, not gone through."""
    cursor, steps = json.dumps(loader.state_dict()), of_first
    most = settings.steps or 2**63
    for _ in range(1, settings.epochs):
        if steps >= most:
            break
        _, cursor = loader.epoch(cursor)
        steps = json.loads(cursor)["step"]
    return min(steps, most)


class _Counter:
    """Counts batches one after the other."""

    def __init__(self, settings: TrainSettings, window: int, critiques: Critiques | None) -> None:
        self._reads_rejected = isinstance(settings, MMDPOConfig | RewardConfig)
        self._leaves_out_ties = (
            isinstance(settings, MMDPOConfig) and settings.ties == "leave_out"
        ) or (isinstance(settings, RewardConfig) and not settings.tie_weight)
        self._window, self._critiques = window, critiques
        self.block_shape: tuple[int, ...] = ()
        self.queries: set[int] = set()
        self._pictures: set[tuple[int, ...]] = set()

    def count(self, batch: Any) -> dict[str, Any]:
        """The row of one pack."""
        self.block_shape = tuple(batch.pixel_values.shape[1:])
        packed = np.diff(batch.cu_seqlens).astype(np.int64)
        added, predicted = self._tails(batch)
        own = packed + added
        prefix = batch.prefix_sequence
        before = np.where(prefix >= 0, own[prefix], 0)
        is_answer = packed - batch.prompt_lengths
        image, image_in_prompt = _image_tokens(batch, len(own))
        answers = is_answer.sum() - (image - image_in_prompt).sum()
        self.queries.update(batch.sequence_query.tolist())
        return {
            "step": batch.step,
            "tokens": int(own.sum()),
            "prompt_tokens": int(batch.prompt_lengths.sum() - image_in_prompt.sum()),
            "image_tokens": int(image.sum()),
            "answer_tokens": int(answers),
            "critique_tokens": int(added.sum()),
            "seen": _seen(own, before),
            **self._pairs(batch, is_answer if self._critiques is None else predicted, own + before),
            **self._pictures_of(batch),
            "pixel_bytes": int(batch.image_blocks[-1]) * math.prod(self.block_shape),
        }

    def _tails(self, batch: Any) -> tuple[Numbers, Numbers]:
        """Tokens that follow each sequence, and how many of them are predicted."""
        if self._critiques is None:
            nothing = np.zeros(len(batch.sequence_response), np.int64)
            return nothing, nothing
        tails = [self._critiques.tail(int(row)) for row in batch.sequence_response]
        lengths = np.array([len(tail.tokens) for tail in tails], np.int64)
        return lengths, lengths - np.array([tail.given for tail in tails], np.int64)

    def _pairs(self, batch: Any, answers: Numbers, whole: Numbers) -> dict[str, Any]:
        """``answers`` are predicted tokens of each sequence, ``whole`` all with its prefix's."""
        tie = (batch.pair_flags & FLAGS["tie"]) > 0
        live = batch.pair_weight > 0
        trained = live & ~tie if self._leaves_out_ties else live
        chosen, rejected = batch.pair_chosen[trained], batch.pair_rejected[trained]
        sides = np.concatenate([chosen, rejected])
        read = np.unique(sides if self._reads_rejected else chosen)
        pictures, blocks = _of_sequences(batch, len(answers))
        return {
            "pairs": len(chosen),
            "ties": int((live & ~trained).sum()),
            "rows": int(answers[read].sum()),
            "pair_rows": (answers[chosen] + answers[rejected]).tolist(),
            "shares_answers": bool(len(np.unique(sides)) < len(sides)),
            "repeated_tokens": int(whole[sides].sum()),
            "repeated_seen": _seen(whole[sides], np.zeros(len(sides), np.int64)),
            "repeated_pictures": int(pictures[sides].sum()),
            "repeated_blocks": int(blocks[sides].sum()),
        }

    def _pictures_of(self, batch: Any) -> dict[str, int]:
        blocks = np.diff(batch.image_blocks).astype(np.int64)
        frames = np.maximum(batch.image_frames, 1).astype(np.int64)
        grid, windows = np.zeros_like(blocks), np.zeros_like(blocks)
        if len(self.block_shape) == 1 and len(blocks):
            groups, rows, columns = batch.image_grid_thw.astype(np.int64).T
            grid = groups * (rows * columns) ** 2
            if self._window:
                squares = [_squares(side, self._window) for side in (rows, columns)]
                windows = groups * squares[0] * squares[1]
        keys = np.column_stack([batch.image_blob, batch.image_frames, blocks]).tolist()
        is_new = np.array([tuple(key) not in self._pictures for key in keys], bool)
        self._pictures.update(map(tuple, keys))
        found = {"pictures": np.ones_like(blocks), "frames": frames, "blocks": blocks}
        found |= {"grid": grid, "window_grid": windows}
        first = {f"first_{name}": values[is_new] for name, values in found.items()}
        return {name: int(values.sum()) for name, values in (found | first).items()}


def _seen(own: Numbers, before: Numbers) -> int:
    return int((own * before + own * (own + 1) // 2).sum())


def _image_tokens(batch: Any, sequences: int) -> tuple[Numbers, Numbers]:
    """Tokens that stand for pictures in each sequence, and those that are in its prompt."""
    sequence, length = batch.placeholder_sequence, batch.placeholder_length
    ends = batch.cu_seqlens[:-1] + batch.prompt_lengths
    in_prompt = batch.placeholder_start < ends[sequence]
    of_all = np.bincount(sequence, length, sequences)
    of_prompt = np.bincount(sequence[in_prompt], length[in_prompt], sequences)
    return of_all.astype(np.int64), of_prompt.astype(np.int64)


def _of_sequences(batch: Any, sequences: int) -> tuple[Numbers, Numbers]:
    """Pictures and blocks that each sequence shows, its prefix included."""
    first = batch.placeholder_offset == 0
    sequence, image = batch.placeholder_sequence[first], batch.placeholder_image[first]
    pictures = np.bincount(sequence, minlength=sequences).astype(np.int64)
    blocks = np.bincount(sequence, np.diff(batch.image_blocks)[image], sequences).astype(np.int64)
    prefix = batch.prefix_sequence
    shared = prefix >= 0
    return (
        pictures + np.where(shared, pictures[prefix], 0),
        blocks + np.where(shared, blocks[prefix], 0),
    )


def _squares(side: Numbers, window: int) -> Numbers:
    """Along one side cut into windows, the sum of the squares of their lengths."""
    whole, rest = np.divmod(side, window)
    squares: Numbers = whole * window**2 + rest**2
    return squares
