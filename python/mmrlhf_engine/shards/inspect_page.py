"""``mmrlhf-engine inspect SHARDS --html PAGE``: one page that needs no other file and no script."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment

from mmrlhf_engine import __version__, _core
from mmrlhf_engine.run.files import write_atomically
from mmrlhf_engine.shards.inspect import Contents, Distribution, InspectSettings, read_contents

__all__ = ["write_page"]

_EDGE = 480
"""Pixels of the longer side of a picture on the page."""
_MAX_PIXELS = 89_478_485


def write_page(
    path: Path,
    page: Path,
    settings: InspectSettings | None = None,
    *,
    version: int | None = None,
) -> None:
    """Write the page of a dataset; errors as of :func:`mmrlhf_engine.shards.inspect.inspect`."""
    contents = read_contents(path, settings or InspectSettings(), version=version)
    template = files("mmrlhf_engine.shards").joinpath("inspect.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    text = environment.from_string(template).render(
        name=path.resolve().name,
        version=__version__,
        contents=contents,
        histograms=[_histogram(distribution) for distribution in contents.distributions],
        thumbnails=_thumbnails(path, contents, version),
    )
    write_atomically(page, text)


def _histogram(distribution: Distribution) -> dict[str, Any]:
    """Bars as shares of the width and of the highest bar."""
    bins = distribution.bins()
    most = max(count for _, _, count in bins)
    bars = [
        {
            "x": 100 * number / len(bins),
            "width": 100 / len(bins) * 0.92,
            "height": 40 * count / most,
            "from": start,
            "last": end - 1,
            "count": count,
        }
        for number, (start, end, count) in enumerate(bins)
    ]
    return {"name": distribution.name, "quantiles": distribution.quantiles(), "bars": bars}


def _thumbnails(path: Path, contents: Contents, version: int | None) -> dict[int, str]:
    """Blob id -> ``data:image/jpeg`` URI; what cannot be decoded is left out."""
    blobs = sorted(
        {
            picture.blob
            for pair in contents.pairs
            for text in pair.texts()
            for picture in text.pictures
        }
    )
    dataset = _core.Dataset(path, version, "lazy")
    absent = pa.nulls(len(blobs), pa.large_string())
    unknown = pa.nulls(len(blobs), pa.uint64())
    made = _core.thumbnail_images(
        absent,
        unknown,
        unknown,
        pa.array([dataset.blob(blob)[0] for blob in blobs], pa.large_binary()),
        edge=_EDGE,
        max_pixels=_MAX_PIXELS,
        threads=0,
    )
    return {
        blob: "data:image/jpeg;base64," + base64.b64encode(content).decode()
        for blob, content in zip(blobs, pa.array(made).to_pylist(), strict=True)
        if content is not None
    }
