"""A model of what the schedules should cost on A100 and H100. A MODEL: nothing here was timed.

Prints the tables of ``docs/kernel-roofline.md`` from tiles, bytes and operations::

    python benches/kernel_roofline.py
"""

import itertools
import math
from typing import NamedTuple

from mmrlhf_kernels.triton_settings import CACHE_SHARE, Settings, choose_splits, live_bytes

HIDDEN, VOCABULARY, CHUNK = 3584, 152_064, 8192
"""LLaVA-OneVision-7B, and the vocabulary chunk of pass 2."""
ROWS = (8192, 1024, 400)


class Card(NamedTuple):
    """A GPU, from its vendor's data sheet where nothing else is said."""

    name: str
    multiprocessors: int
    clock: float
    """Hz, at which the peak below is reached."""
    multiply: int
    """bfloat16 operations per clock and multiprocessor, dense."""
    memory: float
    """Bytes per second of the device memory."""
    cache: float
    """Bytes per second of the L2 cache: an assumption, vendors do not state it."""
    cache_bytes: int
    """Size of the L2 cache."""
    sustained: float
    """Share of the peak that a good plain matrix product reaches: an assumption."""
    rows: int
    columns: int
    """The sweep's tile in ``triton_settings.py``."""

    def settings(self) -> Settings:
        """The sweep's, as far as they matter here."""
        return Settings(self.rows, self.columns, 64, 8, 4)


CARDS = (
    Card("A100 SXM", 108, 1.41e9, 2048, 2.04e12, 3.5e12, 40 << 20, 0.85, 128, 128),
    Card("H100 SXM", 132, 1.83e9, 4096, 3.35e12, 5.5e12, 50 << 20, 0.735, 128, 256),
)
EXPONENTIALS = 16
"""Exponentials per clock and multiprocessor, on both cards."""
LANES = 128
"""Float32 lanes per clock and multiprocessor, on H100; half of that on A100."""
EPILOGUE = 10
"""Float32 instructions per logit of the sweep's epilogue, counted in its source."""
SCALAR_SECTORS = 4
"""Sectors of 32 bytes that 2-byte stores touch for one that 16-byte stores do: a warp's part of a
product lies in 8 rows, 2 entries in each of 4 lanes, and each of both is a store of its own."""
SCHEDULES = {"recompute": (2, 2, 4), "keep": (2, 0, 4), "frozen": (2, 0, 2)}
"""Multiples of N H V: the sweep, the second forming of logits, plain products with them."""


class Cost(NamedTuple):
    """Seconds of one schedule, and where they go."""

    multiply: float
    epilogue: float
    memory: float
    idle: float

    @property
    def seconds(self) -> float:
        """The sum: one program per multiprocessor overlaps none of it."""
        return sum(self)


def tile_seconds(card: Card) -> tuple[float, float]:
    """(matrix product, epilogue) of one tile on one multiprocessor.

    The product takes the longer of its operations at the sustained rate and of its operands
    through the multiprocessor's share of the L2 cache.
    """
    work = 2 * card.rows * card.columns * HIDDEN
    operands = 2 * (card.rows + card.columns) * HIDDEN
    computed = work / (card.multiply * card.clock * card.sustained)
    loaded = operands / (card.cache / card.multiprocessors)
    lanes = LANES if card.multiply > 2048 else LANES // 2
    logits = card.rows * card.columns
    finished = logits * (1 / EXPONENTIALS + EPILOGUE / lanes) / card.clock
    return max(computed, loaded), finished


class Wave(NamedTuple):
    """How a sweep with some number of parts of the vocabulary runs."""

    splits: int
    idle: float
    """Share of the programs' time that rounding up adds: ragged row blocks and the last wave."""
    live: float
    """Bytes that the programs of one wave read again and again."""
    fetched: float
    """Bytes of operands from the device memory."""


def wave(card: Card, rows: int, *, aware: bool = True) -> Wave:
    """The waves of one sweep; ``aware``: the number of parts minds the cache, not idleness alone.

    Each step reads what is live. What the cache has no room for comes from memory; the weight comes
    once for the rows that are live together, the rows once.
    """
    settings, row_bytes = card.settings(), 2 * HIDDEN
    blocks, tiles = -(-rows // card.rows), -(-VOCABULARY // card.columns)
    shape = row_bytes, card.multiprocessors
    splits = choose_splits(blocks, tiles, settings, *shape, card.cache_bytes if aware else 1 << 60)
    steps = -(-blocks * splits // card.multiprocessors) * -(-tiles // splits)
    needed = rows / card.rows * VOCABULARY / card.columns / card.multiprocessors
    live = live_bytes(splits, blocks, settings, *shape)
    missed = max(0.0, 1.0 - CACHE_SHARE * card.cache_bytes / live)
    together = min(blocks, max(settings.group, card.multiprocessors / splits))
    once = row_bytes * (VOCABULARY * -(-blocks // together) + rows)
    return Wave(splits, steps / needed - 1.0, live, max(once, missed * steps * live))


def cost(card: Card, rows: int, schedule: str) -> Cost:
    """Seconds of a schedule, forward and backward."""
    sweep, again, plain = SCHEDULES[schedule]
    product, epilogue = tile_seconds(card)
    tiles = rows * VOCABULARY / (card.rows * card.columns) / card.multiprocessors
    formed = (sweep + again) // 2
    peak = card.multiprocessors * card.clock * card.multiply
    multiply = formed * tiles * product + plain * rows * HIDDEN * VOCABULARY / (
        peak * card.sustained
    )
    # E is written once and read by each plain product; kept logits are rebased and turned into E.
    passes = 1 + plain // 2 + (0 if again else 4)
    bytes_moved = passes * 2 * rows * VOCABULARY
    run = wave(card, rows)
    bytes_moved += formed * run.fetched + plain // 2 * 2 * HIDDEN * VOCABULARY
    # Per chunk the product with W_c is written in float32, read, and added to dX.
    chunks = -(-VOCABULARY // CHUNK)
    bytes_moved += chunks * 4 * 4 * rows * HIDDEN
    idle = formed * tiles * (product + epilogue) * run.idle
    return Cost(multiply, formed * tiles * epilogue, bytes_moved / card.memory, idle)


def floor(card: Card, rows: int, multiple: int) -> float:
    """Seconds of ``multiple`` N H V at the peak."""
    peak = card.multiprocessors * card.clock * card.multiply
    return multiple * rows * HIDDEN * VOCABULARY / peak


def workspace(rows: int, schedule: str) -> float:
    """Bytes besides weight, hidden states and dW: E or kept logits, dX and the product added to it.

    Row statistics are small next to them.
    """
    hidden = 2 * 4 * rows * HIDDEN
    statistics = 6 * 4 * rows
    kept = VOCABULARY if schedule == "keep" else CHUNK
    return 2 * rows * kept + hidden + statistics


def tables() -> str:
    """The tables in Markdown."""
    lines = [
        "| schedule | card | N | product ms | epilogue ms | memory ms | idle ms | sum ms "
        "| floor ms | workspace MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for schedule in SCHEDULES:
        for card in CARDS:
            for rows in ROWS:
                parts = cost(card, rows, schedule)
                numbers = [1e3 * part for part in (*parts, parts.seconds)]
                numbers.append(1e3 * floor(card, rows, sum(SCHEDULES[schedule])))
                shown = " | ".join(f"{number:.2f}" for number in numbers)
                room = workspace(rows, schedule) / 1e6
                lines.append(f"| {schedule} | {card.name} | {rows} | {shown} | {room:.0f} |")
    lines += ["", "| card | tile | operations per L2 byte | product us | epilogue us | share |"]
    lines.append("|---|---|---|---|---|---|")
    for card in CARDS:
        product, epilogue = (1e6 * second for second in tile_seconds(card))
        intensity = card.rows * card.columns / (card.rows + card.columns)
        share = epilogue / (product + epilogue)
        shown = f"{intensity:.0f} | {product:.1f} | {epilogue:.1f} | {share:.0%}"
        lines.append(f"| {card.name} | {card.rows}x{card.columns} | {shown} |")
    return "\n".join([*lines, "", *split_table(), "", *switch_table()])


def split_table() -> list[str]:
    """What the number of parts of the vocabulary does to the cache, in Markdown."""
    lines = ["| card | N | parts, idle alone | live MB | ms | parts, chosen | live MB | ms |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for card, rows in itertools.product(CARDS, ROWS):
        runs = [wave(card, rows, aware=aware) for aware in (False, True)]
        shown = [
            f"{run.splits} | {run.live / 1e6:.0f} | {1e3 * run.fetched / card.memory:.2f}"
            for run in runs
        ]
        lines.append(f"| {card.name} | {rows} | {' | '.join(shown)} |")
    return lines


def switches(card: Card, rows: int) -> dict[str, float]:
    """Seconds that each switch saves, by itself, as the page explains; NaN where there is none."""
    tiles = rows * VOCABULARY / (card.rows * card.columns) / card.multiprocessors
    product, epilogue = tile_seconds(card)
    small = card._replace(rows=64, columns=64)
    ragged = tile_seconds(small)[0] * 4 * card.rows * card.columns / 128**2
    fetched = [wave(card, rows, aware=aware).fetched for aware in (False, True)]
    kept = 2 * rows * VOCABULARY
    schedules = (cost(card, rows, name).seconds for name in ("recompute", "keep"))
    recompute, keep = schedules
    return {
        "parts by the L2 cache, one sweep": (fetched[0] - fetched[1]) / card.memory,
        "16-byte stores of kept exponentials": (SCALAR_SECTORS - 1) * kept / card.cache,
        "descriptors": 0.0 if card.multiply > 2048 else math.nan,
        "specialized, one sweep": tiles * epilogue if card.multiply > 2048 else math.nan,
        "H + 16 padded to H + 64, one sweep": tiles * (ragged - product * (HIDDEN + 64) / HIDDEN),
        "keep instead of recompute": recompute - keep,
    }


def switch_table() -> list[str]:
    """What each switch saves, in Markdown."""
    cases = list(itertools.product(CARDS, ROWS[:2]))
    names = (f"{card.name}, N = {rows}" for card, rows in cases)
    lines = [f"| milliseconds saved | {' | '.join(names)} |", "|---|" + "---|" * len(cases)]
    columns = [switches(card, rows) for card, rows in cases]
    for name in columns[0]:
        saved = " | ".join(f"{1e3 * column[name]:.2f}" for column in columns).replace("nan", "-")
        lines.append(f"| {name} | {saved} |")
    return lines


if __name__ == "__main__":
    print(tables())
