"""Which pictures dedup proposes to its judge, by the definitions in ``mmrlhf_core::dedup``."""

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter

RADIUS, TOLERANCE = 4, 24


def proposed(a, b):
    """Of two pictures: each a hash and colours (bytes, 8 by 8 RGB)."""
    (hash_a, colours_a), (hash_b, colours_b) = a, b
    if (hash_a ^ hash_b).bit_count() > RADIUS:
        return False
    one, other = (np.frombuffer(c, np.uint8).reshape(8, 8, 3) for c in (colours_a, colours_b))
    same = np.abs(one.astype(int) - other).max() <= TOLERANCE
    return bool(same or explained(one.astype(float), other.astype(float)))


def explained(a, b):
    """Whether one has the colours of the other in another brightness, contrast or saturation, and
    moved by less than a cell."""
    (a_luma, *a_chroma), (b_luma, *b_chroma) = planes(a), planes(b)
    if abs(a_luma.mean() - b_luma.mean()) > 48:
        return False
    pairs = [(a_luma - a_luma.mean(), b_luma - b_luma.mean(), 0.6)]
    pairs += [(x, y, 0.5) for x, y in zip(a_chroma, b_chroma, strict=True)]
    return all(around(*with_one_contrast(*pair)) for pair in pairs)


def planes(colours):
    red, green, blue = np.moveaxis(colours, 2, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) // 2**16
    return luma, (blue - luma) / 1.772, (red - luma) / 1.402


def with_one_contrast(x, y, least):
    """The one with more contrast loses some, by least squares."""
    if (x * x).sum() < (y * y).sum():
        x, y = y, x
    gain = np.clip((x * y).sum() / (x * x).sum(), least, 1) if x.any() else 1
    return gain * x, y


def around(x, y):
    """Whether each cell of either lies in the range of the 3 by 3 cells around it in the other."""
    return all(
        (minimum_filter(other, 3) - TOLERANCE <= one).all()
        and (one <= maximum_filter(other, 3) + TOLERANCE).all()
        for one, other in ((x, y), (y, x))
    )
