"""What a training run would do, said without loading weights or decoding pictures.

``mmrlhf-engine mm-dpo SHARDS --model MODEL --dry-run`` prints it. Data are counted over the packs
of the first epoch (:mod:`mmrlhf_engine.train.dry_run.epoch_counts`), sizes read from the model's
``config.json`` (``model_sizes``), and work (``costs``) and memory (``memory``) follow from both.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.train.dry_run.costs import Work, head_plans, work_of_epoch
from mmrlhf_engine.train.dry_run.epoch_counts import EpochCounts, count_epoch
from mmrlhf_engine.train.dry_run.memory import (
    MemoryPart,
    collected_bytes,
    element_size,
    memory_of_step,
    total,
)
from mmrlhf_engine.train.dry_run.model_sizes import ModelSizes, build_on_meta, read_sizes
from mmrlhf_engine.train.settings import LoraSettings, TrainSettings

__all__ = ["Device", "describe_training"]

_GIB = 2**30
_DEVICES = (1, 4, 8)
_NAME = 44
_COMFORTABLE = 0.9
"""Of the memory of a device: kernels and the allocator need some that is not accounted for."""


class Device(NamedTuple):
    """What the memory is compared with."""

    name: str
    bytes: int


def describe_training(settings: TrainSettings, *, device: Device | None = None) -> str:
    """The data, the work and the memory of a run, as text.

    Args:
        settings: Of ``mm-dpo`` or another training command; ``shards`` and ``model`` are needed.
        device: What the memory is compared with; None is the GPU that is there, else 80 GiB.

    Raises:
        ConfigError: the model's configuration cannot be read, or a setting does not fit it.
        InputError: there is no dataset or no pair in it, it was packed for another model, or a unit
            fits no pack.
        CorruptDataError: the dataset is damaged.
    """
    from mmrlhf_engine.train.setup import checked, resolved

    resolved(settings)
    checked(settings)
    sizes = read_sizes(build_on_meta(settings.model), settings)
    counts = count_epoch(settings, window=sizes.tower.window if sizes.tower else 0)
    _check_steps(counts)
    device = device or _device()
    element = element_size(settings)
    lines = [
        f"dry run of {settings.model} on {settings.shards}: no weight loaded, no picture decoded",
        *_data(counts, settings),
        *_parameters(sizes, settings),
        *_work(sizes, counts, settings, element),
        *_memory(sizes, counts, settings, element, device),
        *_hints(sizes, counts, settings, element, device),
    ]
    return "\n".join(lines)


def _check_steps(counts: EpochCounts) -> None:
    if not counts.total("pairs"):
        raise InputError(
            f"found no pair of differing rank among {counts.total('ties'):,}, expected some",
            hint="ties=fair_coin trains on pairs of equal rank",
        )


def _device() -> Device:
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(found.name, found.total_memory)
    return Device("a GPU of 80 GiB (none is here)", 80 * _GIB)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["", title, *(f"  {name:{_NAME}}{value}" for name, value in rows)]


def _data(counts: EpochCounts, settings: TrainSettings) -> list[str]:
    return _section("data of an epoch", _data_rows(counts, settings))


def _data_rows(counts: EpochCounts, settings: TrainSettings) -> Iterator[tuple[str, str]]:
    data, sums = settings.data, counts.total
    packs, tokens = len(counts.packs), sums("tokens")
    yield "queries", f"{counts.queries:,}, of which {counts.held_out:,} are held out"
    yield "pairs", f"{sums('pairs'):,} of {counts.pairs:,}, {sums('ties'):,} ties left out"
    if counts.left_out:
        fate = {"alone": "have packs of their own", "drop": "are left out"}[data.too_large]
        yield "above the budget", f"{counts.left_out:,} ({data.unit}), which {fate}"
    yield "packs", f"{packs:,} of up to {data.tokens:,} tokens, by {data.unit}"
    least = int(counts.packs["tokens"].min())  # type: ignore[arg-type]
    yield "", f"{tokens / packs / data.tokens:.1%} full, the least {least / data.tokens:.1%}"
    yield "steps", f"{counts.steps_of_epoch:,} of {data.packs_per_step} packs"
    yield "steps in all", f"{counts.steps:,}, epochs: {settings.epochs}"
    yield "tokens", f"{tokens:,}"
    for name, column in (
        ("text of prompts", "prompt_tokens"),
        ("of pictures", "image_tokens"),
        ("answers", "answer_tokens"),
        ("critiques and requests", "critique_tokens"),
    ):
        if sums(column):
            yield f"  {name}", f"{sums(column):,} ({sums(column) / tokens:.1%})"
    repeated = sums("repeated_tokens")
    yield "  each pair with its prompt", f"{repeated:,}, {repeated / tokens:.2f} times as many"
    if sums("pictures"):
        frames = f" ({sums('frames'):,} frames)" if sums("frames") > sums("pictures") else ""
        kind = "patches" if len(counts.block_shape) == 1 else "tiles"
        yield "pictures", f"{sums('first_pictures'):,} distinct ones"
        yield "  encoded", f"{sums('pictures'):,}{frames} as {sums('blocks'):,} {kind}"
        times = sums("repeated_blocks") / max(1, sums("blocks"))
        yield (
            "  each pair with its pictures",
            (
                f"{sums('repeated_pictures'):,} as {sums('repeated_blocks'):,} {kind}, "
                f"{times:.2f} times as many"
            ),
        )


def _parameters(sizes: ModelSizes, settings: TrainSettings) -> list[str]:
    rows = []
    for part, count in sizes.parameters.items():
        if part == "head" and sizes.tied:
            rows.append(("head", "is the embeddings"))
        elif count:
            state = "trained" if part in sizes.trained else "frozen"
            rows.append((part, f"{count:,} {state}"))
    trained = sizes.count(trained=True)
    whole = trained + sizes.count(trained=False)
    rows.append(("trained", f"{trained:,} of {whole:,} ({trained / whole:.1%})"))
    if settings.lora is not None:
        rows.append(("adapters", f"of rank {settings.lora.rank}; nothing else trains"))
    return _section("parameters", rows)


def _work(
    sizes: ModelSizes, counts: EpochCounts, settings: TrainSettings, element: int
) -> list[str]:
    work = work_of_epoch(sizes, counts, settings, element)
    whole = sum(work.values(), Work())
    head = ("", f"{'forward':>12}{'backward':>12}{'again':>12}{'share':>9}")
    rows = [head, *(_work_row(part, own, whole) for part, own in work.items())]
    rows.append(_work_row("all", whole, whole))
    rows.append(("a step", f"{whole.total / counts.steps_of_epoch / 1e12:,.1f} TFLOP"))
    plans = Counter(plan.schedule for plan in head_plans(sizes, counts, settings, element))
    named = ", ".join(f"{name} ({count:,} packs)" for name, count in plans.most_common())
    rows.append(("head, by schedule", f"{named}, over {counts.total('rows'):,} rows of answers"))
    return _section("work of an epoch, TFLOP", rows)


def _work_row(name: str, work: Work, whole: Work) -> tuple[str, str]:
    numbers = (work.forward, work.backward, work.again)
    columns = "".join(f"{number / 1e12:>12,.1f}" for number in numbers)
    return name, f"{columns}{work.total / max(1, whole.total):>9.1%}"


def _memory(
    sizes: ModelSizes,
    counts: EpochCounts,
    settings: TrainSettings,
    element: int,
    device: Device,
) -> list[str]:
    parts = memory_of_step(sizes, counts, settings, element)
    heads = "".join(f"{_count(number):>12}" for number in _DEVICES)
    rows = [("ZeRO-3 on more than one", heads)]
    rows += [(part.name, _memory_row(part)) for part in parts]
    collected = [collected_bytes(sizes, number, element) for number in _DEVICES]
    rows.append(("weights collected at once", "".join(_gib(size) for size in collected)))
    sums = [total(parts, sizes, number, element) for number in _DEVICES]
    rows.append(("all", "".join(_gib(size) for size in sums)))
    rows.append(("", "".join(f"{_verdict(size, device):>12}" for size in sums)))
    kind = "bfloat16" if element < 4 else "float32"
    title = (
        f"memory of a device, GiB, in {kind}, largest pack {counts.most('tokens'):,} tokens; "
        f"{device.name} has {device.bytes / _GIB:,.1f}"
    )
    return _section(title, rows)


def _count(devices: int) -> str:
    return f"{devices} device" + "s" * (devices > 1)


def _memory_row(part: MemoryPart) -> str:
    return "".join(_gib(part.bytes / number if part.divided else part.bytes) for number in _DEVICES)


def _gib(size: float) -> str:
    return f"{size / _GIB:>12,.2f}"


def _hints(
    sizes: ModelSizes,
    counts: EpochCounts,
    settings: TrainSettings,
    element: int,
    device: Device,
) -> list[str]:
    """Other settings, each with what it would take, where one device has too little."""
    parts = memory_of_step(sizes, counts, settings, element)
    if _verdict(total(parts, sizes, 1, element), device) == "fits":
        return []
    rows = []
    for name, other in _alternatives(settings):
        changed = read_sizes(build_on_meta(other.model), other)
        size = total(memory_of_step(changed, counts, other, element), changed, 1, element)
        rows.append((name, f"{size / _GIB:,.2f} GiB, {_verdict(size, device)}"))
    enough = [
        number
        for number in (2, 4, 8, 16, 32, 64)
        if _verdict(total(parts, sizes, number, element), device) == "fits"
    ]
    least = f"fits on {enough[0]} devices" if enough else "too large on 64 devices"
    rows.append(("DeepSpeed ZeRO-3", least))
    rows.append(("a smaller data.tokens", _smaller_packs(parts, counts)))
    return _section("too large, or tight, for one device; instead", rows)


def _alternatives(settings: TrainSettings) -> Iterator[tuple[str, TrainSettings]]:
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing", settings.model_copy(update={"gradient_checkpointing": True})
    if settings.lora is None:
        lora = LoraSettings()
        yield (
            f"lora of rank {lora.rank}, frozen_weights=bfloat16",
            settings.model_copy(
                update={
                    "lora": lora,
                    "frozen_weights": "bfloat16",
                    "gradient_checkpointing": True,
                }
            ),
        )
    if settings.optimizer.name == "adamw":
        optimizer = settings.optimizer.model_copy(update={"name": "adafactor"})
        yield "optimizer.name=adafactor", settings.model_copy(update={"optimizer": optimizer})


def _verdict(size: int, device: Device) -> str:
    if size > device.bytes:
        return "too large"
    return "fits" if size <= _COMFORTABLE * device.bytes else "tight"


def _smaller_packs(parts: list[MemoryPart], counts: EpochCounts) -> str:
    undivided = sum(part.bytes for part in parts if not part.divided)
    each = undivided / counts.most("tokens") * 1024 / _GIB
    return f"saves about {each:.2f} GiB for every 1,024 tokens less"
