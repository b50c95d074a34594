"""Families of queries that must not be parted, and the side of a split that each is on.

Two queries are of one family if they show an equal or a nearly equal picture, or, where they have
no picture, if their texts are nearly equal (as in dedup); and so on from query to query. A model
that was trained on one of them has seen a part of the other.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from mmrlhf_engine._core import hash_images, near_texts
from mmrlhf_engine.sources.pictures import FrameSettings, Located, Picture, find_pictures
from mmrlhf_engine.sources.preferences.record import BadRecordError

__all__ = [
    "RADIUS",
    "THRESHOLD",
    "Families",
    "hash_pictures",
    "is_held_out",
    "near_hashes",
    "unite_near_texts",
]

RADIUS = 4
"""Bits of the 64-bit pHash in which near pictures may differ, as in dedup."""
THRESHOLD = 0.8
"""Jaccard index of word shingles from which two texts are near, as in dedup."""

_MAX_PIXELS = 89_478_485
_MEDIA_AT_ONCE = 512
_FRAMES = 5
_INNER = slice(1, -1)
"""Of five frames of a video the inner three: many begin and end with a black one."""


class Families:
    """Unites numbers that belong together (union-find)."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._first: dict[object, int] = {}

    def add(self, names: Iterable[object]) -> int:
        """A new member, of one family with every other that has one of these names; its number."""
        number = len(self._parent)
        self._parent.append(number)
        for name in names:
            self.unite(number, self._first.setdefault(name, number))
        return number

    def unite_names(self, first: object, second: object) -> None:
        """Make one family of the members with either name."""
        self.unite(self._first[first], self._first[second])

    def unite(self, first: int, second: int) -> None:
        """Make one family of those of two members."""
        first, second = self.of(first), self.of(second)
        self._parent[max(first, second)] = min(first, second)

    def of(self, number: int) -> int:
        """The family of a member: its member of the smallest number."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def unite_near_texts(families: Families, texts: dict[int, str], *, threads: int = 0) -> None:
    """Make one family of members whose texts are nearly equal, by member."""
    members = list(texts)
    found = near_texts(
        pa.array(texts.values(), pa.large_string()), threshold=THRESHOLD, threads=threads
    )
    for member, first in zip(members, pa.array(found).to_pylist(), strict=True):
        families.unite(member, members[first])


def hash_pictures(
    wanted: Sequence[Located],
    *,
    threads: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[Located, list[int]]:
    """The pHash of each image, or of frames within each video; none where it cannot be decoded.

    Args:
        wanted: Media with the folder that they are named from.
        threads: Threads to use; 0 means one per core.
        progress: Is told how many media are done.

    Raises:
        MissingExtraError: there is a video file, and PyAV is not installed.
    """
    settings = FrameSettings(_FRAMES, 1.0, _MAX_PIXELS, threads, equal_sizes=False)
    distinct = list(dict.fromkeys(wanted))
    hashes: dict[Located, list[int]] = {}
    for start in range(0, len(distinct), _MEDIA_AT_ONCE):
        part = distinct[start : start + _MEDIA_AT_ONCE]
        found = find_pictures(part, settings)
        shown = {place: _shown(found[place]) for place in part}
        hashed = iter(_hash([one for several in shown.values() for one in several], threads))
        for place, pictures in shown.items():
            known = [next(hashed) for _ in pictures]
            hashes[place] = [one for one in known if one is not None]
        progress(start + len(part))
    return hashes


def _shown(pictures: list[Picture] | BadRecordError) -> list[Picture]:
    if isinstance(pictures, BadRecordError):
        return []
    return pictures[_INNER] if len(pictures) == _FRAMES else pictures


def _hash(pictures: Sequence[Picture], threads: int) -> list[int | None]:
    if not pictures:
        return []
    inline = [picture.content for picture in pictures]
    paths = [picture.path if picture.content is None else None for picture in pictures]
    nothing = pa.nulls(len(pictures), pa.uint64())
    hashed = hash_images(
        pa.array(paths, pa.large_string()),
        nothing,
        nothing,
        pa.array(inline, pa.large_binary()),
        max_pixels=_MAX_PIXELS,
        threads=threads,
    )
    values: list[int | None] = pa.array(hashed).field("phash").to_pylist()
    return values


def near_hashes(hashes: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """Every two places of hashes that differ in at most ``radius`` bits, int64 [n, 2].

    The 64 bits are cut into ``radius + 1`` bands. Two hashes that differ in ``radius`` bits are
    equal in a band at least, so that only hashes that share a band are compared.

    Args:
        hashes: uint64 [m].
        radius: Bits, 0 to 15.
    """
    edges = np.linspace(0, 64, radius + 2).astype(np.int64)
    found = [np.empty((0, 2), dtype=np.int64)]
    for low, high in itertools.pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, here = band[order], hashes[order]
        places = np.arange(len(order) - 1)
        step = 1
        # Neighbours at distance 1, 2, ... in the sorted band, as long as any of them share it.
        while len(places := places[places + step < len(order)]):
            places = places[band[places] == band[places + step]]
            near = places[_bits(here[places] ^ here[places + step]) <= radius]
            found.append(np.sort(np.stack([order[near], order[near + step]], axis=1), axis=1))
            step += 1
    return np.unique(np.concatenate(found), axis=0)


def _bits(values: np.ndarray) -> np.ndarray:
    """The number of ones in each uint64 (Warren, Hacker's Delight, 5-1)."""
    ones, twos = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    fours, sums = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
    values = values - ((values >> np.uint64(1)) & ones)
    values = (values & twos) + ((values >> np.uint64(2)) & twos)
    values = (values + (values >> np.uint64(4))) & fours
    return (values * sums) >> np.uint64(56)


def is_held_out(key: str, share: float, seed: int) -> bool:
    """Whether the family of this smallest key is held out: by BLAKE2b of seed and key alone."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
