"""Preference pairs in the layout that TRL's ``DPOTrainer`` reads, one Parquet file.

==================  ===============================================================================
column
==================  ===============================================================================
``prompt``          text, as the chat template rendered it, the image token where an image stands
``chosen``          text, with the end of the turn
``rejected``        text, with the end of the turn
``margin``          float32, null where it is not known
``weight``          float32
``images``          pictures of the prompt, a list of Image (Hugging Face datasets)
``chosen_images``   all pictures of prompt and chosen response in their order, null where they are
                    those of ``images``
``rejected_images`` the same for the rejected response
==================  ===============================================================================

``images`` is there if any query has pictures, the last two if any response has its own. TRL's
collator reads ``images`` alone; pairs with other pictures need a collator that reads the others.
The text is already rendered, so that the trainer applies no chat template to it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf_engine import _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS, SMALLEST_ID
from mmrlhf_engine.run.files import appearing
from mmrlhf_engine.shards.tokenizer import TokenDecoder

__all__ = ["deleted_pairs", "write_trl"]

_ROWS_PER_GROUP = 1024
_BYTES_PER_GROUP = 64 << 20

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGES = pa.list_(_IMAGE)
_TYPES: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
    "prompt": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "chosen": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "rejected": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "margin": (pa.float32(), {"dtype": "float32", "_type": "Value"}),
    "weight": (pa.float32(), {"dtype": "float32", "_type": "Value"}),
}
# Read as List(Image()) by datasets 4 and later, as Sequence(Image()) by those before.
_FEATURE_OF_IMAGES = {"feature": {"_type": "Image"}, "_type": "Sequence"}


@dataclass
class _Pair:
    """A row to write: ids uint32, pictures as blob ids."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    images: list[int]
    chosen_images: list[int] | None
    rejected_images: list[int] | None
    margin: float | None
    weight: float

    def blobs(self) -> list[int]:
        return [*self.images, *(self.chosen_images or ()), *(self.rejected_images or ())]


def write_trl(dataset: _core.Dataset, out: Path, decoder: TokenDecoder) -> None:
    """Write all pairs that are not deleted; see the top of this module.

    Raises:
        InputError: a pair has a video.
    """
    schema = _schema(dataset)
    with (
        appearing(out) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for pairs, contents in _groups(dataset):
            writer.write_batch(_batch(pairs, contents, decoder, schema))


def deleted_pairs(dataset: _core.Dataset) -> pl.Series | None:
    """Bool, a value a pair, whether it is marked as deleted; None where none is."""
    if all(cover["set"] != "deleted" for cover in json.loads(dataset.coverage())):
        return None
    return pl.Series(pa.array(dataset.column("deleted", "deleted"))).fill_null(False)


def _schema(dataset: _core.Dataset) -> pa.Schema:
    """Columns of the file, with their features for ``datasets`` as schema metadata."""
    fields = [pa.field(name, kind) for name, (kind, _) in _TYPES.items()]
    features = {name: feature for name, (_, feature) in _TYPES.items()}
    names = []
    own = any(len(dataset.response_media(row)) for row in range(dataset.rows("responses")))
    if own or any(len(dataset.media(row)) for row in range(dataset.rows("queries"))):
        names.append("images")
    if own:
        names += ["chosen_images", "rejected_images"]
    fields += [pa.field(name, _IMAGES) for name in names]
    features.update(dict.fromkeys(names, _FEATURE_OF_IMAGES))
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _groups(dataset: _core.Dataset) -> Iterator[tuple[list[_Pair], dict[int, bytes]]]:
    """Pairs, and the pictures they need, so many as make a row group."""
    deleted = deleted_pairs(dataset)
    pairs: list[_Pair] = []
    contents: dict[int, bytes] = {}
    size = 0
    for row in range(dataset.rows("pairs")):
        if deleted is not None and deleted[row]:
            continue
        pair = _pair(dataset, row)
        _refuse_videos(pair, row)
        for blob in pair.blobs():
            if blob not in contents:
                contents[blob] = dataset.blob(blob)[0]
            size += len(contents[blob])  # a picture is written once for each row that shows it
        pairs.append(pair)
        if len(pairs) == _ROWS_PER_GROUP or size >= _BYTES_PER_GROUP:
            yield pairs, contents
            pairs, contents, size = [], {}, 0
    if pairs:
        yield pairs, contents


def _pair(dataset: _core.Dataset, row: int) -> _Pair:
    query, chosen, rejected, margin, weight, _ = dataset.pair(row)
    media = pa.array(dataset.media(query)).to_pylist()
    sides = []
    for response in (chosen, rejected):
        tokens = pa.array(dataset.tokens(response)).to_numpy()
        own = pa.array(dataset.response_media(response)).to_pylist()
        sides.append((tokens, _shown(media, own, tokens)))
    (chosen_ids, chosen_images), (rejected_ids, rejected_images) = sides
    return _Pair(
        prompt=pa.array(dataset.prompt(query)).to_numpy(),
        chosen=chosen_ids,
        rejected=rejected_ids,
        images=media,
        chosen_images=chosen_images,
        rejected_images=rejected_images,
        margin=margin,
        weight=weight,
    )


def _shown(media: list[int], own: list[int], tokens: np.ndarray) -> list[int] | None:
    """Pictures of a sequence where they are not those of the prompt.

    A response's own pictures come after those of the prompt if the response has places for them,
    and are other ones for the places of the prompt if it has none.
    """
    if not own:
        return None
    return [*media, *own] if (tokens >= SMALLEST_ID).any() else own


def _refuse_videos(pair: _Pair, row: int) -> None:
    """TRL's collator reads images alone."""
    for ids in (pair.prompt, pair.chosen, pair.rejected):
        if ((ids >= SMALLEST_ID) & (ids != PLACEHOLDER_IDS[IMAGE])).any():
            raise InputError(
                f"pair {row} has a video, which TRL's preference data cannot hold",
                hint="export --to parquet, or pack with --videos frames",
            )


def _batch(
    pairs: list[_Pair], contents: dict[int, bytes], decoder: TokenDecoder, schema: pa.Schema
) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        name: decoder.decode([getattr(pair, name) for pair in pairs])
        for name in ("prompt", "chosen", "rejected")
    }
    columns |= {name: [getattr(pair, name) for pair in pairs] for name in ("margin", "weight")}
    for name in ("images", "chosen_images", "rejected_images"):
        if name in schema.names:
            columns[name] = [_images(getattr(pair, name), contents) for pair in pairs]
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _images(blobs: list[int] | None, contents: dict[int, bytes]) -> list[dict[str, Any]] | None:
    return None if blobs is None else [{"bytes": contents[b], "path": None} for b in blobs]
