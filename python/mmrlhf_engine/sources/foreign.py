"""Pictures that Pillow decodes for the core: AVIF and HEIC.

The core reads their headers alone. Their pixels reach it as a bitmap, or as PNG where they have
alpha, so that they are those of Pillow.
HEIC needs the package pillow-heif; a Pillow of 11.3 or later brings AVIF along.
"""

import io
from functools import cache
from typing import Any

import polars as pl

from mmrlhf_engine.errors import MissingExtraError

__all__ = ["FOREIGN", "NOT_PACKED", "ForeignError", "reencode", "refuse_undecodable"]

FOREIGN = frozenset({"avif", "heic"})
"""Formats of which the core reads the header alone."""

NOT_PACKED = FOREIGN | {"tiff"}
"""Formats that a dataset of shards does not hold; they are packed as PNG."""

_PACKAGES = {"avif": "pillow (11.3 or later)", "heic": "pillow-heif"}


class ForeignError(Exception):
    """A picture cannot be decoded."""


@cache
def _missing(format: str) -> str | None:
    """The package that is missing for a format; None where it can be decoded."""
    try:
        from PIL import Image, features

        if format == "avif":
            return None if features.check("avif") else _PACKAGES[format]
        if format == "heic":
            import pillow_heif

            pillow_heif.register_heif_opener()
        Image.init()
    except ImportError:
        return _PACKAGES.get(format, "pillow")
    return None


def refuse_undecodable(media: pl.DataFrame) -> pl.DataFrame:
    """Inspected media, where formats whose decoder is not installed have a reason and a detail."""
    for format in FOREIGN & set(media["format"].drop_nulls().unique()):
        package = _missing(format)
        if package is None:
            continue
        here = pl.col("format").eq_missing(format)
        detail = f"{format} needs the package {package}: pip install 'mmrlhf-engine[pictures]'"
        columns = {"reason": pl.lit("unreadable_media"), "detail": pl.lit(detail)}
        media = media.with_columns(
            *(
                pl.when(here).then(value).otherwise(name).alias(name)
                for name, value in columns.items()
            ),
            hash=pl.when(~here).then("hash"),
        )
    return media


def reencode(content: bytes, format: str, *, small: bool) -> bytes:
    """A picture that Pillow decodes, upright, its colours and alpha kept, in a format of the core.

    Args:
        content: The picture.
        format: Its format.
        small: Whether it is to be kept (PNG), or decoded at once (uncompressed).

    Raises:
        ForeignError: it cannot be decoded.
        MissingExtraError: a package is not installed.
    """
    package = _missing(format)
    if package is not None:
        raise MissingExtraError(package, extra="pictures", needed_for=f"decoding {format}")
    from PIL import Image, ImageOps

    made = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            shown: Any = ImageOps.exif_transpose(image)
            mode = "RGBA" if shown.has_transparency_data else "RGB"
            if small or mode == "RGBA":
                shown.convert(mode).save(made, "PNG", compress_level=6 if small else 0)
            else:
                shown.convert(mode).save(made, "BMP")
    except Exception as error:  # the decoder of each format has errors of its own
        raise ForeignError(f"{format}: {error}") from None
    return made.getvalue()
