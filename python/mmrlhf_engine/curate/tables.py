"""The tables that pass from stage to stage: their columns, as a contract.

A table is a folder of Parquet parts. Anything may be read with
``pl.read_parquet("RUN/01_ingest/samples/*.parquet")``; these schemas are what one then finds.
"""

import polars as pl

from mmrlhf_engine.run.tables import TableSchema

__all__ = [
    "CLUSTERS",
    "DUPLICATES",
    "EMBEDDING_IDS",
    "EVIDENCE",
    "KEPT",
    "MEDIA",
    "NEAR_PAIRS",
    "QUERIES",
    "SAMPLES",
    "SEMANTIC_DUPLICATES",
]

SAMPLES: TableSchema = {
    # Unique in the run: "source:source_id". "#k" is added for turn k of several. Where a source_id
    # repeats, "#2", "#3", ... comes before that: the next number that gives an id that no row
    # before has. "a", "a#2" and "a#3#1" are of three records "a", the third of several turns.
    "id": pl.String(),
    "source_id": pl.String(),  # as the user gave it
    "source": pl.String(),
    "tags": pl.List(pl.String()),
    "modality": pl.String(),  # image, multi_image, video, text
    "question_type": pl.String(),  # mcq, long, short
    # The complete question: context, question, input, then the options as lines "A. ...", each
    # where the question does not hold it already; without marks of media.
    "prompt": pl.String(),
    "answer": pl.String(),  # null where the source has none
    "options": pl.List(pl.String()),  # without their letters; empty where there are none
    # The system prompt and the turns before this one, in order: role is system, user, assistant or
    # tool; the last 64 messages, and 16,384 characters in all, at most.
    "history": pl.List(pl.Struct({"role": pl.String(), "text": pl.String()})),
    # Whether the question cannot be understood without the turns before it ("And on the right?").
    # English is judged by its words (rust_core/src/ingest/record/alone.rs); in another language it
    # is every turn after the first that has fewer than four words.
    "needs_history": pl.Boolean(),
    "media": pl.List(pl.String()),  # hashes into MEDIA, in the order of the prompt
}

MEDIA: TableSchema = {
    "hash": pl.String(),  # first 128 bits of the BLAKE3 of the content, in hex
    "kind": pl.String(),  # image, frames (a folder of them), video
    "format": pl.String(),
    "width": pl.UInt32(),  # pixels; null where the header does not tell
    "height": pl.UInt32(),
    "frames": pl.UInt32(),
    "bytes": pl.UInt64(),
    # The file, or the tar or Parquet file it lies in; for what stood in a record as base64, a file
    # of its source in 01_ingest/embedded of the run.
    "path": pl.String(),
    "offset": pl.UInt64(),  # byte range inside path; null in a Parquet cell
    "length": pl.UInt64(),
    "column": pl.String(),  # Parquet cell: column, row, item of the list
    "row": pl.UInt64(),
    "item": pl.UInt32(),
    # Of a picture that a record holds as its hash alone, without path, format and bytes: the 64
    # bits that the Python package imagehash prints in hex, and the colours of an 8 by 8 grid.
    "phash": pl.UInt64(),
    "colour": pl.Binary(),  # 192 bytes, or null
}

KEPT: TableSchema = {
    # Ascending by id; the tables of embed and cluster have the same rows in the same order.
    "id": pl.String(),
    "sample": pl.UInt32(),  # row of SAMPLES
    "phash": pl.List(pl.UInt64()),  # one per media item; null where none can be had
}

EVIDENCE: TableSchema = {
    # What differs in the texts, and why it makes no difference, or which difference it makes; null
    # where texts were not judged, or are equal, or the Jaccard index decided.
    "text_differences": pl.String(),
    # Of the media that differ most; null where their pictures were not compared.
    "difference": pl.String(),  # luma, chroma, shape, thumbnail, frames; null for copies
    "image_difference": pl.Float32(),  # of luma, the largest local one; copies have less than 5.5
    "colour_difference": pl.Float32(),  # copies have less than 1; null where both are grey
    "image_scale": pl.Float32(),  # of the alignment; 1 without one
    "difference_box": pl.List(pl.Float32()),  # left, top, width, height, as shares of the picture
}

DUPLICATES: TableSchema = {
    "id": pl.String(),  # the sample removed
    "kept_id": pl.String(),  # the near sample that stays, or the question of a benchmark
    "kind": pl.String(),  # exact, near, max_per_image, contaminated
    "text_jaccard": pl.Float32(),  # of the shingle sets of these two; null where text had no say
    "image_hamming": pl.UInt32(),  # bits of 64, the largest over the media; null likewise
    "conflict": pl.Boolean(),  # both have short answers, and other ones: one of them is wrong
    **EVIDENCE,
    # Of a contaminated sample: the benchmark, and the share of the question's own runs of eight
    # words that the sample contains, null for a short question.
    "benchmark": pl.String(),
    "contained": pl.Float32(),
    "policy": pl.String(),
}

NEAR_PAIRS: TableSchema = {
    "id": pl.String(),
    "other_id": pl.String(),
    "text_jaccard": pl.Float32(),
    "image_hamming": pl.UInt32(),
    **EVIDENCE,
    "verdict": pl.String(),  # removed (other_id stays), or kept: both stay, by a little
}

EMBEDDING_IDS: TableSchema = {
    "id": pl.String(),
    # Of embeddings.npy, null where there is none; samples with the same first image share a row.
    "row": pl.UInt32(),
}

CLUSTERS: TableSchema = {
    "id": pl.String(),
    "cluster": pl.Int32(),  # -1 for samples that have no embedding
    "distance": pl.Float32(),  # 1 - cosine to the centroid of its cluster
}

QUERIES: TableSchema = {
    **SAMPLES,
    "cluster": pl.Int32(),
    "distance": pl.Float32(),
    "why": pl.String(),
}

SEMANTIC_DUPLICATES: TableSchema = {
    "id": pl.String(),  # a sample that select passed over or removed
    # The sample of its cluster that it is too close to: a chosen one, or one that can be chosen.
    "kept_id": pl.String(),
    "cosine": pl.Float32(),  # of their embeddings
}
