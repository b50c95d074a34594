"""WebDataset tar: members of one base name are one record.

``000017.jpg``, ``000017.json`` and ``000017.txt`` belong together: the record is the JSON, the text
is its prompt where it has none, the pictures are its media. Pictures stay in the tar and are known
by their byte range.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from mmrlhf_engine.curate.sources import RECORDS_PER_BATCH, RawBatch, Source, cells_frame
from mmrlhf_engine.errors import InputError

__all__ = ["MEDIA_SUFFIXES", "read", "with_sidecars"]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
VIDEO_SUFFIXES = frozenset({"mp4", "webm", "mov", "avi", "mkv"})
MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_TEXT_SUFFIXES = ("txt", "caption")

Group = tuple[str, list[tuple[str, tarfile.TarInfo]]]


def read(source: Source) -> Iterator[RawBatch]:
    """Groups of members as records, in the order of the tar.

    A tar that ends too early gives what it holds whole, and one broken record for the rest.

    Raises:
        InputError: the tar is compressed, or none.
    """
    with _open(source) as tar:
        groups = _groups(tar)
        while batch := list(itertools.islice(groups, RECORDS_PER_BATCH)):
            yield _to_records(source, tar, batch)


def _open(source: Source) -> tarfile.TarFile:
    try:
        return tarfile.open(source.path, "r:")
    except tarfile.TarError as error:
        raise InputError(
            f"{source.path}: cannot be read as a tar: {error}",
            hint="a compressed tar must be decompressed first",
        ) from None


def _groups(tar: tarfile.TarFile) -> Iterator[Group]:
    """Neighbouring members that share folder and base name up to its first dot."""
    key: str | None = None
    members: list[tuple[str, tarfile.TarInfo]] = []
    for member in _members(tar):
        place = PurePosixPath(member.name)
        stem, _, suffix = place.name.partition(".")
        found = str(place.parent / stem)
        if found != key and members and key is not None:
            yield key, members
            members = []
        key = found
        members.append((suffix.lower(), member))
    if members and key is not None:
        yield key, members


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of the tar; one of size -1 stands for a tar that is cut off."""
    while True:
        try:
            member = tar.next()
        except tarfile.TarError as error:
            end = tarfile.TarInfo(f"(end of the tar: {error})")
            end.size = -1
            yield end
            return
        if member is None:
            return
        if member.isfile():
            yield member


def _to_records(source: Source, tar: tarfile.TarFile, groups: list[Group]) -> RawBatch:
    records: list[bytes] = []
    cells: list[dict[str, object]] = []
    for key, members in groups:
        texts: dict[str, bytes] = {}
        media = []
        for suffix, member in members:
            if suffix in MEDIA_SUFFIXES:
                media.append((suffix, len(cells)))
                cells.append(
                    {
                        "path": str(source.path),
                        "offset": member.offset_data,
                        "length": member.size,
                    }
                )
            elif suffix == "json" or suffix in _TEXT_SUFFIXES or member.size < 0:
                texts[suffix] = _content(tar, member)
        found = {
            "image": [{"cell": cell} for suffix, cell in media if suffix in IMAGE_SUFFIXES],
            "video": [{"cell": cell} for suffix, cell in media if suffix in VIDEO_SUFFIXES],
        }
        records.append(with_sidecars(key, found, texts))
    return RawBatch(
        positions=[f"{source.path.name}:{key}" for key, _ in groups],
        keys=[key for key, _ in groups],
        records=pa.array(records, pa.large_binary()),
        cells=cells_frame(cells),
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member; where the tar is cut off, something that is no record."""
    if member.size < 0:
        return b"\x00"
    try:
        file = tar.extractfile(member)
        return file.read() if file is not None else b"\x00"
    except tarfile.TarError:
        return b"\x00"


def with_sidecars(key: str, media: dict[str, list[Any]], texts: dict[str, bytes]) -> bytes:
    """One record of media and the texts beside them, by suffix (``json``, ``txt``).

    Media that lie there win over names inside the JSON; the text is the prompt where the JSON has
    no conversation of its own.
    """
    record: dict[str, Any] = {"id": key}
    for suffix, content in texts.items():
        if suffix == "json":
            try:
                sidecar = json.loads(content)
            except ValueError:
                return content  # the core says what is wrong with it
            if not isinstance(sidecar, dict):
                return content
            record |= sidecar
        elif suffix not in _TEXT_SUFFIXES:
            return content
    record |= {name: places for name, places in media.items() if places}
    if not {"conversations", "messages", "prompt", "question"} & record.keys():
        for suffix in _TEXT_SUFFIXES:
            if suffix in texts:
                record["prompt"] = texts[suffix].decode("utf-8", errors="replace")
    return json.dumps(record).encode()
