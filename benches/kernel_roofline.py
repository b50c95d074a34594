"""A model of what the schedules should cost on A100 and H100. A MODEL: nothing here was timed.

Prints the tables of ``docs/kernel-roofline.md`` from tiles, bytes and operations::

    python benches/kernel_roofline.py
"""

from typing import NamedTuple

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
    sustained: float
    """Share of the peak that a good plain matrix product reaches: an assumption."""
    rows: int
    columns: int
    """The sweep's tile in ``triton_settings.py``."""


CARDS = (
    Card("A100 SXM", 108, 1.41e9, 2048, 2.04e12, 3.5e12, 0.85, 128, 128),
    Card("H100 SXM", 132, 1.83e9, 4096, 3.35e12, 5.5e12, 0.735, 128, 256),
)
EXPONENTIALS = 16
"""Exponentials per clock and multiprocessor, on both cards."""
LANES = 128
"""Float32 lanes per clock and multiprocessor, on H100; half of that on A100."""
EPILOGUE = 10
"""Float32 instructions per logit of the sweep's epilogue, counted in its source."""
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


def idle_share(card: Card, rows: int) -> float:
    """Share of the programs' time that rounding up adds: ragged row blocks and the last wave."""
    from mmrlhf_kernels.triton_settings import choose_splits

    blocks = -(-rows // card.rows)
    tiles = -(-VOCABULARY // card.columns)
    splits = choose_splits(blocks, tiles, card.multiprocessors)
    spent = -(-blocks * splits // card.multiprocessors) * -(-tiles // splits)
    needed = rows / card.rows * VOCABULARY / card.columns / card.multiprocessors
    return spent / needed - 1.0


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
    weight_reads = formed + plain // 2
    bytes_moved += weight_reads * 2 * HIDDEN * VOCABULARY
    # Per chunk the product with W_c is written in float32, read, and added to dX.
    chunks = -(-VOCABULARY // CHUNK)
    bytes_moved += chunks * 4 * 4 * rows * HIDDEN
    idle = formed * tiles * (product + epilogue) * idle_share(card, rows)
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
    """The tables in Markdown, with a line that marks where they begin."""
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
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
