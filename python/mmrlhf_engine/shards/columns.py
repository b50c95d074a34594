"""Sidecar columns that a run reads: there, complete, and made under its own conditions.

A log-probability of a reference model is right for one tokenizer, one chat template and one way to
show images. Who writes a column says under which conditions it was made (:func:`provenance`); who
reads it compares them with the run's, and a difference is an error before the first batch, not a
loss that is a little off.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mmrlhf_engine import __version__, _core
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.run.differences import differences

__all__ = ["ColumnRequest", "check_columns", "checked_requests", "provenance"]


@dataclasses.dataclass(frozen=True)
class ColumnRequest:
    """A field of a column set that batches carry, for example of ``reflogp/qwen2.5-vl-7b``."""

    column_set: str
    field: str
    expect: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What its provenance must say, beyond what every run compares."""
    allow_missing: bool = False
    """Whether rows may lack a value; batches then have NaN there."""


def provenance(
    dataset: _core.Dataset,
    plan: str,
    *,
    pictures: Mapping[str, Any] | None = None,
    **own: Any,
) -> dict[str, Any]:
    """The conditions under which a run over a dataset makes values, to be written with them.

    Args:
        dataset: Its tokenizer and chat template are stated.
        plan: The plan's JSON; its image rule, with the limits of pixels, is stated.
        pictures: How images are resized and normalised, if there are any.
        own: What else made the values: model, revision, dtype.
    """
    stated = {
        "tokenizer": json.loads(dataset.tokenizer),
        "image_rule": json.loads(plan)["image_rule"],
        "pictures": None if pictures is None else json.loads(json.dumps(dict(pictures))),
    }
    return {**stated, "writer": f"mmrlhf-engine {__version__}", **own}


def checked_requests(columns: Mapping[str, ColumnRequest] | None) -> dict[str, ColumnRequest]:
    """The requests by the names of their columns in a batch.

    Raises:
        InputError: a column is not a :class:`ColumnRequest`.
    """
    hint = 'columns={"reference": ColumnRequest("reflogp/NAME", "logp")}'
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        found = f"found {columns!r}, expected a ColumnRequest by the name of each"
        raise InputError(f"columns: {found}", hint=hint)
    for name, request in columns.items():
        if not isinstance(request, ColumnRequest):
            raise InputError(
                f"columns: {name}: found {request!r}, expected a ColumnRequest", hint=hint
            )
    return dict(columns)


def check_columns(
    dataset: _core.Dataset,
    requests: Mapping[str, ColumnRequest],
    conditions: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Names of the requests by the table whose rows they have, ``pairs`` or ``responses``.

    ``conditions`` are the run's, from :func:`provenance`. Those that a column states must be equal;
    those that a request expects must be stated.

    Raises:
        InputError: a column is not there, not of pairs or responses, not complete, or made under
            other conditions.
    """
    coverage = {cover["set"]: cover for cover in json.loads(dataset.coverage())}
    sets = {entry["set"]: entry for entry in json.loads(dataset.manifest)["columns"]}
    tables: dict[str, list[str]] = {"pairs": [], "responses": []}
    for name, request in requests.items():
        cover = coverage.get(request.column_set)
        if cover is None:
            raise InputError(
                f"columns: found no set {request.column_set!r}, expected one of {sorted(coverage)}"
            )
        if cover["table"] not in tables:
            raise InputError(
                f"{request.column_set}: a column of {cover['table']}, expected pairs or responses"
            )
        if cover["filled"] < cover["rows"] and not request.allow_missing:
            raise InputError(
                f"{request.column_set}: {cover['filled']:,} of {cover['rows']:,} rows have values",
                hint="compute the rest, or allow_missing=True, which gives NaN there",
            )
        _check_provenance(request, sets[request.column_set]["provenance"], conditions)
        tables[cover["table"]].append(name)
    return tables


def _check_provenance(
    request: ColumnRequest, stated: Mapping[str, Any], conditions: Mapping[str, Any]
) -> None:
    compared = ("tokenizer", "image_rule", "pictures")
    pairs = [(key, stated[key], conditions[key]) for key in compared if key in stated]
    pairs += [(key, stated.get(key), value) for key, value in request.expect.items()]
    lines = [line for key, made, here in pairs for line in differences(key, made, here)]
    if lines:
        raise InputError(
            f"{request.column_set}: made under other conditions than this run's: "
            + "; ".join(lines),
            hint="compute the column again under these conditions, or run under those it was made",
        )
