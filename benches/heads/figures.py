"""The measured parts of ``kernels/README.md``, from the newest records. A test compares them.

python benches/heads/figures.py    # writes them into the page
"""

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parents[1] / "records"
README = Path(__file__).parents[2] / "kernels" / "README.md"
SIZES = [(128, 1), (512, 1), (2048, 1), (2048, 16), (8192, 1), (8192, 32)]
COMPARED = SIZES[2:]
NAMES = {
    "plain": "plain PyTorch",
    "trl, chunked": "TRL {trl}, chunked",
    "trl, selective_log_softmax": "TRL {trl}, `selective_log_softmax`",
    "liger": "Liger {liger-kernel}",
    "torch linear_cross_entropy": "torch `linear_cross_entropy`",
    "ours, fused_linear_logp": "`fused_linear_logp`",
    "ours, fused_linear_mm_dpo": "`fused_linear_mm_dpo`",
}
OURS = "ours, fused_linear_mm_dpo"
_PART = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.S)


def newest(bench: str) -> dict[str, Any]:
    """The latest record of a bench."""
    found: dict[str, Any] = json.loads(
        max(RECORDS.glob(f"????-??-??-{bench}.json")).read_text(encoding="utf-8")
    )
    return found


def compiled() -> str:
    """What the ahead-of-time compiler said of registers."""
    record = newest("kernel_compile")
    rows = record["rows"]
    spilled = [row for row in rows if row.get("spilled_bytes")]
    architectures = ", ".join(sorted({row["architecture"] for row in rows}))
    text = (
        f"`benches/kernel_compile.py` ({record['date']}) compiles {len(rows)} variants of the "
        f"kernels for {architectures}; {len(rows) - len(spilled)} spill no register"
    )
    if spilled:
        where = sorted({(r["kernel"], r["architecture"], r["dtype"]) for r in spilled})
        listed = ", ".join(" ".join(place) for place in where)
        most = max(row["spilled_bytes"] for row in spilled)
        text += f", the others at most {most} bytes ({listed})"
    return textwrap.fill(f"{text}.", 105, break_on_hyphens=False) + "\n"


def measured() -> str:
    """Seconds and megabytes of every contender, then ratios of the fused loss."""
    records = {name: newest(name) for name in ("linear_logp", "linear_logp_8192")}
    default = newest("linear_logp_8192x32")
    sizes = {
        size: records["linear_logp_8192" if size[0] > 2048 else "linear_logp"] for size in SIZES
    }
    versions = records["linear_logp"]["versions"]
    lines = [
        f"| | {' | '.join(f'{rows:,} rows, {pairs}' for rows, pairs in SIZES)} |",
        f"|---{'|---' * len(SIZES)}|",
    ]
    for contender, name in NAMES.items():
        cells = [_cell(_row(record, size, contender)) for size, record in sizes.items()]
        lines.append(f"| {name.format(**versions)} | {' | '.join(cells)} |")
    ratios = [("rows, pairs", "time of plain", "memory", "time of Liger", "memory")]
    ratios += [_ratios(sizes[size], size, "") for size in COMPARED]
    ratios.append(_ratios(default, SIZES[-1], ", default workspace"))
    body = ["| " + " | ".join(row) + " |" for row in ratios]
    dates = " and ".join(sorted({r["date"] for r in (*records.values(), default)}))
    return "\n".join(
        [f"Records of {dates}.", "", *lines, "", body[0], "|---|---|---|---|---|", *body[1:], ""]
    )


def _row(record: dict[str, Any], size: tuple[int, int], contender: str) -> dict[str, Any]:
    rows = [
        row
        for row in record["rows"]
        if (row["rows"], row["pairs"], row["contender"]) == (*size, contender)
    ]
    return rows[0] if rows else {}


def _cell(row: dict[str, Any]) -> str:
    if not row.get("seconds"):
        return ""
    seconds, megabytes = row["seconds"], row["peak_megabytes"]
    memory = f"{megabytes:,.0f} MB" if megabytes else "no rise seen"
    return f"{seconds:.{0 if seconds >= 100 else 1}f} s, {memory}"


def _ratios(record: dict[str, Any], size: tuple[int, int], note: str) -> tuple[str, ...]:
    """Time and memory of the fused loss as shares of those of plain PyTorch and Liger."""
    ours = _row(record, size, OURS)
    cells = [f"{size[0]:,}, {size[1]}{note}"]
    for contender in ("plain", "liger"):
        other = _row(record, size, contender)
        if not other.get("seconds"):
            cells += ["", ""]
            continue
        share = ours["peak_megabytes"] / other["peak_megabytes"]
        cells.append(f"{ours['seconds'] / other['seconds']:.2f}")
        cells.append(f"{share:.2f}" if share > 0.2 else f"1/{1 / share:.0f}")
    return tuple(cells)


PARTS = {"compiled": compiled, "measured": measured}


def with_figures(page: str) -> str:
    """The page with its marked parts written again.

    Raises:
        KeyError: A part of the page has no function here.
    """
    return _PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[3], page)


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    README.write_text(with_figures(before), encoding="utf-8")
    sys.stdout.write(f"{README}\n")
