"""Why these: the reason of each pick, which quotas were met or missed, and what is covered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from mmrlhf_engine.curate.quotas import NO_CAP, Groups

__all__ = ["Selection", "coverage", "diversity", "quota_facts", "shortfalls", "with_reasons"]


_COMPARED = 2_000
"""Pictures whose nearest other is looked for."""


@dataclass(frozen=True)
class Selection:
    """What was asked for and what came of it.

    Attributes:
        count: Queries asked for.
        order: ``seeded`` or ``farthest``.
        asked: Quota of each question type, in queries.
        groups: Bounds by column, ``modality`` and ``source``.
        kept: Every candidate, with ``id, question_type, modality, source, cluster, row``, the three
            in the middle as enumerations; ``row`` is that of its embedding, or null.
        picks: The chosen in the order they were picked, with the same columns as texts, and
            ``floor_modality`` and ``floor_source``: code of the group whose floor asked, or null.
    """

    count: int
    order: str
    asked: dict[str, int]
    groups: dict[str, Groups]
    kept: pl.DataFrame
    picks: pl.DataFrame

    def got(self, column: str) -> dict[str, int]:
        """How many were chosen of each value of a column."""
        return dict(self.picks[column].value_counts().iter_rows())


def with_reasons(selection: Selection) -> pl.DataFrame:
    """The picks with ``why``, for example ``short, cluster 17: pick 3 of 12 (240 there), ...``."""
    place = ("question_type", "cluster")
    stock = selection.kept.group_by(place).agg(there=pl.len()).cast({pl.Enum: pl.String})
    quota = pl.col("question_type").replace_strict(selection.asked, return_dtype=pl.Int64)
    picks = selection.picks.join(stock, on=place, how="left", maintain_order="left")
    picks = picks.with_columns(
        quota=quota,
        number=pl.int_range(pl.len()).over(place) + 1,
        of=pl.len().over(place),
        beyond=pl.int_range(pl.len()).over("question_type") >= quota,
        where=pl.when(pl.col("cluster") < 0)
        .then(pl.lit("without picture"))
        .otherwise(pl.format("cluster {}", "cluster")),
        reason=pl.coalesce(
            *(_floor_reason(groups) for groups in selection.groups.values()),
            pl.format("quota {} {}", "question_type", quota),
        ),
    )
    order = {"seeded": "seeded order", "farthest": "farthest first"}[selection.order]
    head = pl.format(
        f"{{}}, {{}}: pick {{}} of {{}} ({{}} there), {order}; {{}}",
        *("question_type", "where", "number", "of", "there", "reason"),
    )
    # A pick past the quota of its type is there for those that fell short.
    filler = pl.when("beyond").then(pl.lit(", gone beyond for others that fell short"))
    return picks.with_columns(why=head + filler.otherwise(pl.lit("")))


def _floor_reason(groups: Groups) -> pl.Expr:
    """``floor 100 of source a`` where such a floor asked for the pick, else null."""
    texts = {
        code: f"floor {floor} of {groups.column} {name}"
        for code, (name, (floor, _)) in enumerate(groups.bounds.items(), start=1)
    }
    code = pl.col(f"floor_{groups.column}")
    return code.replace_strict(texts, default=None, return_dtype=pl.String)


def quota_facts(selection: Selection) -> dict[str, Any]:
    """What was asked for, what there was and what was got, by column and group."""
    facts: dict[str, Any] = {"count": {"asked": selection.count, "got": selection.picks.height}}
    for column in ("question_type", "modality", "source"):
        there, got = selection.kept[column].value_counts().sort(column), selection.got(column)
        facts[column] = {
            name: {"there": count, "got": got.get(name, 0)} for name, count in there.iter_rows()
        }
    for name, quota in selection.asked.items():
        facts["question_type"].setdefault(name, {"there": 0, "got": 0})["asked"] = quota
    for column, groups in selection.groups.items():
        for name, (floor, cap) in groups.bounds.items():
            entry = facts[column].setdefault(name, {"there": 0, "got": 0})
            entry |= {"floor": floor, "cap": None if cap == NO_CAP else cap}
    return facts


def shortfalls(selection: Selection) -> list[str]:
    """One sentence for each wish that was not met in full."""
    sentences = []
    if selection.picks.height < selection.count:
        sentences.append(
            f"{selection.picks.height:,} of {selection.count:,} queries: no more of the "
            f"{selection.kept.height:,} kept samples can be chosen under these settings"
        )
    got = selection.got("question_type")
    over = {name: got.get(name, 0) - quota for name, quota in selection.asked.items()}
    filled = ", ".join(f"{name} {more:+,}" for name, more in over.items() if more > 0)
    for name, quota in selection.asked.items():
        if over[name] < 0:
            sentence = f"question type {name}: {got.get(name, 0):,} of {quota:,}"
            sentences.append(f"{sentence}; filled by {filled}" if filled else sentence)
    for column, groups in selection.groups.items():
        got = selection.got(column)
        sentences += [
            f"{column} {name}: {got.get(name, 0):,}, below its floor of {floor:,}"
            for name, (floor, _) in groups.bounds.items()
            if got.get(name, 0) < floor
        ]
    return sentences


def coverage(selection: Selection, seed: int) -> dict[str, Any]:
    """How evenly clusters are covered: by all kept, by the chosen, by as many taken at random.

    ``covered`` is the share of clusters with at least one sample, ``effective`` the exponential of
    the entropy of their shares: so many clusters of equal size would be as even.
    """
    sizes = selection.kept["cluster"].value_counts().sort("cluster")
    chosen = selection.picks["cluster"].value_counts(name="chosen")
    table = sizes.join(chosen, on="cluster", how="left", maintain_order="left")
    kept = table["count"].to_numpy().astype(np.int64)
    random = np.random.default_rng(seed % 2**64).multivariate_hypergeometric(
        kept, selection.picks.height, method="marginals"
    )
    return {
        "clusters": sizes.height,
        "kept": _evenness(kept),
        "chosen": _evenness(table["chosen"].fill_null(0).to_numpy()),
        "random": _evenness(random),
    }


def _evenness(counts: np.ndarray) -> dict[str, float]:
    if not counts.sum():
        return {"covered": 0.0, "effective": 0.0}
    shares = counts[counts > 0] / counts.sum()
    return {
        "covered": round(float((counts > 0).mean()), 4),
        "effective": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    }


def diversity(selection: Selection, embeddings: np.ndarray, seed: int) -> dict[str, Any]:
    """How far the pictures of chosen queries lie from each other, beside as many taken at random.

    Of each side the distance 1 - cosine of a picture to its nearest other, over distinct pictures
    of a seeded sample of 2,000 at most, as 21 quantiles from the least to the largest; empty
    where fewer than two can be compared.
    """
    random = np.random.default_rng(seed % 2**64)
    chosen = selection.picks["row"].drop_nulls().unique().sort().to_numpy()
    everything = selection.kept["row"].drop_nulls().unique().sort().to_numpy()
    size = min(len(chosen), _COMPARED)
    if size < 2:
        return {"compared": 0, "chosen": [], "random": []}
    return {
        "compared": size,
        "chosen": _nearest_other(embeddings, random.choice(chosen, size, replace=False)),
        "random": _nearest_other(embeddings, random.choice(everything, size, replace=False)),
    }


def _nearest_other(embeddings: np.ndarray, rows: np.ndarray) -> list[float]:
    vectors = np.asarray(embeddings[np.sort(rows)], dtype=np.float32)
    cosines = np.einsum("id,jd->ij", vectors, vectors, optimize=True)
    np.fill_diagonal(cosines, -1)
    distances = 1 - cosines.max(axis=1)
    # Rounded: the last digits of a product depend on the number of threads.
    return [round(max(float(q), 0.0), 4) for q in np.quantile(distances, np.linspace(0, 1, 21))]
