"""How common shingles and words are in the texts of a run: counted once, then used again.

What is common decides which texts meet and which unlisted words are no spelling mistakes. So that
no verdict changes because other rows came, ``RUN/02_dedup/frequencies.parquet`` is counted by the
first ``dedup`` of the run and used by every later one, also of a changed or extended corpus, until
``curate --reweigh`` counts it again. It is counted again too where it does not fit:
``shingle_words`` or ``common_from`` are others, or the core makes hashes in another way.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import count_frequencies, frequency_form
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import StageContext

__all__ = ["FREQUENCIES", "Frequencies", "forget", "frequencies_of_run", "read_or_count"]

FREQUENCIES = "frequencies.parquet"
"""Columns ``hash`` (uint64), ``count`` (uint32: texts that have it, estimated from a sample where
there are many) and ``is_word`` (of a word that no list has, else of a shingle); in the metadata of
the file the number of texts it was counted in, and the settings."""
_GROWN = 2
"""The corpus is this many times that of the table, or the table's is: the user is told."""


@dataclass(frozen=True)
class Frequencies:
    """The table of a run, and the number of texts that it was counted in."""

    rows: pl.DataFrame
    texts: int

    def to_arrow(self) -> pa.StructArray:
        """As ``find_duplicates`` and ``judge_texts`` take it."""
        return self.rows.to_struct().to_arrow()

    def digest(self) -> str:
        """A hash of the table."""
        columns = (column.to_numpy().tobytes() for column in self.rows.iter_columns())
        return hashlib.sha256(b"".join(columns)).hexdigest()

    def facts(self) -> dict[str, Any]:
        """For the report: where the numbers come from, and how many there are."""
        words = int(self.rows["is_word"].sum())
        return {"texts": self.texts, "shingles": self.rows.height - words, "words": words}


def read_or_count(
    stage: StageContext,
    texts: Sequence[pa.LargeStringArray],
    *,
    shingle_words: int,
    common_from: int,
) -> Frequencies:
    """The table of the run; if there is none that fits, it is counted in ``texts`` and written."""
    settings = {
        "shingle_words": str(shingle_words),
        "common_from": str(common_from),
        "form": str(frequency_form(shingle_words)),
    }
    file, number = stage.folder / FREQUENCIES, sum(map(len, texts))
    known = _read(file, settings)
    if known is not None:
        fewer, more = sorted((known.texts, number))
        if more > _GROWN * fewer:
            stage.resources.progress.say(
                f"dedup: what is common was counted in {known.texts:,} texts, and there are "
                f"{number:,} now; --reweigh counts it again"
            )
        return known
    counted = count_frequencies(
        list(texts), shingle_words=shingle_words, common_from=common_from, threads=stage.threads
    )
    rows = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(counted))))
    with appearing(file) as temporary:
        rows.write_parquet(temporary, metadata={**settings, "texts": str(number)})
    return Frequencies(rows, number)


def frequencies_of_run(run: Run) -> Frequencies | None:
    """The table that the last ``dedup`` used; None where texts were not judged."""
    return _read(run.stage_folder("dedup") / FREQUENCIES, {})


def forget(run: Run) -> None:
    """Remove the table, so that ``dedup`` runs again and counts again."""
    (run.stage_folder("dedup") / FREQUENCIES).unlink(missing_ok=True)


def _read(file: Path, settings: dict[str, str]) -> Frequencies | None:
    """The table of a file, if it was made with these settings."""
    if not file.is_file():
        return None
    metadata = pl.read_parquet_metadata(file)
    if any(metadata.get(name) != value for name, value in settings.items()):
        return None
    return Frequencies(pl.read_parquet(file), int(metadata["texts"]))
