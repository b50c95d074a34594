"""How the Triton kernels are launched: tiles, warps and stages, from a table instead of a search.

A search at import or at first launch needs a device, costs seconds, and may choose differently on
two ranks, which would break bitwise agreement. The table below is keyed by architecture, dtype,
hidden size and vocabulary; every entry compiles without spilled registers and within the shared
memory of its architecture (``benches/kernel_compile.py`` proves it without a device). Who knows
better overrides it::

    with use_settings(sweep=Settings(rows=128, columns=128, inner=64, warps=8, stages=3)):
        ...

Whether kernels run on a device or in Triton's interpreter is decided once, when this package's
Triton modules are imported: set ``TRITON_INTERPRET=1`` in the environment before.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "SHARED_MEMORY",
    "Settings",
    "Step",
    "architecture_of",
    "choose_splits",
    "jit",
    "multiprocessors_of",
    "require_runnable",
    "settings_for",
    "use_settings",
]

Step = Literal["sweep", "kept", "logit_gradient"]
"""The sweep, the sweep that writes exponentials, and the gradient of logits."""

SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
"""Bytes of shared memory one program may use; from the vendors' tables."""

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


_TABLE = (
    _Entry("sm_90", 2, "sweep", Settings(128, 256, 64, 8, 4), 512, 8192, False, 64),
    _Entry("sm_90", 2, "logit_gradient", Settings(128, 256, 64, 8, 4), 512, 2048, False, 64),
    _Entry("sm_90", 2, None, Settings(128, 128, 64, 8, 4), divisor=64),
    _Entry("sm_90", 2, None, Settings(64, 64, 32, 8, 3)),
    _Entry("sm_90", 4, "logit_gradient", Settings(64, 64, 16, 8, 3)),
    _Entry("sm_90", 4, None, Settings(64, 64, 32, 8, 3)),
    _Entry("sm_80", 2, "kept", Settings(128, 64, 64, 8, 4), divisor=64),
    _Entry("sm_80", 2, None, Settings(128, 128, 64, 8, 4), divisor=64),
    _Entry("sm_80", 2, None, Settings(64, 64, 32, 8, 3)),
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

_overrides: ContextVar[dict[str, Settings] | None] = ContextVar("overrides", default=None)


@jit
def _probe() -> None:
    """Shows by its type how kernels of this process are run."""


INTERPRETED: bool = not isinstance(_probe, triton.runtime.JITFunction)
"""Whether the kernels of this process run in Triton's interpreter, on CPU tensors."""


def require_runnable(*tensors: Tensor | None) -> None:
    """Refuse tensors that the kernels cannot run on, in words instead of a driver's traceback.

    Raises:
        RuntimeError: A tensor is not on a GPU, and the kernels are not interpreted.
        TypeError: A floating tensor is none of float32, float16 and bfloat16.
    """
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


@functools.cache
def _architecture(index: int) -> str:
    """The name of one device's architecture, as in :data:`SHARED_MEMORY`."""
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(index).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def architecture_of(device: torch.device) -> str:
    """``sm_90``, ``gfx942`` and so on; ``interpreter`` where kernels are interpreted."""
    if INTERPRETED:
        return "interpreter"
    return _architecture(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors_of(device: torch.device) -> int:
    """Programs the device runs at once when one fills a multiprocessor; 1 if interpreted."""
    if INTERPRETED:
        return 1
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


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

    Args:
        step: Which kernel.
        hidden_size: H.
        vocabulary: Vocabulary rows of the launch.
        dtype: dtype of ``hidden`` and ``weight``.
        architecture: As :func:`architecture_of` names it; an unknown one gets the settings of
            ``sm_80``, which need the least shared memory, or of ``gfx942`` on AMD.
        extras: Whether the head has a bias or a softcap, or statistics are asked for.
    """
    override = (_overrides.get() or {}).get("sweep" if step == "kept" else step)
    if override is not None:
        return override
    family = _RELATIVES.get(architecture, architecture)
    if family not in {entry.architecture for entry in _TABLE}:
        family = "gfx942" if family.startswith("gfx") else "sm_80"
    return next(
        entry.settings
        for entry in _TABLE
        if (entry.architecture, entry.width) == (family, WIDTHS[dtype])
        and entry.step in (None, step)
        and hidden_size % entry.divisor == 0
        and hidden_size >= entry.hidden_size
        and vocabulary >= entry.vocabulary
        and (entry.extras or not extras)
    )


@contextmanager
def use_settings(
    *, sweep: Settings | None = None, logit_gradient: Settings | None = None
) -> Iterator[None]:
    """Launch with these settings inside the ``with``; None leaves a kernel's settings alone."""
    given = {"sweep": sweep, "logit_gradient": logit_gradient}
    merged = dict(_overrides.get() or {})
    merged.update({step: settings for step, settings in given.items() if settings is not None})
    token = _overrides.set(merged)
    try:
        yield
    finally:
        _overrides.reset(token)


@functools.lru_cache(maxsize=256)
def choose_splits(row_blocks: int, tiles: int, multiprocessors: int) -> int:
    """Parts of the vocabulary that leave the fewest multiprocessors idle at the end.

    One program takes ``ceil(tiles / splits)`` tiles, and ``row_blocks * splits`` programs run in
    waves of ``multiprocessors``; the chosen number is the smallest within 2% of the least
    ``waves * tiles of a program``.

    Args:
        row_blocks: Blocks of rows.
        tiles: Vocabulary tiles in all.
        multiprocessors: Programs that run at once.
    """
    most = min(tiles, max(1, 8 * multiprocessors // row_blocks))
    costs = [
        -(-row_blocks * splits // multiprocessors) * -(-tiles // splits)
        for splits in range(1, most + 1)
    ]
    allowed = min(costs) * 1.02
    return next(splits for splits, cost in enumerate(costs, start=1) if cost <= allowed)
