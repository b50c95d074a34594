"""Settings of ``pair``, and the files that it reads."""

from typing import Literal

from pydantic import Field, field_validator

from mmrlhf_engine.collect.votes import ContradictionRule, CycleRule
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.config import Section, parse_share
from mmrlhf_engine.sources.preferences.annotations import PARTS
from mmrlhf_engine.sources.preferences.rows import SourceFile, find_files

__all__ = ["PairConfig", "source_files"]


class PairConfig(Section):
    """Which annotations to read, and how they become pairs."""

    sources: list[str] = Field(default_factory=list)
    """Files (JSON Lines, JSON, Parquet) or folders (Parquet, datasets saved by save_to_disk)."""
    split: str | None = None
    """Of folders with several splits the one to take; ``train`` when null."""
    root: str | None = None
    """Media are named from this folder on; the source's own when null."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Names of fields: ``rank: overall_rank`` reads the ranks from ``overall_rank`` alone."""
    ignore_fields: list[str] = Field(default_factory=list)
    """Fields of rows to leave out, although they may be part of the prompt."""
    annotators: list[str] = Field(default_factory=list)
    """Annotators whose rows are read; those of others, and of none, are dropped. Empty: all."""
    pairs: Literal["all", "hardest"] = "all"
    """``all``: every two answers that were compared, as the paper trains; ``hardest``: the best
    answers with the next best alone, without ties."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs of equal rank are kept, marked as ties, or dropped."""
    contradictions: ContradictionRule = "keep"
    """Where an annotator ranks an answer above one with a larger mean score: ``keep`` goes by the
    rank, ``by_score`` by the scores, ``drop`` leaves out what this annotator says of the two."""
    cycles: CycleRule = "tie"
    """Where the majorities go round: pairs within the cycle are ties, or dropped."""
    rank_from_scores: bool = True
    """Rows without any rank are ranked by their mean scores; else they are dropped."""
    margin_from_scores: bool = False
    """Write the difference of the mean scores of both answers as ``margin``."""
    hold_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of families of queries that go to ``held_out.jsonl``."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of families that are held out."""
    max_bad: str | None = None
    """Share of bad rows, for example ``1%``, at which the run stops; null never stops it."""

    @field_validator("max_bad")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None:
            parse_share(value, "pair.max_bad")
        return value

    @field_validator("fields")
    @classmethod
    def _are_known_parts(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = sorted(value.keys() - PARTS.keys())
        if unknown:
            raise ValueError(f"no part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
        return value


def source_files(config: PairConfig) -> list[SourceFile]:
    """The files of the sources.

    Raises:
        InputError: there is none, or one is missing, empty or of a format that is not read.
    """
    if not config.sources:
        raise InputError("no source given", hint="mmrlhf-engine pair FILE... --out RUN")
    return find_files(config.sources, config.root, config.split)
