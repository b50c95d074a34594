"""Frames of ingest, compared with loops over rows; plain batches take other ways than the rest."""

from pathlib import Path

import polars as pl
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine._core import UniqueIds
from mmrlhf_engine.curate.ingest_frames import (
    media_by_record,
    name_rows,
    with_media,
    with_unique_ids,
)
from mmrlhf_engine.sources.samples.batch import RawBatch, Source, text_column

NAME = "a{b}"
MEDIA = {"record": pl.UInt32, **dict.fromkeys(["hash", "kind", "reason", "detail"], pl.String)}
TURNS = {
    "record": pl.UInt32,
    "turn": pl.UInt32,
    **dict.fromkeys(["source_id", "pair", "reason", "detail"], pl.String),
}

few = st.sampled_from([None, "x", "y#2", ""])
medium = st.sampled_from(
    [
        ("h1", "image", None, None),
        ("h2", "video", None, None),
        ("h3", "frames", None, None),
        (None, None, "missing_media", "where?"),
        (None, None, "unreadable_media", None),
    ]
)
record = st.fixed_dictionaries(
    {
        "source_id": few,
        "pair": st.sampled_from([None, None, "pair"]),
        "turns": st.lists(st.sampled_from([None, "empty_prompt"]), min_size=1, max_size=3),
        "media": st.lists(medium, max_size=3),
    }
)
plain = st.fixed_dictionaries(
    {
        "source_id": few,
        "pair": st.none(),
        "turns": st.just([None]),
        "media": st.lists(medium, max_size=1),
    }
)


def turns_of(records):
    return [
        {
            "record": number,
            "turn": turn if len(record["turns"]) > 1 else None,
            "source_id": record["source_id"],
            "pair": record["pair"],
            "reason": reason,
            "detail": reason and "of the turn",
        }
        for number, record in enumerate(records)
        for turn, reason in enumerate(record["turns"], start=1)
    ]


def naive(records, keys):
    """The rows of :func:`name_rows` and :func:`with_media`, one at a time."""
    rows = []
    for row in turns_of(records):
        record, key = records[row["record"]], keys[row["record"]]
        own = key if row["source_id"] is None else row["source_id"]
        if row["pair"] and row["source_id"] is not None:
            own = f"{row['source_id']}@{key}"
        media = record["media"]
        bad = [(reason, detail) for _, _, reason, detail in media if reason]
        kinds = {kind for _, kind, _, _ in media}
        rows.append(
            {
                **row,
                "key": key,
                "position": f"p{key}",
                "source_id": own,
                "record_id": f"{NAME}:{own}",
                "media": [name for name, _, _, _ in media],
                "modality": (
                    "text" if not media
                    else "video" if kinds & {"video", "frames"}
                    else "multi_image" if len(media) > 1
                    else "image"
                ),
                "reason": bad[0][0] if bad else row["reason"],
                "detail": (bad[0][1] if bad else None) or row["detail"],
                "whole": bool(bad),
            }
        )  # fmt: skip
    return rows


def naive_ids(rows):
    """`id` of each row: the next number that gives ids that no row before has."""
    taken, ids = set(), []
    for number in dict.fromkeys(row["record"] for row in rows):
        own = [row for row in rows if row["record"] == number]
        repeat = 1
        while True:
            base = own[0]["record_id"] + (f"#{repeat}" if repeat > 1 else "")
            marks = [base if row["turn"] is None else f"{base}#{row['turn']}" for row in own]
            if not taken & {base, *marks}:
                break
            repeat += 1
        taken |= {base, *marks}
        ids += marks
    return ids


@given(records=st.one_of(st.lists(record, max_size=6), st.lists(plain, max_size=6)))
def test_rows_are_those_of_a_loop(records):
    keys = [str(10 + number) for number in range(len(records))]
    source = Source(NAME, Path(), (), {}, [])
    batch = RawBatch(text_column(f"p{key}" for key in keys), text_column(keys), pa.array([]))
    turns = pl.DataFrame(turns_of(records), schema=TURNS)
    media = pl.DataFrame(
        [(number, *found) for number, record in enumerate(records) for found in record["media"]],
        schema=MEDIA,
        orient="row",
    )
    rows = name_rows(source, batch, turns)
    rows = with_media(rows, media_by_record(media), len(records))
    expected = naive(records, keys)
    named = ["media_reason", "media_detail"]
    assert [
        {name: value for name, value in row.items() if name not in named}
        for row in rows.iter_rows(named=True)
    ] == [{name: row[name] for name in rows.columns if name not in named} for row in expected]
    assert with_unique_ids(rows, UniqueIds())["id"].to_list() == naive_ids(expected)
