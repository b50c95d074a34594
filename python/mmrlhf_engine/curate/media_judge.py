"""Whether near media are copies of each other, by their pixels: what ``find_duplicates`` asks.

The core asks for pairs of media by number, many at a time. A medium is one picture, or some frames
of a video; two are copies if they have as many pictures, each a copy of its counterpart. Verdicts
are kept in the scratch folder, so that a run that was killed does not compare them again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from mmrlhf_engine._core import judge_pictures
from mmrlhf_engine.curate.media import picture_batches
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.run.stage import StageContext

__all__ = ["EVIDENCE", "FRAME_POSITIONS", "MAX_PIXELS", "MediaJudge"]

FRAME_POSITIONS = (0.25, 0.5, 0.75)
"""Of a video, the frames at these places stand for the whole."""
MAX_PIXELS = 2**32
"""A header that passed ingest is trusted: its pixel limit was the user's."""
_PAIRS_PER_PART = 256

EVIDENCE: dict[str, pl.DataType] = {
    "first": pl.UInt32(),  # numbers of the media, the smaller one first
    "second": pl.UInt32(),
    "copy": pl.Boolean(),
    "equal": pl.Boolean(),  # pixel for pixel
    "difference": pl.String(),  # what makes them no copies: luma, chroma, shape, thumbnail, frames
    "image_difference": pl.Float32(),  # of luma, the largest local one; null where not compared
    "colour_difference": pl.Float32(),  # of chroma; null where both are grey
    "image_scale": pl.Float32(),  # of the alignment; 1 without one
    "difference_box": pl.List(pl.Float32()),  # left, top, width, height, as shares of the picture
}
"""A row for each pair of media; of a video, of the frames that differ most."""


class MediaJudge:
    """Compares pairs of media, and remembers what was found.

    Args:
        media: Rows of ``media`` in the order of their numbers.
        stage: Its scratch folder keeps the verdicts.
        thumbnails: Whether a picture of a third of the size or less may be a copy.
        unverified_images: Whether near media are copies where the hash alone is known of one.
    """

    def __init__(
        self,
        media: pl.DataFrame,
        stage: StageContext,
        *,
        thumbnails: bool,
        unverified_images: bool,
    ) -> None:
        self._media = media
        self._stage = stage
        self._thumbnails = thumbnails
        self._unverified_images = unverified_images
        self._hash_alone = media["phash"].is_not_null().to_numpy()
        self.unverified_pairs = 0
        """Pairs asked for of which one is known by its hash alone."""
        self._parts = [pl.read_parquet(file) for file in sorted(_files(stage.scratch))]
        self._verdicts = dict(_verdicts(self._parts))
        self._asked: set[tuple[int, int]] = set()
        self._known = 0

    def learn(self, pairs: pl.DataFrame) -> None:
        """Take over what :meth:`learned` gave an earlier run."""
        for side in ("first", "second"):
            numbers = self.numbers(pairs[f"{side}_hash"].unique())
            schema = {f"{side}_hash": pl.String, side: pl.UInt32}
            found = pl.DataFrame([*numbers.items()], schema=schema, orient="row")
            pairs = pairs.join(found, on=f"{side}_hash", maintain_order="left")
        rows = pairs.select(*EVIDENCE)
        if self._parts:  # of an attempt that was interrupted
            rows = rows.join(pl.concat(self._parts), on=["first", "second"], how="anti")
        self._parts.insert(0, rows)
        self._verdicts.update(_verdicts([rows]))
        self._known = rows.height

    def learned(self) -> pl.DataFrame:
        """What was found of pairs that were compared, with the hashes of the media."""
        found = self.evidence.filter(pl.col("image_difference").is_not_null())
        hashes = {
            f"{side}_hash": self._media["hash"].gather(found[side]) for side in ("first", "second")
        }
        return found.drop("first", "second").with_columns(**hashes).sort(*hashes)

    @property
    def asked(self) -> int:
        """How many pairs were asked for."""
        return len(self._asked)

    @property
    def compared(self) -> int:
        """How many pairs were compared, now or by an attempt that was interrupted."""
        return len(self._verdicts) - self._known

    def __call__(
        self, first: Sequence[int], second: Sequence[int]
    ) -> tuple[list[bool], list[bool]]:
        """Whether each pair of media are copies, and whether they are equal."""
        pairs = list(zip(first, second, strict=True))
        by_hash = {pair for pair in pairs if self.is_unverified(*pair)}
        self.unverified_pairs += len(by_hash)
        unknown = [pair for pair in pairs if pair not in self._verdicts and pair not in by_hash]
        self._asked.update(pair for pair in pairs if pair not in by_hash)
        for start in range(0, len(unknown), _PAIRS_PER_PART):
            self._keep(self._compare(unknown[start : start + _PAIRS_PER_PART]))
        alone = self._unverified_images, False
        found = [alone if pair in by_hash else self._verdicts[pair] for pair in pairs]
        return [copy for copy, _ in found], [equal for _, equal in found]

    def numbers(self, hashes: pl.Series) -> dict[str, int]:
        """The numbers of media, by their hashes."""
        rows = self._media.lazy().filter(pl.col("hash").is_in(hashes.implode()))
        return dict(rows.select("hash", "number").collect().iter_rows())

    def is_unverified(self, first: int, second: int) -> bool:
        """Whether two media cannot be compared, since the hash alone is known of one of them."""
        return bool(self._hash_alone[first] or self._hash_alone[second])

    def unverified_removals(self, removed: pl.DataFrame) -> int:
        """How many samples were removed for a near picture although one hash alone is known.

        Args:
            removed: ``media`` and ``other_media`` of each sample that was removed for its pictures:
                its media by number, and those of the sample or question that it is near to.
        """
        own, other = pl.col("media"), pl.col("other_media")
        # Media with one number have one content.
        apart = removed.select(
            own=own.list.set_difference(other), other=other.list.set_difference(own)
        )
        apart = apart.filter(pl.col("other").list.len() > 0).with_row_index("row")
        media = apart.select("row", number=pl.concat_list("own", "other")).explode("number")
        alone = pl.Series(self._hash_alone).gather(media["number"])
        return media.filter(alone)["row"].n_unique()

    @property
    def evidence(self) -> pl.DataFrame:
        """All that was found; see :data:`EVIDENCE`."""
        return pl.concat([pl.DataFrame(schema=EVIDENCE), *self._parts])

    def _compare(self, pairs: Sequence[tuple[int, int]]) -> pl.DataFrame:
        numbers = sorted({number for pair in pairs for number in pair})
        rows = self._media[numbers]
        batches = list(picture_batches(rows, len(numbers) + 1, FRAME_POSITIONS))
        shown: dict[int, list[int]] = {number: [] for number in numbers}
        at = 0
        for batch in batches:
            for row in batch.rows:
                shown[numbers[row]].append(at)
                at += 1
        compared = [
            (place, a, b)
            for place, (first, second) in enumerate(pairs)
            if len(shown[first]) == len(shown[second])
            for a, b in zip(shown[first], shown[second], strict=True)
        ]
        places, left, right = (
            pa.array([row[column] for row in compared], pa.uint32()) for column in range(3)
        )
        judged = judge_pictures(
            _joined(batches, "paths"),
            _joined(batches, "offsets"),
            _joined(batches, "lengths"),
            _joined(batches, "inline"),
            left,
            right,
            thumbnails=self._thumbnails,
            max_pixels=MAX_PIXELS,
            threads=self._stage.threads,
        )
        table = pl.DataFrame(pl.from_arrow(pa.RecordBatch.from_struct_array(pa.array(judged))))
        return _of_media(table.with_columns(place=pl.Series(values=places)), pairs)

    def _keep(self, part: pl.DataFrame) -> None:
        file = self._stage.scratch / f"judged-{len(self._parts):06d}.parquet"
        with appearing(file) as temporary:
            part.write_parquet(temporary)
        self._parts.append(part)
        self._verdicts.update(_verdicts([part]))
        self._stage.progress("comparing pictures", len(self._verdicts))


def _files(scratch: Path) -> Iterator[Path]:
    return scratch.glob("judged-*.parquet")


def _verdicts(parts: Sequence[pl.DataFrame]) -> Iterator[tuple[tuple[int, int], tuple[bool, bool]]]:
    for part in parts:
        for first, second, copy, equal in part.select("first", "second", "copy", "equal").rows():
            yield (first, second), (copy, equal)


def _joined(batches: Sequence[Any], column: str) -> pa.Array:
    return pa.concat_arrays([getattr(batch, column) for batch in batches])


def _of_media(pictures: pl.DataFrame, pairs: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """Of each pair of media what was found of its pictures: of those that differ most."""
    of_pair = (
        pictures.sort("luma", descending=True, nulls_last=False)
        .group_by("place", maintain_order=True)
        .agg(
            pl.col("copy").all(),
            pl.col("equal").all(),
            pl.col("luma").first().alias("image_difference"),
            pl.col("chroma").max().alias("colour_difference"),
            pl.col("scale_x").first().alias("image_scale"),
            pl.concat_list("left", "top", "difference_width", "difference_height")
            .first()
            .alias("difference_box"),
            pl.col("cause").drop_nulls().first().alias("difference"),
        )
    )
    named = pl.DataFrame(pairs, schema=["first", "second"], orient="row").with_row_index("place")
    joined = named.join(
        of_pair.cast({"place": pl.UInt32}), on="place", how="left", maintain_order="left"
    )
    known = joined.with_columns(pl.col("copy", "equal").fill_null(value=False))
    return known.select(*EVIDENCE).cast(EVIDENCE)  # type: ignore[arg-type]
