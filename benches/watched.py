"""Runs a command under a memory limit, and measures what it held: memory, disk, seconds."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Watched", "run_watched"]

_GROUPS = Path("/sys/fs/cgroup/memory")
_EVERY = 0.1


@dataclass
class Watched:
    """What a command used.

    Attributes:
        seconds: From start to end.
        processor_seconds: Of it and what it started.
        peak_memory: Bytes of anonymous and shared memory (RssAnon + RssShmem) of all its processes
            together, the largest of samples a tenth of a second apart.
        peak_disk: Bytes in the watched folder, the largest of samples a second apart.
        peak_by_part: The same memory by the newest folder in the watched one: by stage of a run.
        limited_by: ``cgroup``, which counts the page cache too, or ``watchdog``, which kills the
            command when ``peak_memory`` passes the limit.
    """

    seconds: float
    processor_seconds: float
    peak_memory: int
    peak_disk: int
    limited_by: str
    peak_by_part: dict[str, int] = field(default_factory=dict)


def run_watched(command: Sequence[str], folder: Path, limit: int, **options: object) -> Watched:
    """Run ``command`` to its end; ``folder`` is where it writes, ``limit`` the bytes it may hold.

    Raises:
        RuntimeError: it failed, or passed the limit.
    """
    with _memory_group(limit) as group:
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        join = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
        process = subprocess.Popen(command, preexec_fn=join, **options)  # type: ignore[call-overload]
        found = Watched(0, 0, 0, 0, "cgroup" if group else "watchdog")
        watcher = threading.Thread(target=_watch, args=(process, folder, limit, found))
        watcher.start()
        code = process.wait()
        watcher.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.seconds = time.monotonic() - started
    found.processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if code:
        held = f"{found.peak_memory / 2**30:.2f} GiB held at most, {found.limited_by}"
        raise RuntimeError(f"{command[0]} ended with {code} ({held})")
    return found


def _watch(process: subprocess.Popen[bytes], folder: Path, limit: int, found: Watched) -> None:
    looks = 0
    while process.poll() is None:
        held = sum(map(_held, _family(process.pid)))
        found.peak_memory = max(found.peak_memory, held)
        part = max((entry.name for entry in folder.glob("[0-9]*")), default="")
        found.peak_by_part[part] = max(found.peak_by_part.get(part, 0), held)
        if looks % 10 == 0:
            found.peak_disk = max(found.peak_disk, _size(folder))
        if found.limited_by == "watchdog" and found.peak_memory > limit:
            process.send_signal(signal.SIGKILL)
        looks += 1
        time.sleep(_EVERY)


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _held(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * sum(
            int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))
        )
    return 0


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total


@contextlib.contextmanager
def _memory_group(limit: int) -> Iterator[Path | None]:
    """A control group (version 1) with this limit, or None where none can be made."""
    group = _GROUPS / f"mmrlhf-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()
