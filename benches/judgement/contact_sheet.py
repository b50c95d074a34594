"""The worst errors of a judge on one page: both pictures or texts, and what was said of them."""

import io
import textwrap
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from sheet import FONTS, font

TILE, CAPTION, ACROSS, SHOWN = (300, 220), 56, 2, 20


class Error(NamedTuple):
    """A wrong verdict on two pictures (bytes) or two texts (str)."""

    wrongly_merged: bool
    score: float
    """The larger, the worse."""
    what: str
    left: bytes | str
    right: bytes | str


def worst(errors: list[Error], count: int) -> list[Error]:
    """Wrong merges first, then missed copies."""
    return sorted(errors, key=lambda e: (e.wrongly_merged, e.score), reverse=True)[:count]


def draw_sheet(path: Path, pictures: list[Error], texts: list[Error]) -> None:
    """A PNG file with the twenty worst errors, eight of them texts if pictures have twelve."""
    some = worst(texts, max(8, SHOWN - len(pictures)))
    shown = worst(pictures, SHOWN - len(some)) + some
    wide, high = 2 * TILE[0] + 20, TILE[1] + CAPTION
    sheet = Image.new("RGB", (ACROSS * wide, max(1, -(-len(shown) // ACROSS)) * high), "white")
    pen, small = ImageDraw.Draw(sheet), font(FONTS[0], 13)
    for place, error in enumerate(shown):
        x, y = place % ACROSS * wide, place // ACROSS * high
        verdict = "look-alike merged" if error.wrongly_merged else "copy missed"
        caption = textwrap.wrap(f"{place + 1}. {verdict}: {error.what}", 84)[:3]
        pen.text((x + 6, y + 4), "\n".join(caption), "darkred", small)
        for side, content in enumerate((error.left, error.right)):
            at = (x + 6 + side * (TILE[0] + 4), y + CAPTION)
            if isinstance(content, bytes):
                image = Image.open(io.BytesIO(content)).convert("RGB")
                image.thumbnail((TILE[0], TILE[1] - 6), Image.Resampling.LANCZOS)
                sheet.paste(image, at)
                pen.rectangle((*at, at[0] + image.width, at[1] + image.height), outline="grey")
            else:
                pen.text(at, "\n".join(textwrap.wrap(content, 40)[:13]), "black", small)
    sheet.save(path)
