"""Reading fields of a record, with an error that says what was found instead.

Images and videos have fields of their own in most formats, and ``<image>`` and ``<video>`` in the
text say where each belongs. Where no tag stands at all, they belong in front of the first user
message, as TRL and MM-RLHF have it.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from mmrlhf_engine._core import role_names
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Message, Pair

__all__ = [
    "IMAGES",
    "VIDEOS",
    "MediaTags",
    "both_answers",
    "finite",
    "first_present",
    "media_list",
    "normal_role",
    "number_field",
    "only_pair",
    "place_in_front",
    "required",
    "text_field",
]

_TAG = re.compile(r"<(image|video)>")
_DATA_ADDRESS = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
# ms-swift's name for what the core's table calls a tool.
_ROLES = {**dict(role_names()), "tool_response": "tool"}
_LARGEST = 3.4e38
_KNOWN_TYPES = (str, bool, int, float, list, dict, bytes)

IMAGES = ("images", "image", "image_path", "image_url", "img", "img_path", "picture", "pictures")
"""Fields that hold the images of a record; the first that is there is read, others repeat it."""

VIDEOS = ("videos", "video", "video_path")
"""Likewise of videos."""

_Answer = TypeVar("_Answer")


def first_present(record: dict[str, Any], keys: Iterable[str]) -> str | None:
    """The first of ``keys`` whose value is neither null nor empty; None where there is none."""
    return next((key for key in keys if record.get(key) not in (None, "", [])), None)


def required(record: dict[str, Any], key: str) -> Any:
    """The value of a key that must be there.

    Raises:
        BadRecordError: it is absent or null.
    """
    value = record.get(key)
    if value is None and key in record:
        raise BadRecordError("missing_key", f"{key!r} is null, expected a value")
    if value is None:
        keys = ", ".join(sorted(record)) or "none"
        raise BadRecordError("missing_key", f"no {key!r}; keys found: {keys}")
    return value


def text_field(record: dict[str, Any], key: str, reason: str) -> str:
    """The text of a key that must be there and hold more than white space.

    Raises:
        BadRecordError: absent, not text, or (for ``reason``) empty.
    """
    value = required(record, key)
    if not isinstance(value, str):
        raise wrong_type(key, value, "text")
    if not value.strip():
        raise BadRecordError(reason, f"{key!r} is empty")
    return value


def number_field(record: dict[str, Any], key: str) -> float | None:
    """A number, or None where there is none.

    Raises:
        BadRecordError: it is something else, or not finite.
    """
    value = record.get(key)
    return None if value is None else finite(key, value)


def finite(key: str, value: object) -> float:
    """A number as the float32 columns of the dataset can hold it.

    Raises:
        BadRecordError: it is no number, not finite, or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(key, value, "a number")
    if not -_LARGEST <= value <= _LARGEST:
        raise BadRecordError("wrong_type", f"{key!r} is {value!s:.20}, expected a finite number")
    return float(value)


def only_pair(record: dict[str, Any], *, tie: bool = False) -> Pair:
    """The pair of a record that holds two responses, the chosen one first.

    Raises:
        BadRecordError: its margin or weight is no number, or the weight is negative.
    """
    weight = number_field(record, "weight")
    if weight is not None and weight < 0:
        raise BadRecordError("wrong_type", f"'weight' is {weight}, expected 0 or more")
    margin = number_field(record, "margin")
    return Pair(0, 1, tie=tie, margin=margin, weight=1.0 if weight is None else weight)


def wrong_type(key: str, value: object, expected: str) -> BadRecordError:
    """The error for a value of another type than ``expected``."""
    found = type(value).__name__ if isinstance(value, _KNOWN_TYPES) else "something else"
    found = "null" if value is None else found
    return BadRecordError("wrong_type", f"{key!r} is {found}, expected {expected}")


def normal_role(role: object) -> str:
    """``system``, ``user``, ``assistant`` or ``tool`` for any of the names these go by.

    Raises:
        BadRecordError: the core's table of roles does not have the name.
    """
    name = _ROLES.get(role) if isinstance(role, str) else None
    if name is None:
        raise BadRecordError("unknown_role", f"role {role!r}, expected one of {', '.join(_ROLES)}")
    return name


def media_list(record: dict[str, Any], *keys: str) -> list[Media]:
    """The media under the first of ``keys`` that is there: one or a list.

    An item is a name, ``{"bytes", "path"}`` as Hugging Face writes it, bytes, or a ``data:``
    address. For keys of videos, a list of names inside the list is a video given by its frames.

    Raises:
        BadRecordError: an item is none of these.
    """
    key = first_present(record, keys)
    if key is None:
        return []
    value = record[key]
    items = value if isinstance(value, list | tuple) else [value]
    if "video" in key:
        return [_video(key, item) for item in items]
    return [_image(key, item) for item in items]


def _image(key: str, item: object) -> Media:
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path") or item.get("url") or item.get("image")
    if isinstance(item, bytes):
        return Media("image", content=item)
    if isinstance(item, str) and item:
        match = _DATA_ADDRESS.match(item)
        if match is None:
            return Media("image", (item.removeprefix("file://"),))
        try:
            return Media("image", content=base64.b64decode(item[match.end() :], validate=True))
        except binascii.Error as error:
            raise BadRecordError("unreadable_media", f"{key!r}: not base64: {error}") from None
    raise wrong_type(key, item, "a path, bytes, or {bytes, path}")


def _video(key: str, item: object) -> Media:
    if isinstance(item, list | tuple) and item:
        if not all(isinstance(name, str) and name for name in item):
            raise wrong_type(key, item, "names of frames")
        return Media("video", tuple(str(name).removeprefix("file://") for name in item))
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path") or item.get("video")
    if isinstance(item, bytes):
        return Media("video", content=item)
    if isinstance(item, str) and item:
        return Media("video", (item.removeprefix("file://"),))
    raise wrong_type(key, item, "a path, or a list of frames")


class MediaTags:
    """Gives the images and videos of a record to the tags of its texts, in their order.

    Where a format knows tags (``tagged``), one without a medium is a missing medium; elsewhere it
    is text like any other.
    """

    def __init__(
        self,
        images: Iterable[Media] = (),
        videos: Iterable[Media] = (),
        *,
        tagged: bool = False,
    ) -> None:
        self._tagged = tagged
        self._reads_text = True
        self._given = {"image": list(images), "video": list(videos)}
        self._taken = {"image": 0, "video": 0}

    def parts_of(self, text: str) -> tuple[str | Media, ...]:
        """The text with its tags replaced by their media."""
        parts: list[str | Media] = []
        end = 0
        for tag in _TAG.finditer(text) if self._reads_text else ():
            kind = tag[1]
            if not self._given[kind] and not self._tagged:
                continue
            if self._taken[kind] == len(self._given[kind]):
                raise self._wrong_number(kind, "more")
            parts += [text[end : tag.start()], self._given[kind][self._taken[kind]]]
            self._taken[kind] += 1
            end = tag.end()
        parts.append(text[end:])
        return tuple(part for part in parts if part != "")

    def take(self, kind: str) -> Media:
        """The next medium of a kind, for a content part that names none itself."""
        if self._taken[kind] == len(self._given[kind]):
            raise self._wrong_number(kind, "more")
        self._taken[kind] += 1
        return self._given[kind][self._taken[kind] - 1]

    def fork(self, *, reads_text: bool = True) -> "MediaTags":
        """The same media, of which the same are taken so far; tags in texts may be left as text."""
        other = MediaTags(self._given["image"], self._given["video"], tagged=self._tagged)
        other._taken = dict(self._taken)
        other._reads_text = reads_text and self._reads_text
        return other

    def took_as_many(self, other: "MediaTags") -> bool:
        """Whether both have given away the same media."""
        return self._taken == other._taken

    def take_all(self) -> None:
        """Nothing is left to ask for."""
        self._taken = {kind: len(given) for kind, given in self._given.items()}

    @property
    def left(self) -> int:
        """How many media no tag has asked for."""
        return sum(len(given) - self._taken[kind] for kind, given in self._given.items())

    def rest(self) -> list[Media]:
        """What no tag asked for.

        Raises:
            BadRecordError: of one kind some were asked for and some not.
        """
        for kind, given in self._given.items():
            if 0 < self._taken[kind] < len(given):
                raise self._wrong_number(kind, "fewer")
        untouched = [kind for kind in self._given if not self._taken[kind]]
        return [media for kind in untouched for media in self._given[kind]]

    def _wrong_number(self, kind: str, what: str) -> BadRecordError:
        number = len(self._given[kind])
        return BadRecordError("media_count", f"{what} <{kind}> in the text than {kind}s ({number})")


def both_answers(
    tags: MediaTags, parse: Callable[[str, MediaTags], _Answer], *, reads_text: bool = True
) -> tuple[_Answer, _Answer]:
    """The chosen and the rejected answer, whose tags take the media that the prompt has left.

    Both take the same ones, as in LLaMA-Factory, or the rejected answer takes those after the
    chosen one's. What is left where neither takes any is for the prompt (:meth:`MediaTags.rest`).

    Raises:
        BadRecordError: media are left that neither answer asks for.
    """
    first = tags.fork(reads_text=reads_text)
    chosen = parse("chosen", first)
    second = (tags if not first.left else first).fork(reads_text=reads_text)
    start = second.fork()
    rejected = parse("rejected", second)
    took = not first.took_as_many(tags), not second.took_as_many(start)
    if any(took) and second.left and (took[1] or first.left):
        raise BadRecordError("media_count", f"{second.left} images or videos that no text asks for")
    if any(took):
        tags.take_all()
    return chosen, rejected


def place_in_front(messages: list[Message], media: list[Media]) -> list[Message]:
    """The messages with ``media`` before the text of the first user message.

    Raises:
        BadRecordError: there is no user message.
    """
    if not media:
        return messages
    for number, message in enumerate(messages):
        if message.role not in ("system", "assistant", "tool"):
            placed = Message(message.role, (*media, *message.parts))
            return [*messages[:number], placed, *messages[number + 1 :]]
    raise BadRecordError("media_count", f"{len(media)} media, but no user message to hold them")
