"""Every measure of two samples, taken on the spot: what dedup would find, asked in its order.

The texts are judged with the table of frequencies that dedup used, the pictures are read again and
hashed and judged. So a pair that never met is measured as well as one that did.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import yaml

from mmrlhf_engine._core import (
    answers_contradict,
    find_duplicates,
    judge_texts,
    picture_limits,
)
from mmrlhf_engine.curate import dedup
from mmrlhf_engine.curate.dedup import DedupConfig
from mmrlhf_engine.curate.frequencies import frequencies_of_run
from mmrlhf_engine.curate.media_judge import MediaJudge
from mmrlhf_engine.curate.picture_hashes import NO_PICTURES, hash_chunk, picture_columns
from mmrlhf_engine.curate.sample_columns import compared_text
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import Resources, StageContext

__all__ = ["Measure", "measure_pair"]


@dataclass(frozen=True)
class Measure:
    """One measure of two samples."""

    name: str
    found: str
    """In words, with the value and the limit."""
    apart: bool
    """Whether it is enough to keep both."""


def measure_pair(run: Run, first: dict[str, Any], second: dict[str, Any]) -> list[Measure]:
    """The measures of two rows of ``samples`` that the policy of the run looks at, in its order.

    A measure that is not reached, because one before it has decided, is taken all the same.
    """
    file = run.stage_folder("dedup") / "config.yaml"
    config = DedupConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    rows = [{name: row[name] for name in _SCHEMA} for row in (first, second)]
    pair = pl.DataFrame(rows, schema=_SCHEMA)
    texts = compared_text(pair).to_list()
    measures = []
    contradiction = False
    if config.policy == "exact":
        measures.append(_exact_texts(texts))
    elif config.policy != "image":
        measures.append(_texts(run, config, texts))
    if config.judge and config.policy in ("joint", "text"):
        answers = first["answer"], second["answer"]
        contradiction = None not in answers and answers_contradict(*answers)
        if None not in answers:
            measures.append(_answers(texts, contradict=contradiction))
    if config.policy != "text":
        measures += _pictures(run, config, pair["media"].to_list(), equal=contradiction)
    return measures


_SCHEMA = {
    "id": pl.String(),
    "prompt": pl.String(),
    "answer": pl.String(),
    "history": pl.List(pl.Struct({"role": pl.String(), "text": pl.String()})),
    "needs_history": pl.Boolean(),
    "media": pl.List(pl.String()),
}


def _columns(texts: list[str]) -> tuple[pa.Array, pa.Array]:
    left, right = (pa.array([text], pa.large_string()) for text in texts)
    return left, right


def _exact_texts(texts: list[str]) -> Measure:
    settings = DedupConfig(policy="exact")
    equal = _are_duplicates(settings, texts, [[], []], NO_PICTURES)
    what = "equal" if equal else "not equal"
    return Measure("texts", f"{what}, spacing and case aside", apart=not equal)


def _are_duplicates(
    config: DedupConfig, texts: list[str], media: list[list[int]], pictures: pl.DataFrame
) -> bool:
    """What the core says of two rows whose pictures, if they are compared, are copies."""
    found, *_ = find_duplicates(
        {
            "prompts": pa.array(texts, pa.large_string()),
            "answers": pa.array([None, None], pa.large_string()),
            "media": pa.array(media, pa.large_list(pa.uint32())),
            "rank": pa.array([0, 1], pa.uint32()),
            "overrides": [],
        },
        picture_columns(pictures),
        settings=config.model_dump(),
        judge=lambda first, _: ([True] * len(first), [True] * len(first)),
        threads=1,
    )
    return len(pa.array(found)) == 1


def _texts(run: Run, config: DedupConfig, texts: list[str]) -> Measure:
    frequencies = frequencies_of_run(run) if config.judge else None
    (found,) = pa.array(
        judge_texts(
            *_columns(texts),
            rule=config.text_rule if config.judge else "documents",
            threshold=config.text_threshold,
            document_tokens=config.document_tokens,
            shingle_words=config.shingle_words,
            threads=1,
            frequencies=None if frequencies is None else frequencies.to_arrow(),
        )
    ).to_pylist()
    limit = f"Jaccard {found['jaccard']:.3f}, near from {config.text_threshold}"
    if found["differences"]:
        told = f"{found['differences']} (Jaccard {found['jaccard']:.3f})"
    elif config.judge and config.text_rule == "prompts":
        told = f"no token differs (Jaccard {found['jaccard']:.3f})"
    else:
        told = limit
    if frequencies is not None:
        told += f"; what is common was counted in {frequencies.texts:,} texts"
    return Measure("texts", told, apart=not found["same"])


def _answers(texts: list[str], *, contradict: bool) -> Measure:
    if not contradict:
        return Measure("answers", "do not contradict each other", apart=False)
    if texts[0].split() == texts[1].split():
        found = "contradict each other; the questions have the same words, so equal pixels decide"
        return Measure("answers", found, apart=False)
    found = "contradict each other, and the questions do not have the same words"
    return Measure("answers", found, apart=True)


def _pictures(
    run: Run, config: DedupConfig, media: list[list[str]], *, equal: bool
) -> list[Measure]:
    first, second = media
    if len(first) != len(second) or not first:
        counted = f"{len(first)} and {len(second)} media"
        apart = len(first) != len(second) or config.policy == "image"
        return [Measure("media", counted, apart=apart)] if apart or first else []
    pairs = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    if not pairs:
        return [Measure("media", "equal content", apart=False)]
    if config.policy == "exact":
        return [Measure("media", "not of equal content", apart=True)]
    folder = run.find("media")
    wanted = sorted({name for pair in pairs for name in pair})
    rows = pl.read_parquet(folder / "*.parquet") if folder is not None else pl.DataFrame()
    rows = rows.filter(pl.col("hash").is_in(wanted)).sort("hash")
    rows = rows.with_row_index("number").with_columns(pl.col("number").cast(pl.UInt32))
    with tempfile.TemporaryDirectory() as scratch:
        stage = StageContext(dedup.STAGE, config, Path(scratch), run, Resources(threads=1))
        stage.scratch.mkdir()
        hashed = pl.concat([NO_PICTURES, *hash_chunk(rows, stage, config.hash, 0, rows.height)])
        judge = MediaJudge(
            rows,
            stage,
            thumbnails=config.thumbnails,
            unverified_images=config.unverified_images,
        )
        number = dict(rows.select("hash", "number").iter_rows())
        measures = []
        for one, other in pairs:
            numbers = number[one], number[other]
            measures += _hashes(config, hashed, numbers)
            if config.judge and judge.is_unverified(*numbers):
                told = "known by a hash alone, so that they cannot be compared"
                measures.append(
                    Measure("pictures", told, apart=equal or not config.unverified_images)
                )
            elif config.judge and not hashed["reason"].is_not_null().any():
                (copy,), (same,) = judge([min(numbers)], [max(numbers)])
                row = judge.evidence.row(-1, named=True)
                measures.append(_judged(row, apart=not (same if equal else copy), equal=equal))
        return measures


def _hashes(config: DedupConfig, hashed: pl.DataFrame, numbers: tuple[int, int]) -> list[Measure]:
    one, other = (hashed.filter(pl.col("number") == number) for number in numbers)
    faults = [f"{row['reason']}: {row['detail']}" for row in _faults(one, other)]
    if faults:
        return [Measure("pictures", f"cannot be read now: {faults[0]}", apart=True)]
    if one.height != other.height or not one.height:
        return [Measure("pictures", f"{one.height} and {other.height} frames", apart=True)]
    bits = max((a ^ b).bit_count() for a, b in zip(one["phash"], other["phash"], strict=True))
    far = bits > config.image_radius
    found = f"differ in {bits} of 64 bits, near up to {config.image_radius}"
    measures = [Measure("hashes", found, apart=far)]
    grids = [np.asarray(frame["colour"].to_list(), dtype=int) for frame in (one, other)]
    if config.colour_tolerance is not None and grids[0].size and grids[1].size:
        colour = int(np.abs(grids[0] - grids[1]).max())
        found = f"of an 8 by 8 grid differ by {colour} of 255, near up to {config.colour_tolerance}"
        differ = colour > config.colour_tolerance
        if differ and config.judge and not far:
            differ = not _proposed(config, one, other)
            found += f"; brightness and saturation {'do not ' * differ}explain it"
        measures.append(Measure("colours", found, apart=differ))
    return measures


def _proposed(config: DedupConfig, one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether the pictures of two media are near enough to be compared."""
    numbered = [
        pictures.with_columns(number=pl.lit(number, pl.UInt32))
        for number, pictures in enumerate((one, other))
    ]
    settings = config.model_copy(update={"policy": "image", "max_per_image": None})
    return _are_duplicates(settings, ["", ""], [[0], [1]], pl.concat(numbered))


def _faults(*pictures: pl.DataFrame) -> list[dict[str, Any]]:
    return pl.concat(pictures).filter(pl.col("reason").is_not_null()).to_dicts()


def _judged(row: dict[str, Any], *, apart: bool, equal: bool) -> Measure:
    limits = picture_limits()
    parts = []
    for name, column, limit in (
        ("luma", "image_difference", limits["luma"]),
        ("chroma", "colour_difference", limits["chroma"]),
    ):
        if row[column] is not None:
            parts.append(f"{name} differs by {row[column]:.2f}, copies by less than {limit:g}")
    if row["image_scale"] is not None and abs(row["image_scale"] - 1) > 0.001:
        parts.append(f"aligned at scale {row['image_scale']:.3f}")
    box = row["difference_box"]
    # A thumbnail that is refused for its size was not compared.
    if apart and box is not None and None not in box and box[2] > 0:
        left, top, width, height = (f"{100 * share:.0f}" for share in box)
        parts.append(f"most at {left} % from the left, {top} % from the top ({width} x {height} %)")
    if row["difference"] is not None:
        parts.append(f"no copies because of their {row['difference']}")
    if equal:
        parts.append("contradicting answers ask for equal pixels")
    return Measure("pictures", "; ".join(parts) or "equal", apart=apart)
