"""Two samples side by side: what was measured between them, and why one removed the other or not.

The other one may be a question of a benchmark that dedup ran against. Of a removal, the measures
are those that dedup wrote down; of two samples of which neither removed the other, every measure is
taken now (:mod:`mmrlhf_engine.curate.compare_pair`).
"""

from pathlib import Path
from typing import Any

import polars as pl
import yaml

from mmrlhf_engine.curate.compare_pair import measure_pair
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
    first, asked = _sample(run, identifier), _question(run, other)
    if asked is not None:
        index, question = asked
        shown = [*_shown(run, first), "", *_shown(index, question), ""]
        return "\n".join([*shown, *_against(run, first["id"], question["id"])])
    second = _sample(run, other)
    if first["id"] == second["id"]:
        raise InputError(f"{first['id']} was given twice", hint="expected two samples")
    lines = [*_shown(run, first), "", *_shown(run, second), ""]
    return "\n".join([*lines, *_decision(run, first, second)])


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


def _question(run: Run, identifier: str) -> tuple[Run, dict[str, Any]] | None:
    """The index of a benchmark and its question of this id, if no sample of the run has it."""
    if find_sample(run, identifier):
        return None
    for folder in _settings(run).get("against", []):
        index = Run(Path(folder))
        if questions := rows_of(index, "samples", pl.col("id") == identifier):
            return index, questions[0]
    return None


def _against(run: Run, identifier: str, question: str) -> list[str]:
    """What dedup decided of a sample and a question of a benchmark."""
    for row in rows_of(run, "duplicates", pl.col("id") == identifier):
        line = f"dedup    {identifier} was removed: {evidence(row)} {row['kept_id']}"
        if row["kept_id"] == question:
            by = _settings(run).get("against_by")
            return [line, *_measures(row), f"         (against_by {by})"]
        return [line, "         that is the one match which is written down"]
    return [f"dedup    {identifier} was not removed for a question of a benchmark"]


def _shown(run: Run, sample: dict[str, Any]) -> list[str]:
    answer = "none" if sample["answer"] is None else shorten(sample["answer"])
    media = {
        item["hash"]: f"{_place(item)} ({item['width'] or '?'}x{item['height'] or '?'})"
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


def _place(item: dict[str, Any]) -> str:
    return item["path"] or "known by a hash alone"


def _decision(run: Run, sample: dict[str, Any], partner: dict[str, Any]) -> list[str]:
    """What dedup measured and decided, from the side of whichever was removed."""
    first, second = sample["id"], partner["id"]
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
    return [*lines, *_overridden(run, first, second), *_between(run, sample, partner)]


def _measures(row: dict[str, Any]) -> list[str]:
    return [f"         {name}: {value}" for name, value in measures(row)]


def _overridden(run: Run, first: str, second: str) -> list[str]:
    """What a person said of the two, or of one and a sample that the other stands for."""
    file = run.folder / OVERRIDES
    said = read_overrides(file if file.is_file() else None)
    stands = {row["id"]: row["kept_id"] for row in _kept_apart(run, said)}
    lines = []
    for one, other in said:
        for kept, apart in ((one, other), (other, one)):
            if {kept, stands.get(apart, apart)} == {first, second}:
                third = f", for which {stands[apart]} stands" if apart in stands else ""
                lines.append(f"         {OVERRIDES} keeps {kept} apart from {apart}{third}")
                break
            if {kept, apart} == {first, second}:
                lines.append(f"         {OVERRIDES} keeps {kept} apart from {apart}")
                break
    return lines


def _kept_apart(run: Run, said: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The removals of samples that a person keeps apart from another."""
    named = sorted({name for pair in said for name in pair})
    return rows_of(run, "duplicates", pl.col("id").is_in(named)) if named else []


def _between(run: Run, one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Every measure of the two, and which of them keep both."""
    taken = measure_pair(run, one, two)
    width = max((len(measure.name) for measure in taken), default=0)
    apart = list(dict.fromkeys(measure.name for measure in taken if measure.apart))
    if apart:
        line = f"kept apart by their {' and '.join(apart)}:"
    else:
        line = "alike by every measure; see above what became of each, or they never met:"
    return [
        f"         {line}",
        *(f"           {measure.name:{width}}  {measure.found}" for measure in taken),
        f"         ({_settings_of_pairs(run)})",
    ]


def _settings_of_pairs(run: Run) -> str:
    settings = _settings(run)
    return ", ".join(
        f"{name} {str(settings[name]).lower()}" for name in ("policy", "judge", "text_rule")
    )


def _settings(run: Run) -> dict[str, Any]:
    """The settings of dedup, as it ran; none where it has not."""
    if run.manifest("dedup") is None:
        return {}
    file = run.stage_folder("dedup") / "config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
