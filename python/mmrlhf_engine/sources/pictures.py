"""The pictures that messages name: found below the root, their headers read, made smaller.

An image is one picture; of an animation it is the first frame. A video is some of its frames,
evenly spread: files of a folder, names in a list, frames of an animation (GIF, WebP, PNG), or, with
PyAV, those of a video file. No image is decoded here, but for shrinking it and for frames.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from mmrlhf_engine._core import inspect_located_media
from mmrlhf_engine.errors import MissingExtraError
from mmrlhf_engine.sources.foreign import NOT_PACKED, ForeignError, reencode
from mmrlhf_engine.sources.places import MediaPlaces, inspect_names
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media
from mmrlhf_engine.sources.video import (
    VideoError,
    as_png,
    decode_frames,
    evenly_spaced,
    frame_files,
)

__all__ = ["FrameSettings", "Located", "Picture", "find_pictures", "shrink"]

Located = tuple[Path, Media]
"""A medium and the root it must lie below."""

_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Picture:
    """One image or frame: its place or content, and its size in pixels as stored."""

    path: str | None
    content: bytes | None
    width: int = 0
    height: int = 0
    seconds: float | None = None
    """Time of a frame in its video; None for an image."""
    frames: int = 1
    """Frames of the file, of which an image shows the first."""

    def read(self) -> bytes:
        """Its bytes."""
        return self.content if self.content is not None else Path(str(self.path)).read_bytes()


@dataclass(frozen=True)
class FrameSettings:
    """How media become pictures."""

    frames: int
    """At most so many of a video."""
    frames_per_second: float
    """Of videos that are folders or lists of frames."""
    max_pixels: int
    threads: int
    equal_sizes: bool = True
    """Whether the frames of a video must have one size, as models that take videos need it."""


def find_pictures(
    wanted: Iterable[Located], settings: FrameSettings
) -> dict[Located, list[Picture] | BadRecordError]:
    """The pictures of each medium, with their sizes, or what is wrong with it.

    Raises:
        MissingExtraError: there is a video file, and PyAV is not installed.
    """
    found: dict[Located, list[Picture] | BadRecordError] = {}
    for root, media in wanted:
        if (root, media) not in found:
            try:
                found[root, media] = _named_pictures(root, media, settings)
            except BadRecordError as error:
                found[root, media] = error
    named = {key: pictures for key, pictures in found.items() if isinstance(pictures, list)}
    sized = _inspect(named, settings)
    for key, pictures in named.items():
        outcomes = [sized[key[0], picture] for picture in pictures]
        bad = next((item for item in outcomes if isinstance(item, BadRecordError)), None)
        good = [item for item in outcomes if isinstance(item, Picture)]
        if bad is None and key[1].kind == "video" and settings.equal_sizes:
            bad = _unequal(good)
        found[key] = good if bad is None else bad
    return found


def _named_pictures(root: Path, media: Media, settings: FrameSettings) -> list[Picture]:
    """The pictures of a medium, their sizes still unknown; paths are as the record names them."""
    if media.kind == "image":
        return [Picture(media.names[0] if media.names else None, media.content)]
    names = list(media.names)
    if len(names) == 1:
        place = _below(root, names[0])
        if place.is_file():
            return _frames_of_file(root, place, names[0], settings)
        try:
            files = frame_files(place)
        except OSError as error:
            raise BadRecordError("unreadable_media", f"{names[0]}: {error}") from None
        names = [f"{names[0].rstrip('/')}/{file.name}" for file in files]
        if not names:
            raise BadRecordError("missing_media", f"{media.names[0]} holds no frame")
    if not names:
        content = media.content or b""
        if _kind_of_content(content, settings) == "image":
            return _animation_frames(io.BytesIO(content), "a video", settings)
        return _video_frames(io.BytesIO(content), "a video", settings)
    return [
        Picture(names[number], None, seconds=number / settings.frames_per_second)
        for number in evenly_spaced(len(names), settings.frames)
    ]


def _unequal(frames: list[Picture]) -> BadRecordError | None:
    sizes = sorted({(frame.width, frame.height) for frame in frames})
    if len(sizes) < 2:
        return None
    shown = ", ".join(f"{width} x {height}" for width, height in sizes[:3])
    return BadRecordError("frame_sizes", f"the frames of a video differ in size: {shown}")


def _frames_of_file(root: Path, place: Path, name: str, settings: FrameSettings) -> list[Picture]:
    """A video of one file: an animation, or what PyAV makes of it."""
    limits = {"max_pixels": settings.max_pixels, "threads": 1}
    (row,) = pa.array(inspect_names(_places(root), [name], **limits)).to_pylist()
    if row["kind"] == "image" and row["frames"] == 1:
        return [Picture(name, None, seconds=0.0)]
    if row["kind"] == "image":
        return _animation_frames(str(place), name, settings)
    if row["kind"] != "video":
        raise BadRecordError(row["reason"] or "unreadable_media", row["detail"] or name)
    return _video_frames(str(place), name, settings)


def _kind_of_content(content: bytes, settings: FrameSettings) -> str | None:
    nothing, no_path = pa.nulls(1, pa.uint64()), pa.nulls(1, pa.large_string())
    inline = pa.array([content], pa.large_binary())
    limits = {"max_pixels": settings.max_pixels, "threads": 1}
    found = inspect_located_media(no_path, nothing, nothing, inline, **limits)
    kind: str | None = pa.array(found).to_pylist()[0]["kind"]
    return kind


def _animation_frames(source: str | BinaryIO, name: str, settings: FrameSettings) -> list[Picture]:
    """Frames of an animated picture, as PNG, with the times at which they appear."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", extra="pack", needed_for="frames of a GIF") from None
    pictures: list[Picture] = []
    try:
        with Image.open(source) as image:
            total = getattr(image, "n_frames", 1)
            wanted, time = set(evenly_spaced(total, settings.frames)), 0.0
            for number in range(total):
                image.seek(number)
                if number in wanted:
                    mode = "RGBA" if image.has_transparency_data else "RGB"
                    content = io.BytesIO()
                    image.convert(mode).save(content, "PNG", compress_level=1)
                    pictures.append(Picture(None, content.getvalue(), seconds=time))
                time += image.info.get("duration", 0) / 1000
    except (OSError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadRecordError("unreadable_media", f"{name}: {error}") from None
    return pictures


def _places(root: Path) -> MediaPlaces:
    return MediaPlaces.of([root], [root])


def _below(root: Path, name: str) -> Path:
    """The place a name means, if it may be read after every link is followed."""
    if name.startswith(("http://", "https://")):
        raise BadRecordError("missing_media", f"{name} is an address: download it first")
    try:
        place = (root / name).resolve()
        there = place.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise BadRecordError("missing_media", f"{name!r}: {error}") from None
    if not any(place.is_relative_to(folder) for folder in _places(root).within):
        raise BadRecordError("outside_root", f"{name} leaves {root}")
    if not there:
        raise BadRecordError("missing_media", f"{name} is not there")
    return place


def _video_frames(source: str | BinaryIO, name: str, settings: FrameSettings) -> list[Picture]:
    """Frames of a video file, as PNG, with their times."""
    choose = partial(evenly_spaced, count=settings.frames)
    try:
        pictures = [
            Picture(None, as_png(frame), seconds=frame.time)
            for frame in decode_frames(source, name, choose)
        ]
    except VideoError as error:
        raise BadRecordError("unreadable_media", str(error)) from None
    if not pictures:
        raise BadRecordError("unreadable_media", f"{name}: no frame can be decoded")
    return pictures


def _inspect(
    named: dict[Located, list[Picture]], settings: FrameSettings
) -> dict[tuple[Path, Picture], Picture | BadRecordError]:
    """The outcome of every picture, a root at a time; those with content by themselves."""
    by_root: dict[Path, dict[Picture, None]] = {}
    inline: dict[tuple[Path, Picture], None] = {}
    for (root, _), pictures in named.items():
        for picture in pictures:
            if picture.content is None:
                by_root.setdefault(root, {})[picture] = None
            else:
                inline[root, picture] = None
    limits = {"max_pixels": settings.max_pixels, "threads": settings.threads}
    outcomes: dict[tuple[Path, Picture], Picture | BadRecordError] = {}
    for root, pictures_here in by_root.items():
        names = [str(picture.path) for picture in pictures_here]
        rows = pa.array(inspect_names(_places(root), names, **limits)).to_pylist()
        for picture, row in zip(pictures_here, rows, strict=True):
            outcomes[root, picture] = _outcome(picture, row)
    if inline:
        nothing = pa.nulls(len(inline), pa.uint64())
        contents = pa.array([picture.content for _, picture in inline], pa.large_binary())
        paths = pa.nulls(len(inline), pa.large_string())
        found = inspect_located_media(paths, nothing, nothing, contents, **limits)
        for key, row in zip(inline, pa.array(found).to_pylist(), strict=True):
            outcomes[key] = _outcome(key[1], row)
    return outcomes


def _outcome(picture: Picture, row: dict[str, Any]) -> Picture | BadRecordError:
    if row["reason"] is not None:
        return BadRecordError(row["reason"], row["detail"] or "")
    if row["kind"] != "image":
        return BadRecordError("unreadable_media", f"{picture.path}: a {row['kind']}, not an image")
    if row["format"] in NOT_PACKED:
        return _converted(picture, row)
    return replace(
        picture,
        path=row["path"],
        width=row["width"],
        height=row["height"],
        frames=row["frames"],
    )


def _converted(picture: Picture, row: dict[str, Any]) -> Picture | BadRecordError:
    """A picture of a format that shards do not hold, as PNG."""
    name = picture.path or f"a picture of the format {row['format']}"
    try:
        content = replace(picture, path=row["path"] or picture.path).read()
        content = reencode(content, row["format"], small=True)
    except (ForeignError, OSError) as error:
        return BadRecordError("unreadable_media", f"{name}: {error}")
    # PNG begins with eight bytes of its name, then the length, type and content of its header.
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    return replace(picture, path=None, content=content, width=width, height=height)


def shrink(picture: Picture, width: int, height: int) -> Picture:
    """The picture resampled (Lanczos) to a size in pixels; JPEG stays JPEG, others become PNG.

    Raises:
        BadRecordError: its pixels cannot be decoded.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", extra="pack", needed_for="shrinking images") from None
    try:
        with Image.open(io.BytesIO(picture.read())) as image:
            jpeg = image.format == "JPEG"
            mode = "RGBA" if image.has_transparency_data and not jpeg else "RGB"
            small = image.convert(mode).resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadRecordError("unreadable_media", f"cannot be shrunk: {error}") from None
    content = io.BytesIO()
    small.save(content, "JPEG" if jpeg else "PNG", **({"quality": _JPEG_QUALITY} if jpeg else {}))
    return replace(picture, path=None, content=content.getvalue(), width=width, height=height)
