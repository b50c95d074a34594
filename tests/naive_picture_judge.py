"""Whether two pictures are copies, by the definitions in ``mmrlhf_core::judge::picture``.

Double precision, whole planes, nothing reused: slow, and meant to be read. Pictures are decoded and
resized by Pillow, whose bytes the engine reproduces. Sources: least squares with Cauchy weights
(Holland and Welsch 1977); alignment by Gauss and Newton's method (Lucas and Kanade 1981).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, uniform_filter

LONG_SIDE = 1024
LUMA_LIMIT, THUMBNAIL_LUMA_LIMIT = 5.5, 2.5


@dataclass
class Verdict:
    """``luma`` is none where the shapes differ, ``chroma`` (limit 1) where both are grey."""

    copy: bool
    luma: float | None
    chroma: float | None
    limit: float


def judge(a, b):
    """The verdict on two still pictures of Pillow."""
    a, b = ImageOps.exif_transpose(a), ImageOps.exif_transpose(b)
    if not same_shape(a.size, b.size):
        return Verdict(False, None, None, LUMA_LIMIT)
    ratio = max(max(a.size), max(b.size)) / min(max(a.size), max(b.size))
    limit = np.interp(ratio, [1, 3], [LUMA_LIMIT, THUMBNAIL_LUMA_LIMIT])
    transparent = [image for image in (a, b) if is_transparent(image)]
    backgrounds = ["white", "black"] if transparent else ["white"]
    if len(transparent) == 1:  # only where it does not vanish
        backgrounds = [colour for colour in backgrounds if shows(transparent[0], colour)] or [
            "white"
        ]
    found = [judge_opaque(over(a, colour), over(b, colour), limit) for colour in backgrounds]

    def severity(verdict):
        return max(verdict.luma / limit, verdict.chroma or 0)

    return (max if len(transparent) == 2 else min)(found, key=severity)


def shows(image, background):
    return np.asarray(over(image, background).convert("L"), np.float64).std() >= 8


def same_shape(a, b):
    lowest = (a[0] - 0.5) * (b[1] - 0.5) / ((a[1] + 0.5) * (b[0] + 0.5))
    highest = (a[0] + 0.5) * (b[1] + 0.5) / ((a[1] - 0.5) * (b[0] - 0.5))
    return lowest <= 1.1 and highest >= 1 / 1.1


def is_transparent(image):
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def over(image, background):
    if not is_transparent(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    flat = Image.new("RGB", image.size, background)
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def judge_opaque(a, b, limit):
    if b.width * b.height > a.width * a.height:
        a, b = b, a
    size = limited(b.size)  # that of the smaller one
    (a, a_chroma), (b, b_chroma) = planes(a, size), planes(b, size)
    luma, alignment = explanation(b, a, limit)
    chroma = chroma_difference(a_chroma, b_chroma, alignment)
    return Verdict(luma < limit and (chroma or 0) < 1, luma, chroma, limit)


def limited(size):
    scale = min(1, LONG_SIDE / max(size))
    return tuple(max(8, math.floor(side * scale + 0.5)) for side in size)


def planes(image, size):
    """Luma, and both chromas at a quarter of the sides; large pictures are made smaller at once."""
    red, _, blue = np.moveaxis(np.asarray(image, np.float64), 2, 0)
    luma = image.convert("L")
    y = np.asarray(luma, np.float64)
    chromas = [
        Image.fromarray(np.clip(np.round(128 + (channel - y) / divisor), 0, 255).astype(np.uint8))
        for channel, divisor in ((blue, 1.772), (red, 1.402))
    ]
    for at in (limited(image.size), size):
        luma = luma.resize(at, Image.Resampling.LANCZOS)
        quarter = tuple(-(-side // 4) for side in at)
        chromas = [chroma.resize(quarter, Image.Resampling.BILINEAR) for chroma in chromas]
    return np.asarray(luma, np.float64), [np.asarray(c, np.float64) for c in chromas]


# -- prediction and what it leaves


def explanation(small, large, limit):
    """The best of both directions, as they are or aligned; the first below the limit is enough."""
    plain = sharper_first(small, large)
    luma, alignment = worst_window(*plain), None
    if luma < limit:
        return luma, alignment
    ways = [(plain[::-1], None)]
    aligned = align(large, small)
    if aligned is not None and not_trivial(aligned, small.shape) and is_crop(aligned, small.shape):
        warped, rows, columns = warp(large, aligned, margin=2)
        if min(warped.shape) >= 16:
            parts = sharper_first(small[rows, columns], np.floor(warped + 0.5))
            ways = [(parts, aligned), *ways, (parts[::-1], aligned)]
    for pair, way in ways:
        found = worst_window(*pair)
        if found < luma:
            luma, alignment = found, way
        if found < limit:
            break
    return luma, alignment


def sharper_first(a, b):
    return (b, a) if sharpness(b) > sharpness(a) else (a, b)


def sharpness(values):
    return np.abs(np.diff(values, axis=1)).sum()


def worst_window(source, target):
    """The largest local error of ``target`` predicted from ``source``."""
    error = (target - predicted(source, target)) ** 2
    worst = 0.0
    height, width = target.shape
    squares, first, second = (integral(x) for x in (error, target, target**2))
    for top in starts(height):
        for left in starts(width):
            mean = block(squares, top, left, 5, 5) / 25
            y, x = around(top, height), around(left, width)
            count = len(y) * len(x)
            place = (y[0], x[0], len(y), len(x))
            variance = block(second, *place) / count - (block(first, *place) / count) ** 2
            worst = max(worst, mean / (36 + 0.01 * max(variance, 0)))
    return math.sqrt(worst)


def integral(values):
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(0).cumsum(1)
    return sums


def block(sums, top, left, height, width):
    bottom, right = top + height, left + width
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]


def starts(side):
    return [*range(0, side - 5, 3), side - 5]


def around(start, side):
    length = min(10, side)
    first = min(max(start - 2, 0), side - length)
    return range(first, first + length)


def predicted(source, target):
    def blurred(deviation):
        return gaussian_filter(source, deviation, mode="nearest")

    def difference(values, axis):
        padded = np.pad(values, [(1, 1) if at == axis else (0, 0) for at in (0, 1)], mode="edge")
        after = np.take(padded, range(2, padded.shape[axis]), axis)
        return (after - np.take(padded, range(values.shape[axis]), axis)) / 2

    g1, g2, g3 = blurred(0.8), blurred(1.6), blurred(3.2)
    terms = [source, g1, g2, g3]
    terms += [difference(values, axis) for values in (g1, g2) for axis in (1, 0)]
    terms.append(np.ones_like(source))
    step = 1 if source.size <= 60_000 else 2
    x = np.stack([term[::step, ::step].ravel() for term in terms])
    t = target[::step, ::step].ravel()
    weights = np.ones_like(t)
    ridge = 0.02 * len(t)
    for _ in range(3):
        matrix, right = (x * weights) @ x.T, (x * weights) @ t
        matrix[range(8), range(8)] += ridge
        right[0] += ridge
        coefficients = np.linalg.solve(matrix, right)
        residual = t - coefficients @ x
        weights = cauchy(residual, 1.5)
    gain, moved = coefficients[:4].sum(), (coefficients @ x).mean() - x[0].mean()
    if not 0.6 <= gain <= 1.7 or abs(moved) > 48:
        coefficients = np.zeros(9)
        coefficients[0] = 1
        coefficients[8] = np.clip(np.median(t - x[0]), -32, 32)
    return np.clip(sum(c * term for c, term in zip(coefficients, terms, strict=True)), 0, 255)


def cauchy(residual, least):
    scale = 3 * (1.5 * np.median(np.abs(residual)) + least)
    return 1 / (1 + (residual / scale) ** 2)


# -- alignment: scale across, scale down, shift across, shift down; shifts in sides


def positions(side, scale, shift):
    centre = (side - 1) / 2
    at = centre + (np.arange(side) - centre) * scale + shift * side
    inside = (at >= 0) & (at <= side - 1)
    at = np.clip(at, 0, side - 1)
    first = np.minimum(at.astype(int), side - 2)
    return first, at - first, inside


def resampled(values, alignment):
    height, width = values.shape
    y, near_y, inside_y = positions(height, alignment[1], alignment[3])
    x, near_x, inside_x = positions(width, alignment[0], alignment[2])
    values = values[y] + near_y[:, None] * (values[y + 1] - values[y])
    values = values[:, x] + near_x * (values[:, x + 1] - values[:, x])
    return values, inside_y, inside_x


def warp(values, alignment, margin):
    values, *inside = resampled(values, alignment)
    parts = []
    for mask in inside:
        mask[:margin] = mask[len(mask) - margin :] = False
        found = np.flatnonzero(mask)
        parts.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, 0))
    return values[parts[0], parts[1]], *parts


def align(a, b):
    p = np.array([1.0, 1.0, 0.0, 0.0])
    levels = []
    for level in (384, 192, 96, 48):
        a, b = reduced(a, level), reduced(b, level)
        if not levels or a.shape != levels[-1][0].shape:
            levels.append((a, b))
    for pair in reversed(levels):
        small = [gaussian_filter(values, 1.0, mode="nearest") for values in pair]
        for _ in range(5):
            step = newton_step(*small, p)
            p = p + step[:4]
            if (np.abs(p[:2] - 1) >= 0.08).any() or (np.abs(p[2:]) >= 0.06).any():
                return None
            if np.abs(step[:4]).max() * max(small[0].shape) < 0.05:
                break
    return p


def reduced(values, level):
    scale = min(1, level / max(values.shape))
    height, width = (max(8, math.floor(side * scale + 0.5)) for side in values.shape)
    image = Image.fromarray(values.astype(np.uint8))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


def newton_step(a, b, p):
    height, width = a.shape
    warped, inside_y, inside_x = resampled(a, p)
    inside_y[[0, -1]] = inside_x[[0, -1]] = False
    mask = np.outer(inside_y, inside_x)
    down, across = np.gradient(warped)
    x = (np.arange(width) - (width - 1) / 2) / width
    y = ((np.arange(height) - (height - 1) / 2) / height)[:, None]
    across, down = across * width, down * height
    terms = [across * x, down * y, across, down, warped, np.ones_like(warped)]
    j = np.stack([term[mask] for term in terms])
    t = (b - warped)[mask]
    weights = cauchy(t - np.median(t), 2)
    matrix = (j * weights) @ j.T
    extra = 1e-3 * np.trace(matrix[:4, :4]) / 4 + 1e-3
    matrix[range(6), range(6)] += [extra] * 4 + [1e-6] * 2
    return np.linalg.solve(matrix, (j * weights) @ t)


def not_trivial(p, shape):
    sides = np.array(shape[::-1])
    return bool((np.abs(p[:2] - 1) * sides / 2 + np.abs(p[2:]) * sides >= 0.35).any())


def is_crop(p, shape):
    sides, scale = np.array(shape[::-1]), p[:2] - 1
    opposed = scale[0] * scale[1] < 0 and np.abs(scale).min() > 0.004
    inside = (np.abs(p[2:]) * sides <= np.abs(scale) * sides / 2 + 1.5).all()
    return bool(np.abs(scale).max() <= 0.055 and not opposed and inside)


# -- colour


def chroma_difference(a, b, alignment):
    """None where both are grey."""
    pairs = list(zip(a, b, strict=True))
    if alignment is not None:
        warped = [(*warp(x, alignment, margin=1), y) for x, y in pairs]
        pairs = [(np.floor(x + 0.5), y[rows, columns]) for x, rows, columns, y in warped]
    saturation = [max(np.abs(pair[side] - 128).max() for pair in pairs) for side in (0, 1)]
    grey = [value < 4 for value in saturation]
    if all(grey):
        return None
    if any(grey):
        return max(deviation(pair[grey.index(False)]) for pair in pairs) / 16
    residuals, targets = zip(*(residual(*pair) for pair in pairs), strict=True)
    return max(displaced(residuals), recoloured(residuals, targets))


def median(values):
    return np.sort(values, axis=None)[(values.size - 1) // 2]


def deviation(values):
    return np.abs(values - 128 - np.clip(median(values) - 128, -12, 12)).max()


def residual(a, b):
    """What is left of ``b`` without tint and gain, and ``b`` around its median."""
    tint = np.clip(median(b) - median(a), -12, 12)
    a, b = a - median(a), b - median(a) - tint
    saturation_is_known = (np.abs(a) >= 4).mean() >= 1 / 8
    gain = np.clip((a * b).sum() / (a * a).sum(), 0.5, 1.6) if saturation_is_known else 1.0
    return b - gain * a, b


def displaced(residuals):
    """The mean of 3 by 3 values that is displaced most, relative to the noise of the pair."""
    largest = max(np.abs(uniform_filter(r, 3, mode="nearest")).max() for r in residuals)
    noise = max(np.sort(np.abs(r), axis=None)[9 * (r.size - 1) // 10] for r in residuals)
    return largest / min(10 + 6 * noise, 26)


def recoloured(residuals, targets):
    """From 1 on if residuals are large on the whole, and against all that is coloured."""
    left, colour = (sum((x**2).sum() for x in planes) for planes in (residuals, targets))
    unexplained = left / max(colour, 1) / 0.25
    return min(math.sqrt(left / residuals[0].size) / 3, math.sqrt(unexplained))
