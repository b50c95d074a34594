"""Pairs of pictures with their truth: copies that must go, and look-alikes that must stay.

Photographs and icons come from packages, all else is drawn (``drawings.py``). The halves ``tune`` and
``fresh`` have other photographs, fonts, words and seeds. What is missing is left out: only foolbox,
scikit-learn, scikit-image and the fonts are needed; ``material`` is the folder under which the Debian
packages mate-backgrounds, tuxpaint-stamps-default and oxygen-icon-theme are installed.
"""
# A kind is a line.
# ruff: noqa: E501

import io
import math
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawings import DRAWINGS
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from sheet import FILLS, FONTS, Picture, another_digit, font
from text_pairs import CITIES, THINGS, TOPICS, Draw

LANCZOS = Image.Resampling.LANCZOS


class PicturePair(NamedTuple):
    """Two files, and what they are to each other.

    ``truth`` is ``copy``, ``look-alike``, or ``by design`` where the engine's documentation decides.
    Files of other ``bases`` are no copies of each other.
    """

    left: bytes
    right: bytes
    kind: str
    truth: str
    source: str
    bases: tuple[str, str]


def stored(image: Picture, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(image: Picture) -> bytes:
    return stored(image, "PNG", compress_level=1)


def reopened(content: bytes) -> Picture:
    return Image.open(io.BytesIO(content)).convert("RGB")


# --- copies


def scaled(image: Picture, scale: float, how: Image.Resampling = LANCZOS) -> Picture:
    return image.resize((round(image.width * scale), round(image.height * scale)), how)


def cropped(image: Picture, share: float, left: float = 0.5, top: float = 0.5) -> Picture:
    """Without this share of either side at most, so much of which lies left of and above the rest."""
    (x, y), (width, height) = (image.width * share, image.height * share), image.size
    box = (x * left, y * top, width - x * (1 - left), height - y * (1 - top))
    return image.crop((*map(math.floor, box[:2]), *map(math.ceil, box[2:])))


def turned(image: Picture) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def curve(image: Picture, of: Callable[[float], float]) -> Picture:
    return image.point([round(255 * min(max(of(v / 255), 0), 1)) for v in range(256)] * 3)


def tinted(image: Picture) -> Picture:
    red, green, blue = image.split()
    return Image.merge("RGB", (red, green, blue.point(lambda v: v * 15 // 16)))


COPIES: dict[str, Callable[[Picture], bytes]] = {
    "JPEG 90": lambda i: stored(i, "JPEG", quality=90),
    "JPEG 75": lambda i: stored(i, "JPEG", quality=75),
    "JPEG 50": lambda i: stored(i, "JPEG", quality=50),
    "JPEG 30": lambda i: stored(i, "JPEG", quality=30),
    "JPEG 75 twice": lambda i: stored(scaled(reopened(stored(i, "JPEG", quality=75)), 0.9), "JPEG", quality=75),
    "progressive, 4:4:4": lambda i: stored(i, "JPEG", quality=80, progressive=True, subsampling=0),
    "WebP 80": lambda i: stored(i, "WEBP", quality=80),
    "WebP 50": lambda i: stored(i, "WEBP", quality=50),
    "BMP": lambda i: stored(i, "BMP"),
    "GIF": lambda i: stored(i.quantize(256), "GIF"),
    "palette of 128": lambda i: stored(i.quantize(128), "PNG"),
    "orientation tag": turned,
    "size 0.75": lambda i: png(scaled(i, 0.75)),
    "size 0.5": lambda i: png(scaled(i, 0.5)),
    "size 0.4, JPEG 80": lambda i: stored(scaled(i, 0.4), "JPEG", quality=80),
    "size 1.5": lambda i: png(scaled(i, 1.5, Image.Resampling.BICUBIC)),
    "size 0.6, bilinear": lambda i: png(scaled(i, 0.6, Image.Resampling.BILINEAR)),
    "10 % brighter": lambda i: png(ImageEnhance.Brightness(i).enhance(1.1)),
    "10 % darker": lambda i: png(ImageEnhance.Brightness(i).enhance(0.9)),
    "more contrast": lambda i: png(ImageEnhance.Contrast(i).enhance(1.15)),
    "less contrast": lambda i: png(ImageEnhance.Contrast(i).enhance(0.85)),
    "gamma 0.9": lambda i: png(curve(i, lambda v: v**0.9)),
    "saturation 0.8": lambda i: png(ImageEnhance.Color(i).enhance(0.8)),
    "tint": lambda i: png(tinted(i)),
    "sharpened": lambda i: png(ImageEnhance.Sharpness(i).enhance(1.8)),
    "blurred": lambda i: png(i.filter(ImageFilter.GaussianBlur(0.8))),
    "crop 1 %": lambda i: png(cropped(i, 0.01)),
    "crop 2 %": lambda i: png(cropped(i, 0.02)),
    "crop 3 %, one side": lambda i: png(cropped(i, 0.03, 0, 0)),
    "crop 5 %": lambda i: png(cropped(i, 0.05)),
    "brighter, half, JPEG 60": lambda i: stored(
        scaled(ImageEnhance.Brightness(i).enhance(1.07), 0.5), "JPEG", quality=60
    ),
}  # fmt: skip
BY_DESIGN: dict[str, Callable[[Picture], bytes]] = {
    "grey": lambda i: png(i.convert("L")),
    "thumbnail of 0.3": lambda i: png(scaled(i, 0.3)),
    "border of 2 %": lambda i: png(bordered(i)),
    "stretched by 5 %": lambda i: png(i.resize((i.width, round(i.height * 1.05)), LANCZOS)),
}
"""Copies to some, and to others not: the engine says different of the first three."""


def bordered(image: Picture) -> Picture:
    wide = round(0.02 * max(image.size))
    framed = Image.new("RGB", (image.width + 2 * wide, image.height + 2 * wide), "black")
    framed.paste(image, (wide, wide))
    return framed


# --- sources


def package(name: str, pattern: str) -> list[Path]:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob(pattern))


SCIKIT_IMAGE = "astronaut chelsea coffee rocket hubble_deep_field ihc motorcycle_left retina camera coins moon page"


def photographs(half: str, material: Path) -> list[Path]:
    """Files of one half; without Debian's, the fresh half has those of scikit-image alone."""
    if half == "tune":
        return package("foolbox", "data/imagenet_*.jpg") + package(
            "sklearn", "datasets/images/*.jpg"
        )
    known = set(SCIKIT_IMAGE.split())
    found = [path for path in package("skimage", "data/*.*") if path.stem in known]
    wallpapers = (material / "usr/share/backgrounds/mate").glob("[an]*/*.jpg")
    # One of them is there in three sizes, of which the name of two tells the pixels.
    return found + sorted(path for path in wallpapers if "_" not in path.stem)


@lru_cache(maxsize=64)
def opened(path: Path) -> Picture:
    image = Image.open(path)
    image.draft("RGB", (2600, 1700))
    image = image.convert("RGB")
    image.thumbnail((2000, 1400), LANCZOS)
    return image


class Photos:
    """Parts of photographs that overlap little; each is given once, as long as there are any."""

    def __init__(self, draw: Draw, half: str, material: Path) -> None:
        self._draw, self._files = draw, photographs(half, material)
        self._left: list[tuple[Path, float, int, int]] = []

    def next(self) -> tuple[str, Picture]:
        """The name of the photograph, and a part of it with a long side of 320 to 800 pixels."""
        while True:
            if not self._left:
                places = [(1.0, 0, 0)] + [
                    (s, x, y) for s in (0.75, 0.55) for x in range(3) for y in range(3)
                ]
                self._left = [(file, *place) for file in self._files for place in places]
                self._draw.random.shuffle(self._left)
            file, share, column, row = self._left.pop()
            whole = opened(file)
            width, height = round(whole.width * share), round(whole.height * share)
            x, y = (whole.width - width) * column // 2, (whole.height - height) * row // 2
            part = whole.crop((x, y, x + width, y + height))
            scale = min(1.0, self._draw.number(360, 800) / max(part.size))
            if min(part.size) * scale >= 224 and np.asarray(part.convert("L")).std() > 16:
                return f"{file.name} {share} {column} {row}", scaled(part, scale)


# --- look-alikes of photographs


def caption(draw: Draw, image: Picture, change: str) -> Picture:
    """A meme: two captions, one of which changes."""
    image = image.copy()
    pen, name = ImageDraw.Draw(image), draw.of(FONTS)
    (one, two), topic = draw.two(THINGS), draw.of(TOPICS)
    size = max(round(image.width / 16), 20)
    for text, y in (
        (f"WHEN THE {(two if change else one).upper()}", 8),
        (topic.upper(), image.height - 2 * size),
    ):
        pen.text(
            (image.width // 8, y),
            text,
            "white",
            font(name, size),
            stroke_width=2,
            stroke_fill="black",
        )
    return image


def stamped(draw: Draw, image: Picture, change: str) -> Picture:
    """The date in a corner, one digit of which changes."""
    image = image.copy()
    text = f"20{draw.number(10, 26)}-{draw.number(10, 12)}-{draw.number(10, 28)} {draw.number(10, 23)}:{draw.number(10, 59)}"
    wrong = another_digit(draw, text)
    spot = (image.width - 230, image.height - 34)
    shown, name = wrong if change else text, draw.of(FONTS)
    pen, orange = ImageDraw.Draw(image), (255, 160, 40)
    pen.text(spot, shown, orange, font(name, 20), stroke_width=1, stroke_fill="black")
    return image


def marked(draw: Draw, image: Picture, change: str) -> Picture:
    """With a watermark, half transparent."""
    text, name = draw.of(CITIES).upper(), draw.of(FONTS)
    if not change:
        return image
    layer = Image.new("RGBA", image.size)
    spot = (image.width // 4, image.height // 2)
    ImageDraw.Draw(layer).text(
        spot, text, (255, 255, 255, 130), font(name, max(image.width // 9, 30))
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def thing(draw: Draw, image: Picture, change: str) -> Picture:
    """A ball in front of the scene: moved, gone or of another colour."""
    image, size = image.copy(), draw.number(28, 60)
    x, y = (
        draw.number(size + 70, side - size - 70) if side > 2 * size + 145 else side // 2
        for side in image.size
    )
    turn, far, fills = (
        draw.random.random() * 2 * math.pi,
        draw.number(20, 60),
        draw.random.sample(list(draw.half(FILLS)), 2),
    )
    if change == "moved":
        x, y = round(x + far * math.cos(turn)), round(y + far * math.sin(turn))
    if change != "gone":
        pen = ImageDraw.Draw(image)
        pen.ellipse((x, y, x + size, y + size), fill=fills[change == "colour"])
        pen.arc((x + 6, y + 6, x + size - 6, y + size - 6), 180, 270, fill="white", width=3)
    return image


def patched(draw: Draw, image: Picture, change: str) -> Picture:
    """Something of the photograph is covered by a part of its surroundings, with soft edges."""
    size = draw.number(34, 54)
    x, y = (draw.number(size, side - 3 * size) for side in image.size)
    if not change:
        return image
    image = image.copy()
    other = image.crop((x + size, y + size // 2, x + 2 * size, y + size // 2 + size))
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((4, 4, size - 4, size - 4), fill=255)
    image.paste(other, (x, y), mask.filter(ImageFilter.GaussianBlur(2)))
    return image


def changed_wholly(_: Draw, image: Picture, change: str) -> Picture:
    return WHOLLY[change](image) if change else image


WHOLLY: dict[str, Callable[[Picture], Picture]] = {
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda i: i.transpose(Image.Transpose.ROTATE_180),
    "channels swapped": lambda i: Image.merge("RGB", i.split()[::-1]),
    "crop 15 %": lambda i: cropped(i, 0.15, 0.2, 0.7),
    "crop 8 %, one corner": lambda i: i.crop((i.width // 12, i.height // 12, i.width, i.height)),
    "rotated by 4 degrees": lambda i: cropped(i.rotate(4, Image.Resampling.BICUBIC), 0.14),
}
PHOTOGRAPHS: list[tuple[str, Callable[[Draw, Picture, str], Picture], tuple[str, ...]]] = [
    ("meme", caption, ("caption",)),
    ("frame", thing, ("moved", "gone", "colour")),
    ("photograph", stamped, ("digit of the date",)),
    ("photograph", marked, ("watermark",)),
    ("photograph", patched, ("a patch covered",)),
    ("photograph", changed_wholly, tuple(WHOLLY)),
]


DIFFERENT = ("watermark", "crop 15 %", "crop 8 %, one corner", "rotated by 4 degrees")
"""Copies to some; the engine says different."""


VISIBLE, VISIBLE_PATCH = (36, 20), (60, 300)
"""By how much, of 255, so many pixels must differ: otherwise the pair is left out. The surroundings
that cover something often look like it."""


def visibly(left: Picture, right: Picture, least: tuple[int, int] = VISIBLE) -> bool:
    """Whether a person can see the difference; see :data:`VISIBLE`."""
    if left.size != right.size:
        return True
    a, b = (np.asarray(image.convert("RGB"), np.int16) for image in (left, right))
    return int((np.abs(a - b).max(axis=2) > least[0]).sum()) >= least[1]


DEGRADED: list[Callable[[Picture], bytes]] = [
    png, png, lambda i: stored(i, "JPEG", quality=70), lambda i: png(scaled(i, 0.75)),
    lambda i: stored(scaled(i, 0.8), "JPEG", quality=60), lambda i: png(ImageEnhance.Brightness(i).enhance(1.06)),
]  # fmt: skip
"""What may have been done to the other picture of a pair of look-alikes as well."""


def drawn(seed: int, half: str, each: int) -> Iterator[PicturePair]:
    """Drawings with one change."""
    for name, (function, changes) in DRAWINGS.items():
        for change in changes:
            made, at = 0, 0
            while made < each:
                at += 1
                key = hash_of(seed, name, change, at)
                left, right = (function(Draw(key, half), c) for c in ("", change))
                if visibly(left, right):
                    made += 1
                    finish = Draw(key + 1, half).random.choice(DEGRADED)
                    bases = (f"{name} {change} {at}", f"{name} {change} {at} changed")
                    yield PicturePair(
                        png(left),
                        finish(right),
                        f"{name}: {change}",
                        "look-alike",
                        "drawing",
                        bases,
                    )


def hash_of(*parts: object) -> int:
    """A seed that is the same in every process."""
    return zlib.crc32(repr(parts).encode())


def of_photographs(photos: Photos, draw: Draw, half: str, each: int) -> Iterator[PicturePair]:
    """Photographs with one change."""
    for name, function, changes in PHOTOGRAPHS:
        for change in changes:
            for at in range(each):
                base, image = photos.next()
                key = draw.number(0, 2**40)
                left, right = (function(Draw(key, half), image, c) for c in ("", change))
                if visibly(left, right, VISIBLE_PATCH if function is patched else VISIBLE):
                    bases = (f"{base} {change} {at}", f"{base} {change} {at} changed")
                    finish, kind = draw.random.choice(DEGRADED), f"{name}: {change}"
                    truth = "by design" if change in DIFFERENT else "look-alike"
                    yield PicturePair(png(left), finish(right), kind, truth, "photograph", bases)


def icons(draw: Draw, half: str, each: int, material: Path) -> Iterator[PicturePair]:
    """Two icons of one series, of 256 pixels; the halves share no series."""
    series: dict[str, list[Path]] = {}
    for path in sorted((material / "usr/share/icons/oxygen/base/256x256").rglob("*.png")):
        if not path.is_symlink():
            series.setdefault(path.stem.split("-")[0], []).append(path)
    known = [
        pair for name in sorted(series)[half == "fresh" :: 2] for pair in pairwise(series[name])
    ]
    draw.random.shuffle(known)
    for left, right in known[:each]:
        images = [Image.open(path).convert("RGBA") for path in (left, right)]
        if visibly(*images):
            bases = (f"icon {left.stem}", f"icon {right.stem}")
            yield PicturePair(
                *map(png, images), "icon: one of its series", "look-alike", "icon", bases
            )


def cut_outs(draw: Draw, half: str, each: int, material: Path) -> Iterator[PicturePair]:
    """Pictures with transparent pixels, stored again, smaller, or over white."""
    files = sorted((material / "usr/share/tuxpaint/stamps").rglob("*.png"))
    large = [path for path in files if min(Image.open(path).size) >= 256]
    half_of = large[half == "fresh" :: 2]
    for kind in ("smaller", "over white", "WebP") if half_of else ():
        for path in draw.random.sample(half_of, min(each, len(half_of))):
            image = Image.open(path).convert("RGBA")
            image.thumbnail((800, 800), LANCZOS)
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A"))
            content = {
                "smaller": lambda i=image: png(scaled(i, 0.6)),
                "over white": lambda f=flat: png(f),
                "WebP": lambda i=image: stored(i, "WEBP", quality=75),
            }[kind]()
            name = f"stamp {path.stem}"
            yield PicturePair(
                png(image), content, f"cut-out: {kind}", "copy", "stamp", (name, name)
            )


def copies(photos: Photos, draw: Draw, half: str, each: int) -> Iterator[PicturePair]:
    """Half of them of photographs, half of drawings."""
    known = list(DRAWINGS.items())
    for truth, edits in (("copy", COPIES), ("by design", BY_DESIGN)):
        for kind, edit in edits.items():
            for at in range(each):
                if at % 2 == 0 or kind == "grey":
                    name, image = photos.next()
                    source = "photograph"
                else:
                    name, (function, _) = draw.random.choice(known)
                    image, source = function(Draw(draw.number(0, 2**40), half), ""), "drawing"
                if kind == "grey" and np.asarray(image.convert("HSV"))[..., 1].mean() < 40:
                    continue
                base = f"{name} {kind} {at}"
                yield PicturePair(png(image), edit(image), kind, truth, source, (base, base))


def pairs(seed: int, half: str, each: int, material: Path) -> list[PicturePair]:
    """``each`` pairs of every kind; ``half`` is ``tune`` or ``fresh``."""
    draw = Draw(seed, half)
    photos = Photos(draw, half, material)
    made = [
        partial(drawn, seed, half, each),
        partial(of_photographs, photos, draw, half, each),
        partial(icons, draw, half, 2 * each, material),
        partial(cut_outs, draw, half, each, material),
        partial(copies, photos, draw, half, each),
    ]
    return [pair for make in made for pair in make()]
