"""Batches of preference pairs as a dataset of torch, made in one line and right under any loader.

With ``torch_epochs``, the only module of ``shards`` that imports torch.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from mmrlhf_engine import _core
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.shards.arguments import (
    added_tokens_of,
    check_rank,
    cursor_json,
    folder,
    from_environment,
    packs_of,
)
from mmrlhf_engine.shards.batch import PreferenceBatch
from mmrlhf_engine.shards.columns import ColumnRequest
from mmrlhf_engine.shards.image_rule import read_rule
from mmrlhf_engine.shards.loader import PictureSettings, PreferenceLoader
from mmrlhf_engine.shards.plan import Budget, HoldOut, PlanSettings, plan_json
from mmrlhf_engine.shards.torch_epochs import Epochs, Position

__all__ = ["PreferenceDataset"]

_LOADER_SETTINGS = frozenset(
    (
        "balance",
        "threads",
        "prefetch_bytes",
        "cache_bytes",
        "look_ahead",
        "version",
        "verify",
        "pixels",
    )
)
_PLAN_SETTINGS = frozenset(PlanSettings.model_fields)
_Batch = PreferenceBatch[np.ndarray]


class PreferenceDataset(IterableDataset[_Batch]):
    """The batches of this rank, an epoch at each ``iter``; threads make them ahead of the caller.

    ``DataLoader(dataset, batch_size=None, num_workers=n)`` gives the same batches in the same order
    for every n; a dataset that is iterated itself needs none. Each ``iter`` is the next epoch, in
    another order, unless :meth:`set_epoch` says which.

    A batch belongs to one rank already. ``accelerator.prepare`` takes the loader of
    :meth:`data_loader` as it is; of any other ``DataLoader`` it would deal the batches of a rank
    out to all ranks, which is refused where it is noticed.

    Args:
        path: The folder of the dataset.
        tokens: The most that a batch may hold, of text and images together; or ``budget``.
        budget: Limits by measure instead, such as ``Budget(tokens=16_384, images=8)``.
        packs_per_step: Batches of a step over all ranks; None is that of ``state``, else one for
            each rank. Where the ranks do not divide it, empty batches even them out.
        unit: What is drawn and packed as a whole. Of responses, the pairs are those whose two
            answers meet in a batch; any other pair of theirs is in none.
        seed: Of every random choice.
        hold_out: A share of the queries that is held out, and which part this dataset is:
            ``{"share": 0.02}`` leaves them out, ``{"share": 0.02, "part": "held_out"}`` is them
            alone. Queries that share pictures are in one part. None is the whole dataset.
        columns: Sidecar columns that batches carry, by their names there.
        image_rule: How many tokens images become: a name or folder for ``read_rule``, or the
            parameters; None is what the dataset records of its processor.
        pictures: How images are prepared; None is what the dataset records of its processor.
        added_tokens: uint32 [responses], tokens that the caller adds to each response after
            loading: packs leave room for them.
        rank: Which process this is; None is that of ``torch.distributed`` if it is initialised,
            else that of the environment variables ``RANK`` and ``WORLD_SIZE``, else 0 of 1.
        world_size: How many there are; given with ``rank`` or not at all.
        state: Where to go on, as for :meth:`load_state_dict`.
        settings: Any other setting of :class:`PlanSettings` (``too_large``, ``window``, ...) or
            :class:`PreferenceLoader` (``threads``, ``cache_bytes``, ``verify``, ...).

    Raises:
        ConfigError: a setting is unknown or out of range.
        InputError: as :class:`PreferenceLoader` does; units above the budget among them.
        CorruptDataError: the dataset is damaged.
    """

    def __init__(
        self,
        path: Path | str,
        tokens: int | None = None,
        *,
        budget: Budget | Mapping[str, int] | None = None,
        packs_per_step: int | None = None,
        unit: Literal["pair", "response", "query"] = "query",
        seed: int = 0,
        hold_out: HoldOut | Mapping[str, Any] | None = None,
        columns: Mapping[str, ColumnRequest] | None = None,
        image_rule: str | Mapping[str, Any] | None = None,
        pictures: PictureSettings | None = None,
        added_tokens: npt.NDArray[np.uint32] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        state: Mapping[str, Any] | str | None = None,
        **settings: Any,
    ) -> None:
        self._rank, self._world_size = _place(rank, world_size)
        self._is_given = rank is not None
        self._path = folder(path)
        unknown = sorted(settings.keys() - _PLAN_SETTINGS - _LOADER_SETTINGS)
        if unknown:
            known = ", ".join(sorted(_PLAN_SETTINGS | _LOADER_SETTINGS))
            raise ConfigError(f"found {', '.join(unknown)}, expected settings among {known}")
        for_loader = {name: settings.pop(name) for name in _LOADER_SETTINGS & settings.keys()}
        _, added = added_tokens_of(added_tokens)
        plan = _plan(
            {
                "added_tokens": added,
                "budget": _budget(tokens, budget),
                "packs_per_step": _packs_per_step(packs_per_step, state, self._world_size),
                "unit": unit,
                "seed": seed,
                "hold_out": hold_out,
                **settings,
            }
        )
        opened = _core.Dataset(self._path, for_loader.get("version"), "off")
        rule, pictures = _processor_of(opened, image_rule, pictures)
        self._packs_per_step = plan.packs_per_step
        with _hint_of_packs(state, plan.packs_per_step):
            self._loader = PreferenceLoader(
                path,
                plan_json(plan, rule),
                self._rank,
                self._world_size,
                pictures=pictures,
                columns=columns,
                added_tokens=added_tokens,
                state=state,
                **for_loader,
            )
        first, *_ = self._loader.part(None, epochs=1).position()
        self._first: dict[str, Any] = json.loads(first)
        self._epochs = Epochs()
        self._cursor: str | None = None
        self._lengths: dict[int, int] = {}
        if state is not None:
            self.load_state_dict(state)

    def __iter__(self) -> "_EpochIterator":
        """The batches of the next epoch; in a worker of torch, those that are the worker's."""
        self._check_process_group()
        return _EpochIterator(self, self._epochs.begin(get_worker_info()))

    def __len__(self) -> int:
        """The batches of this rank in the epoch that is iterated, or else in the next one.

        It is of the whole epoch, also where a loaded state goes on in the middle of it.
        Reads what every unit costs, once an epoch. Epochs differ by a few batches, since other
        units meet in a pack.
        """
        epoch = self._epochs.current()
        if epoch not in self._lengths:
            batches, following = self._loader.epoch(self._start_of(epoch))
            self._epochs.keep(_position(json.loads(following)))
            self._lengths[epoch] = batches
        return self._lengths[epoch]

    @property
    def units_above_budget(self) -> int | None:
        """How many ``too_large`` leaves out or gives packs of their own; None with a state."""
        return self._loader.units_above_budget

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter`` be of this epoch, from its start, or from the state just loaded.

        Raises:
            InputError: the state just loaded is of another epoch; it is not a whole number; or
                ``accelerate`` would deal the batches of this rank out to all ranks.
        """
        if not isinstance(epoch, Integral):
            raise InputError(f"epoch: found {epoch!r}, expected a whole number")
        if get_worker_info() is not None:
            raise InputError("set_epoch: called in a worker", hint="call it in the main process")
        _refuse_wrapper_of(self)
        loaded = self._epochs.loaded()
        if loaded is None:
            self._epochs.restart(epoch)
            self._cursor = None
        elif loaded.epoch != epoch:
            raise InputError(
                f"set_epoch: found {epoch}, expected {loaded.epoch}, the epoch of the loaded state",
                hint=f"begin the loop at epoch {loaded.epoch}",
            )

    def data_loader(self, **options: Any) -> DataLoader[_Batch]:
        """A ``DataLoader`` of this dataset that ``accelerate`` and its trainers take as it is.

        Where accelerate is loaded, it is one of its own, so that gradients are accumulated to the
        end of an epoch and batches of a resumed epoch can be skipped.

        Args:
            options: Of torch's ``DataLoader``: ``num_workers``, ``collate_fn``, ... The batch size
                is None, as a batch is made already.

        Raises:
            InputError: a batch size is given.
        """
        if options.pop("batch_size", None) is not None:
            raise InputError(
                "batch_size: found a number, expected None, as a batch is made already",
                hint="tokens or budget is what a batch holds",
            )
        kind: Any = DataLoader
        if "accelerate" in sys.modules:
            from accelerate.data_loader import DataLoaderShard

            kind = DataLoaderShard
        loader: Any = kind(self, batch_size=None, **options)
        loader._is_accelerate_prepared = True
        made: DataLoader[_Batch] = loader
        return made

    def state_dict(self, batch: PreferenceBatch[Any] | None = None) -> dict[str, Any]:
        """Where to go on after a batch, on any number of ranks and workers, as JSON can hold it.

        In the middle of a step it is the step's start. Without a batch it is the position after the
        last one that this process made, which is not known where workers make them.

        Raises:
            InputError: workers of a ``DataLoader`` made the batches, and none is given.
        """
        if batch is not None:
            return dict(json.loads(batch.cursor))
        if get_worker_info() is None and self._epochs.in_workers():
            raise InputError(
                "state_dict: workers of a DataLoader make the batches, and how many of them were "
                "handed out is not known here",
                hint="dataset.state_dict(batch) of the last batch, or torchdata's "
                "StatefulDataLoader and its state_dict()",
            )
        cursor = self._cursor or self._start_of(self._epochs.next())
        return dict(json.loads(cursor))

    def load_state_dict(self, state: Mapping[str, Any] | str) -> None:
        """Let the next ``iter`` go on from a state, or from the ``cursor`` of a batch.

        Raises:
            InputError: the state is of another dataset or plan; the message names the settings
                that differ.
        """
        if get_worker_info() is not None:
            return  # torchdata restores the iterator of each worker after this call.
        cursor = cursor_json(state)
        with _hint_of_packs(cursor, self._packs_per_step):
            self._loader.part(cursor, epochs=1)
        position = _position(json.loads(cursor))
        self._epochs.restart(position.epoch, position)
        self._cursor = None

    def __repr__(self) -> str:
        return f"PreferenceDataset({str(self._path)!r}, rank {self._rank} of {self._world_size})"

    def _start_of(self, epoch: int) -> str:
        """The cursor at which an epoch begins: where a loaded state is in it, else its start."""
        known = self._epochs.known(epoch)
        exact = [position for position in known if position.epoch == epoch]
        if exact:
            return self._cursor_at(exact[0])
        first = _position(self._first)
        cursor = self._cursor_at(max(known, default=first, key=lambda position: position.epoch))
        while (position := _position(json.loads(cursor))).epoch < epoch:
            self._lengths[position.epoch], cursor = self._loader.epoch(cursor)
        self._epochs.keep(position)
        return cursor

    def _cursor_at(self, position: Position) -> str:
        numbers = position._asdict()
        seen = {name: numbers.pop(name) for name in ("pairs", "text_tokens", "image_tokens")}
        return json.dumps({**self._first, **numbers, "seen": seen})

    def _check_process_group(self) -> None:
        if not self._is_given and _place(None, None) != (self._rank, self._world_size):
            raise InputError(
                f"{self!r} was made before torch.distributed was initialised",
                hint="make it afterwards, or give rank and world_size",
            )


class _EpochIterator(Iterator[_Batch]):
    """The batches of one epoch, or a worker's share of them; its state is exact to the batch.

    The protocol is that of ``torchdata.stateful_dataloader``.
    """

    def __init__(self, dataset: PreferenceDataset, epoch: int) -> None:
        self._dataset, self._epoch = dataset, epoch
        self._worker = get_worker_info()
        self._open(dataset._start_of(epoch))

    def _open(self, cursor: str, taken: int = 0, number: int = 0) -> None:
        share = (
            {}
            if self._worker is None
            else {"worker": self._worker.id, "workers": self._worker.num_workers}
        )
        self._batches = self._dataset._loader.part(
            cursor, self._epoch + 1, taken=taken, number=number, **share
        )
        self._dataset._cursor = cursor

    def __next__(self) -> _Batch:
        batch = next(self._batches)
        self._dataset._cursor = batch.cursor
        if batch.ends_step:
            position = _position(json.loads(batch.cursor))
            if position.epoch > self._epoch:
                self._dataset._epochs.keep(position)
                self._dataset._epochs.finished(self._epoch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, for the same rank and worker."""
        cursor, taken, number = self._batches.position()
        position = {"cursor": json.loads(cursor), "taken": taken, "number": number}
        return {**position, "epoch": self._epoch, **self._place()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same rank and worker.

        Raises:
            InputError: it is of another rank or worker, or of another number of them.
        """
        for name, here in self._place().items():
            if state[name] != here:
                raise InputError(
                    f"state of a DataLoader: found {name} {state[name]}, expected {here}",
                    hint="dataset.load_state_dict(batch.cursor) goes on with any number of ranks "
                    "and workers",
                )
        self._epoch = state["epoch"]
        self._dataset._epochs.claim(self._epoch, self._worker)
        self._open(json.dumps(state["cursor"]), state["taken"], state["number"])

    def _place(self) -> dict[str, int]:
        worker = self._worker
        return {
            "rank": self._dataset._rank,
            "world_size": self._dataset._world_size,
            "worker": 0 if worker is None else worker.id,
            "num_workers": 0 if worker is None else worker.num_workers,
        }


def _position(cursor: Mapping[str, Any]) -> Position:
    numbers = {**cursor, **cursor["seen"]}
    return Position(*(numbers[name] for name in Position._fields))


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The rank and the world size, from arguments, the process group or the environment."""
    if rank is not None and world_size is not None:
        check_rank(rank, world_size)
        return rank, world_size
    if rank is not None or world_size is not None:
        raise InputError(f"found rank {rank} and world_size {world_size}, expected both or none")
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        found = from_environment("RANK"), from_environment("WORLD_SIZE")
        check_rank(*found)
        return found
    return 0, 1


def _packs_per_step(
    given: int | None, state: Mapping[str, Any] | str | None, world_size: int
) -> int:
    if given is not None:
        return given
    return packs_of(state) or world_size


@contextmanager
def _hint_of_packs(state: Mapping[str, Any] | str | None, packs_per_step: int) -> Iterator[None]:
    """Say what to do about a state that was refused and is of other steps."""
    try:
        yield
    except InputError as error:
        packs = packs_of(state)
        if error.hint is not None or packs in (None, packs_per_step):
            raise
        raise InputError(
            error.args[0],
            hint=f"packs_per_step={packs} goes on with the steps of the state, on any number of "
            "ranks; PreferenceDataset(..., state=state) takes it from the state",
        ) from None


def _budget(tokens: int | None, budget: Budget | Mapping[str, int] | None) -> Any:
    if (tokens is None) == (budget is None):
        found = "none" if tokens is None else "both"
        raise ConfigError(f"tokens and budget: found {found}, expected one of them")
    return {"tokens": tokens} if budget is None else budget


def _plan(settings: dict[str, Any]) -> PlanSettings:
    try:
        return PlanSettings(**settings)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: found {problem['input']!r}, {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError("; ".join(problems)) from None


def _processor_of(
    dataset: _core.Dataset,
    image_rule: str | Mapping[str, Any] | None,
    pictures: PictureSettings | None,
) -> tuple[Mapping[str, Any] | None, PictureSettings | None]:
    """The image rule and the settings of pictures: those given, else those the dataset records."""
    recorded = json.loads(dataset.tokenizer).get("processor")
    if recorded is not None:
        image_rule = recorded["image_rule"] if image_rule is None else image_rule
        pictures = pictures or PictureSettings.model_validate(recorded["pictures"])
    rule = read_rule(image_rule).parameters if isinstance(image_rule, str) else image_rule
    return rule, pictures


def _refuse_collation(*_: Any, **__: Any) -> None:
    raise InputError(
        "DataLoader: found a batch size, expected batch_size=None, as a batch is made already",
        hint="DataLoader(dataset, batch_size=None, ...), or dataset.data_loader(...)",
    )


default_collate_fn_map[PreferenceBatch] = _refuse_collation


def _refuse_wrapper_of(dataset: PreferenceDataset) -> None:
    """An error where ``accelerate`` iterates a loader that deals the batches out a second time."""
    state = sys.modules.get("accelerate.state")
    active = None if state is None else state.GradientState().active_dataloader
    inner = getattr(active, "dataset", None)
    dispatched = inner is dataset and type(active).__name__ == "DataLoaderDispatcher"
    if active is not None and (dispatched or getattr(inner, "dataset", None) is dataset):
        active.end()  # Its iteration is over; the next may be under another loader.
        raise InputError(
            f"accelerate would deal out to all ranks the batches of {dataset!r}, which are this "
            "rank's own",
            hint="dataset.data_loader(num_workers=...) is a DataLoader that accelerate leaves as "
            "it is; a Trainer's get_train_dataloader may return it",
        )
