"""What dedup has found out about texts and pictures, kept in its folder for later runs.

    signatures/columns/HASH.arrow     texts of one part of `samples`, as columns that are mapped
    signatures/keys/HASH.arrow        the keys of these texts, likewise
    signatures/texts/HASH.parquet     what was measured of pairs of texts: no decisions
    signatures/compared/HASH.parquet  the same of pairs of pictures
    signatures/pictures/              hashes of pictures (a SignatureCache)

What was measured does not depend on other rows or on thresholds. So only pairs that have a new row
are compared, and other thresholds decide again without a look at the raw data.
"""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine._core import TextMeasures, text_key_lists
from mmrlhf_engine.curate.frequencies import Frequencies
from mmrlhf_engine.curate.kept_files import KeptFiles
from mmrlhf_engine.curate.sample_columns import SampleColumns
from mmrlhf_engine.run.code_hash import code_hash
from mmrlhf_engine.run.stage import StageContext

__all__ = ["PICTURES", "SIGNATURES", "Signatures"]

SIGNATURES = "signatures"
PICTURES = "pictures"
_TEXT_MODULE = "mmrlhf_engine.curate.sample_columns"
_PICTURE_MODULE = "mmrlhf_engine.curate.media_judge"


class Signatures:
    """What one run of dedup takes from the folder, and puts there.

    Args:
        stage: Dedup, begun.
        files: Of the folder.
        settings: Those of dedup, by their names.
        frequencies: Of words and shingles; None where they play no part.
    """

    def __init__(
        self,
        stage: StageContext,
        files: KeptFiles,
        settings: dict[str, Any],
        frequencies: Frequencies | None,
    ) -> None:
        self._stage = stage
        self._files = files
        self._settings = settings
        self._frequencies = None if frequencies is None else frequencies.to_arrow()
        counted = None if frequencies is None else frequencies.digest()
        of_texts = [code_hash(_TEXT_MODULE), counted, settings["shingle_words"]]
        # What a text is to others depends on these; thresholds are not among them.
        self._of_keys = [*of_texts, settings["bands"], settings["rows_per_band"]]
        rule = [settings["text_rule"], settings["document_tokens"]]
        self._measures = files.file("texts", "parquet", [*of_texts, rule])
        of_pictures = [code_hash(_PICTURE_MODULE), settings["thumbnails"]]
        self._compared = files.file("compared", "parquet", of_pictures)
        self.texts_read = 0
        """Texts of which keys were made."""

    def text_keys(self, samples: SampleColumns) -> list[pa.LargeListArray]:
        """Keys of all texts, as ``find_duplicates`` takes them."""
        found: list[pa.LargeListArray] = []
        for part in samples.parts:
            file = self._files.file("keys", "arrow", [part.state, self._of_keys])
            place = self._files.find(file) or self._make_keys(part.prompts, file)
            with pa.memory_map(str(place)) as mapped:
                reader = pa.ipc.open_file(mapped)
                batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            found += [batch.column(0) for batch in batches]
            self._stage.progress("reading texts", sum(map(len, found)), len(samples))
        return found

    def text_measures(self) -> TextMeasures:
        """What was measured of pairs of texts."""
        place = self._files.find(self._measures)
        if place is None:
            return TextMeasures()
        return TextMeasures(pq.read_table(place).to_struct_array().combine_chunks())

    def keep_measures(self, measures: TextMeasures) -> None:
        """Keep what :meth:`text_measures` gave, as far as it was used, and what is new."""
        batch = pa.RecordBatch.from_struct_array(pa.array(measures.table()))
        self._write(self._measures, pa.Table.from_batches([batch]))

    def compared(self) -> pl.DataFrame | None:
        """What :meth:`keep_compared` was given by the last run."""
        place = self._files.find(self._compared)
        return None if place is None else pl.read_parquet(place)

    def keep_compared(self, pairs: pl.DataFrame) -> None:
        """Keep what was found of pairs of pictures, as ``MediaJudge`` names them."""
        self._write(self._compared, pairs.to_arrow())

    def _make_keys(self, texts: list[pa.LargeStringArray], file: Path) -> Path:
        schema = pa.schema({"keys": pa.large_list(pa.uint64())})

        def write(temporary: Path) -> None:
            with pa.ipc.new_file(temporary, schema) as writer:
                for chunk in texts:
                    made = text_key_lists(
                        chunk,
                        settings=self._settings,
                        threads=self._stage.threads,
                        frequencies=self._frequencies,
                    )
                    keys = pa.array(made).cast(schema.field(0).type)
                    writer.write_batch(pa.record_batch([keys], schema=schema))

        self.texts_read += sum(map(len, texts))
        return self._files.put(file, write)

    def _write(self, file: Path, table: pa.Table) -> None:
        self._files.put(file, lambda place: pq.write_table(table, place, compression="zstd"))
