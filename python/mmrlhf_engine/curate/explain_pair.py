"""Two samples side by side: what was measured between them, and why one removed the other or not.

The measures are those that dedup wrote down, in ``duplicates`` and in ``near_pairs``; of two
samples that were kept, the distance of the hashes of their pictures is taken from ``kept``.
"""

from typing import Any

import polars as pl
import yaml

from mmrlhf_engine.curate.explain import (
    evidence,
    find_sample,
    measures,
    nearest_ids,
    rows_of,
    shorten,
    told_before,
)
from mmrlhf_engine.curate.overrides import OVERRIDES, read_overrides
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.folder import Run

__all__ = ["explain_pair"]


def explain_pair(run: Run, identifier: str, other: str) -> str:
    """Texts, answers and measures of two samples, and what dedup decided.

    Raises:
        InputError: one of them is not a sample of the run, or both are the same, or an id is that
            of several samples.
    """
    first, second = _sample(run, identifier), _sample(run, other)
    if first["id"] == second["id"]:
        raise InputError(f"{first['id']} was given twice", hint="expected two samples")
    lines = [*_shown(run, first), "", *_shown(run, second), ""]
    return "\n".join([*lines, *_decision(run, first["id"], second["id"])])


def _sample(run: Run, identifier: str) -> dict[str, Any]:
    samples = find_sample(run, identifier)
    if not samples:
        raise InputError(
            f"{run.folder}: no sample {identifier!r}", hint=nearest_ids(run, identifier)
        )
    if len(samples) > 1:
        ids = ", ".join(sample["id"] for sample in samples[:4])
        raise InputError(
            f"{identifier!r} is the id of {len(samples)} samples", hint=f"one of {ids}"
        )
    return samples[0]


def _shown(run: Run, sample: dict[str, Any]) -> list[str]:
    answer = "none" if sample["answer"] is None else shorten(sample["answer"])
    media = {
        item["hash"]: f"{item['path']} ({item['width'] or '?'}x{item['height'] or '?'})"
        for item in rows_of(run, "media", pl.col("hash").is_in(sample["media"]))
    }
    pictures = ", ".join(media.get(name, name) for name in sample["media"])
    return [
        sample["id"],
        f"  prompt   {shorten(sample['prompt'])}",
        *([f"  after    {history}"] if (history := told_before(sample)) else []),
        f"  answer   {answer}",
        f"  media    {pictures or 'none'}",
    ]


def _decision(run: Run, first: str, second: str) -> list[str]:
    """What dedup measured and decided, from the side of whichever was removed."""
    if run.manifest("dedup") is None:
        return ["dedup    has not finished in this run"]
    removed = {
        row["id"]: row for row in rows_of(run, "duplicates", pl.col("id").is_in([first, second]))
    }
    for one, other in ((first, second), (second, first)):
        if one in removed and removed[one]["kept_id"] == other:
            return [
                f"dedup    {one} was removed: {evidence(removed[one])} {other}",
                *_measures(removed[one]),
                f"         {other} stays because it comes first in keep order: more pixels, then "
                "the longer answer, then the smaller id",
                f"         if this is wrong: mmrlhf-engine disagree {run.folder} {one} {other}",
            ]
    lines = ["dedup    neither was removed in favour of the other"]
    for one in (first, second):
        if one in removed:
            lines.append(
                f"         {one} was removed: {evidence(removed[one])} {removed[one]['kept_id']}"
            )
        elif rows_of(run, "kept", pl.col("id") == one):
            lines.append(f"         {one} was kept")
        else:
            lines.append(
                f"         {one} was rejected: see mmrlhf-engine explain {run.folder} {one}"
            )
    return [*lines, *_overridden(run, first, second), *_between(run, first, second)]


def _measures(row: dict[str, Any]) -> list[str]:
    return [f"         {name}: {value}" for name, value in measures(row)]


def _overridden(run: Run, first: str, second: str) -> list[str]:
    file = run.folder / OVERRIDES
    pairs = read_overrides(file if file.is_file() else None)
    return [
        f"         {OVERRIDES} keeps {one} beside {other}"
        for one, other in ((first, second), (second, first))
        if (one, other) in pairs
    ]


def _between(run: Run, first: str, second: str) -> list[str]:
    """What is known of the two: the measures of a near miss, else hashes and bounds."""
    here = pl.col("id").is_in([first, second]) & pl.col("other_id").is_in([first, second])
    bounds = _bounds(run)
    for row in rows_of(run, "near_pairs", here):
        return ["         they were compared, and are less alike than:", *bounds, *_measures(row)]
    lines = ["         no measure of the two was written down; duplicates are at least so alike:"]
    hashes = {
        row["id"]: row.get("phash") or []
        for row in rows_of(run, "kept", pl.col("id").is_in([first, second]))
    }
    distance = _hamming(hashes.get(first, []), hashes.get(second, []))
    if distance is not None:
        bounds.append(f"         the hashes of their pictures differ in {distance} of 64 bits")
    return [*lines, *bounds]


def _bounds(run: Run) -> list[str]:
    """The settings of dedup, as it ran."""
    file = run.stage_folder("dedup") / "config.yaml"
    settings: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    shown = ", ".join(
        f"{name} {settings[name]}"
        for name in ("policy", "text_threshold", "image_radius", "colour_tolerance")
        if settings.get(name) is not None
    )
    return [f"         {shown}"]


def _hamming(one: list[int | None], other: list[int | None]) -> int | None:
    """Bits in which two lists of hashes differ, the largest over the pictures; None if unlike."""
    if not one or len(one) != len(other):
        return None
    bits = [(a ^ b).bit_count() for a, b in zip(one, other, strict=True) if None not in (a, b)]  # type: ignore[operator]
    return max(bits, default=None)
