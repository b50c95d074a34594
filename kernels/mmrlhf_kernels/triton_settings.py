"""How the Triton kernels are launched: tiles, warps and stages, from a table instead of a search.

A search at import or at first launch needs a device, costs seconds, and may choose differently on
two ranks, which would break bitwise agreement. The table below is keyed by architecture, dtype,
hidden size and vocabulary; every entry compiles without spilled registers and within the shared
memory of its architecture (``benches/kernel_compile.py`` proves it without a device). Who knows
better overrides it::

    with use_settings(sweep=Settings(rows=128, columns=128, inner=64, warps=8, stages=3)):
        ...

On sm_90 ``use_settings(loads="descriptors")`` or ``use_settings(loads="specialized")`` takes other
entries of the table, whose kernels load operands differently. They are built and compiled, and no
GPU has timed them, so they are off.

Whether kernels run on a device or in Triton's interpreter is decided once, when this package's
Triton modules are imported: set ``TRITON_INTERPRET=1`` in the environment before.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "SHARED_MEMORY",
    "Device",
    "Loads",
    "Settings",
    "Step",
    "choose_splits",
    "device_of",
    "jit",
    "jit_for_any",
    "require_runnable",
    "settings_for",
    "use_settings",
]

Step = Literal["sweep", "kept", "logit_gradient"]
"""The sweep, the sweep that writes exponentials, and the gradient of logits."""

Loads = Literal["pointers", "descriptors", "specialized"]
"""How kernels load operands: by pointers; by descriptors, which the tensor memory accelerator of
sm_90 reads; or specialized, descriptors in warps that do nothing else."""

SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
"""Bytes of shared memory one program may use; from the vendors' tables."""

CACHE_SHARE = 0.6
"""How much of the L2 cache operands may fill: what else passes through it has to find room."""

WIDTHS = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
"""Bytes of the dtypes the kernels take."""


class Settings(NamedTuple):
    """One launch: a program forms ``rows x columns`` logits, ``inner`` products at a time."""

    rows: int
    """Rows of ``hidden`` per program; a power of two, at least 16."""
    columns: int
    """Vocabulary rows per step; a power of two, at least 16."""
    inner: int
    """Hidden entries per step of the matrix product; a power of two, at least 16."""
    warps: int
    """Warps per program."""
    stages: int
    """Depth of the pipeline that loads operands ahead."""
    group: int = 16
    """Row blocks that run side by side, so that they find the same weights in the L2 cache."""
    splits: int | None = None
    """Parts of the vocabulary that the sweep works on at once; None chooses from the device.

    Sums are combined in the order of the parts, so another number may change the last bit.
    """
    loads: Loads = "pointers"
    """``specialized`` needs 4 warps on sm_90. With the same tiles, the interpreter gives the same
    results bit by bit."""


class _Entry(NamedTuple):
    """A row of the table: applies from ``hidden_size`` and ``vocabulary`` upwards."""

    architecture: str
    width: int
    step: Step | None
    """The kernel, or None for all."""
    settings: Settings
    hidden_size: int = 0
    vocabulary: int = 0
    extras: bool = True
    """Whether it applies with bias, softcap or statistics too, which need more registers."""
    divisor: int = 1
    """What H must be a multiple of; loads of other H are masked and need registers for that."""


_WIDE, _SQUARE = Settings(128, 256, 64, 8, 4), Settings(128, 128, 64, 8, 4)
_TALL = Settings(256, 128, 64, 8, 4, group=8)
_SPECIALIZED: dict[str, Any] = {"warps": 4, "loads": "specialized"}
_TABLE = (
    _Entry("sm_90", 2, "sweep", _WIDE, 512, 8192, False, 64),
    _Entry("sm_90", 2, "logit_gradient", _WIDE, 512, 2048, False, 64),
    _Entry("sm_90", 2, None, _SQUARE, divisor=64),
    _Entry("sm_90", 2, None, Settings(64, 64, 32, 8, 3)),
    _Entry("sm_90", 2, "sweep", _WIDE._replace(loads="descriptors"), 512, 8192, False, 8),
    _Entry("sm_90", 2, "logit_gradient", _WIDE._replace(loads="descriptors"), 512, 2048, False, 8),
    _Entry("sm_90", 2, None, _SQUARE._replace(loads="descriptors"), divisor=8),
    _Entry("sm_90", 2, "sweep", _WIDE._replace(**_SPECIALIZED), 512, 8192, False, 8),
    _Entry("sm_90", 2, "kept", _SQUARE._replace(**_SPECIALIZED), 0, 0, False, 8),
    _Entry("sm_90", 2, "kept", _SQUARE._replace(rows=256, columns=64, **_SPECIALIZED), divisor=8),
    _Entry("sm_90", 2, "logit_gradient", _TALL._replace(**_SPECIALIZED), 512, 2048, False, 8),
    _Entry("sm_90", 2, None, _SQUARE._replace(**_SPECIALIZED), divisor=8),
    _Entry("sm_90", 4, "logit_gradient", Settings(64, 64, 16, 8, 3)),
    _Entry("sm_90", 4, None, Settings(64, 64, 32, 8, 3)),
    _Entry("sm_80", 2, "kept", Settings(128, 64, 64, 8, 4), divisor=64),
    _Entry("sm_80", 2, None, _SQUARE, divisor=64),
    _Entry("sm_80", 2, None, Settings(64, 64, 32, 8, 3)),
    _Entry("sm_80", 4, "kept", Settings(64, 32, 32, 8, 3)),
    _Entry("sm_80", 4, "logit_gradient", Settings(64, 64, 16, 8, 3)),
    _Entry("sm_80", 4, None, Settings(64, 64, 32, 8, 3)),
    _Entry("gfx942", 2, None, Settings(128, 128, 32, 8, 2), divisor=32),
    _Entry("gfx942", 2, None, Settings(64, 64, 32, 8, 2)),
    _Entry("gfx942", 4, None, Settings(64, 64, 32, 8, 2)),
    # Small tiles keep the loops of small tests turning; two splits exercise the combination.
    _Entry("interpreter", 2, None, Settings(16, 32, 16, 1, 1, 2, 2)),
    _Entry("interpreter", 4, None, Settings(16, 32, 16, 1, 1, 2, 2)),
)

_RELATIVES = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_100": "sm_90", "gfx90a": "gfx942"}
"""Architectures that borrow the table of another."""

jit: Callable[[Callable[..., Any]], Any] = triton.jit
"""``triton.jit`` with a type, for the kernels of this package."""


def jit_for_any(*sizes: str) -> Callable[[Callable[..., Any]], Any]:
    """``triton.jit`` for a kernel whose code is the same for all values of some arguments.

    Otherwise Triton compiles a number of rows that is 1, a multiple of 16, or neither, apart.
    """
    decorator: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=[*sizes])
    return decorator


_overrides: dict[str, Any] = {}
"""What :func:`use_settings` was given, for all threads: backward on a GPU runs in its own."""


@jit
def _probe() -> None:
    """Shows by its type how kernels of this process are run."""


INTERPRETED: bool = not isinstance(_probe, triton.runtime.JITFunction)
"""Whether the kernels of this process run in Triton's interpreter, on CPU tensors."""


def require_runnable(*tensors: Tensor | None) -> None:
    """Refuse tensors that the kernels cannot run on, in words instead of a driver's traceback."""
    for tensor in tensors:
        if tensor is None:
            continue
        if not INTERPRETED and not tensor.is_cuda:
            raise RuntimeError(
                f"the Triton kernels need a GPU, and a tensor is on {tensor.device.type}; "
                "hint: use the backend 'chunked', or set TRITON_INTERPRET=1 before "
                "mmrlhf_kernels is imported"
            )
        if tensor.is_floating_point() and tensor.dtype not in WIDTHS:
            raise TypeError(
                f"the Triton kernels take float32, float16 and bfloat16, not {tensor.dtype}; "
                "hint: the backend 'chunked' takes every dtype"
            )


class Device(NamedTuple):
    """What launches depend on."""

    architecture: str
    """``sm_90``, ``gfx942`` and so on, as in :data:`SHARED_MEMORY`; ``interpreter``."""
    multiprocessors: int
    """Programs that run at once when one fills a multiprocessor."""
    cache: int
    """Bytes of the L2 cache."""


@functools.cache
def _device(index: int) -> Device:
    """One GPU, from its driver."""
    found = torch.cuda.get_device_properties(index)
    name = f"sm_{found.major}{found.minor}"
    if torch.version.hip:
        name = str(found.gcnArchName).split(":")[0]
    return Device(name, int(found.multi_processor_count), int(found.L2_cache_size))


def device_of(device: torch.device) -> Device:
    """The GPU of tensors, or the interpreter where kernels are interpreted."""
    if INTERPRETED:
        return Device("interpreter", 1, 1 << 20)
    return _device(torch.cuda.current_device() if device.index is None else device.index)


def settings_for(
    step: Step,
    hidden_size: int,
    vocabulary: int,
    dtype: torch.dtype,
    architecture: str,
    *,
    extras: bool = False,
) -> Settings:
    """The settings of a launch: the override in force, else the first matching table entry.

    An unknown ``architecture`` gets the settings of ``sm_80``, which need the least shared memory,
    or of ``gfx942`` on AMD. ``extras``: the head has a bias or a softcap, or statistics are asked
    for.
    """
    override: Settings | None = _overrides.get("sweep" if step == "kept" else step)
    if override is not None:
        return override
    family = _RELATIVES.get(architecture, architecture)
    if family not in {entry.architecture for entry in _TABLE}:
        family = "gfx942" if family.startswith("gfx") else "sm_80"
    found = [
        entry.settings
        for entry in _TABLE
        if (entry.architecture, entry.width) == (family, WIDTHS[dtype])
        and entry.step in (None, step)
        and hidden_size % entry.divisor == 0
        and hidden_size >= entry.hidden_size
        and vocabulary >= entry.vocabulary
        and (entry.extras or not extras)
    ]
    usual = next(settings for settings in found if settings.loads == "pointers")
    if architecture == "interpreter":
        return usual._replace(loads=_overrides.get("loads", "pointers"))
    wanted = _overrides.get("loads") if architecture == "sm_90" else None
    return next((settings for settings in found if settings.loads == wanted), usual)


@contextmanager
def use_settings(
    *,
    sweep: Settings | None = None,
    logit_gradient: Settings | None = None,
    loads: Loads | None = None,
) -> Iterator[None]:
    """Launch with these settings inside the ``with``; None leaves a setting alone.

    Args:
        sweep: Of the sweep, also of the one that keeps exponentials.
        logit_gradient: Of the gradient of logits.
        loads: Which entries of the table kernels take whose settings are not given; those without
            one, and other architectures than sm_90, keep ``pointers``.

    Raises:
        ValueError: ``loads`` is unknown.
    """
    if loads not in (None, *get_args(Loads)):
        raise ValueError(f"loads is {loads!r}; expected one of {', '.join(get_args(Loads))}")
    given = {"sweep": sweep, "logit_gradient": logit_gradient, "loads": loads}
    before = _overrides.copy()
    _overrides.update({name: value for name, value in given.items() if value is not None})
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


@functools.lru_cache(maxsize=256)
def choose_splits(
    row_blocks: int,
    tiles: int,
    settings: Settings,
    row_bytes: int,
    multiprocessors: int,
    cache: int,
) -> int:
    """Parts of the vocabulary that keep multiprocessors busy and operands in the L2 cache.

    One program takes ``ceil(tiles / splits)`` tiles, and ``row_blocks * splits`` programs run in
    waves of ``multiprocessors``. Of the numbers within 2% of the least ``waves * tiles of a
    program``, it is the smallest whose :func:`live_bytes` fit into :data:`CACHE_SHARE` of the
    ``cache``, or, where none does, the one with the fewest. ``row_bytes`` are those of one row of
    hidden states or of the weight.
    """
    most = min(tiles, max(1, 8 * multiprocessors // row_blocks))
    costs = {
        splits: -(-row_blocks * splits // multiprocessors) * -(-tiles // splits)
        for splits in range(1, most + 1)
    }
    live = {
        splits: live_bytes(splits, row_blocks, settings, row_bytes, multiprocessors)
        for splits, cost in costs.items()
        if cost <= min(costs.values()) * 1.02
    }
    fitting = [splits for splits, size in live.items() if size <= CACHE_SHARE * cache]
    return min(fitting, default=min(live, key=lambda splits: live[splits]))


def live_bytes(
    splits: int, row_blocks: int, settings: Settings, row_bytes: int, multiprocessors: int
) -> float:
    """Bytes that programs of one wave read again and again: their rows, and their weight tiles.

    Programs are numbered group of row blocks by group and within one part by part, so that a wave
    holds ``multiprocessors / splits`` row blocks, and no fewer than a group of them.
    """
    group = min(settings.group, row_blocks)
    blocks = min(row_blocks, max(group, multiprocessors / splits))
    parts = min(splits, multiprocessors / group)
    return row_bytes * (blocks * settings.rows + parts * settings.columns)
