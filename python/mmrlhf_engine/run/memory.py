"""How much memory there is, and how much of it was used."""

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import pyarrow as pa

__all__ = [
    "current_memory",
    "default_budget",
    "format_size",
    "held_memory",
    "peak_memory",
    "release_memory",
    "reset_peak_memory",
]

_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",  # version 2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # version 1
)


def default_budget() -> int:
    """Half of the memory of the machine, or of its control group if that has less, in bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits) // 2


def format_size(size: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def reset_peak_memory() -> None:
    """Start a new high-water mark, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident set in bytes since the last reset (Linux), else of the process."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def current_memory() -> int:
    """The resident set now in bytes (Linux), else its peak."""
    return _status("VmRSS") or peak_memory()


def held_memory() -> int:
    """What is resident now and cannot be taken back by reading a file again (Linux), in bytes."""
    anonymous, shared = _status("RssAnon"), _status("RssShmem")
    return current_memory() if anonymous is None else anonymous + (shared or 0)


def release_memory() -> None:
    """Give back what allocators keep for later: a stage is followed by one with other needs."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int | None:
    """A size of ``/proc/self/status`` in bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
