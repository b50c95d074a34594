"""Images and videos in rendered texts: the marks of a chat template become placeholders.

A template may put pictures elsewhere than the messages have them (LLaVA-OneVision's puts images
before the text), so the order in which the model sees them is read off the rendered text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrlhf_engine.models.families.family import ModelProcessor
from mmrlhf_engine.models.families.placeholders import IMAGE, PLACEHOLDER_IDS
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media

__all__ = ["MediaText", "Times", "VideoLayout", "count_placeholders", "still"]

VideoLayout = Literal["native", "frames"]
Times = Callable[[Media], Sequence[float]]
"""The times in seconds of the pictures that a medium became; one number for an image."""


def still(_media: Media) -> Sequence[float]:
    """Every medium is one image."""
    return (0.0,)


@dataclass(frozen=True)
class MediaText:
    """How media are written, by a model's processor or by the mark of an image alone."""

    image_mark: str | None = None
    """What the chat template writes for an image; None where it knows of no images."""
    processor: ModelProcessor | None = None
    videos: VideoLayout = "native"
    """Videos as the processor lays them out, or each frame as an image."""

    @property
    def video_mark(self) -> str | None:
        """What the chat template writes for a video; None where frames are images, or refused."""
        if self.processor is None or self.videos == "frames":
            return None
        return self.processor.video_mark

    def check_text(self, text: str) -> None:
        """That a text of a message holds nothing that would be taken for a picture.

        Raises:
            BadRecordError: it does.
        """
        known = [*PLACEHOLDER_IDS, self.image_mark, self.video_mark]
        if self.processor is not None:
            known += self.processor.tokens.values()
        found = next((mark for mark in known if mark and mark in text), None)
        if found is not None:
            raise BadRecordError(
                "image_mark_in_text", f"the text holds {found}, which stands for a picture"
            )

    def kinds(self, media: Media, times: Times) -> list[Literal["image", "video"]]:
        """The content parts of a medium.

        Raises:
            BadRecordError: it is a video, and nothing says how the model takes one.
        """
        if media.kind == "image":
            return ["image"]
        if self.videos == "frames":
            return ["image"] * len(times(media))
        self._check_videos()
        return ["video"]

    def inline(self, media: Media, times: Times) -> str:
        """A medium as text with its placeholders.

        Raises:
            BadRecordError: it is a video, and nothing says how the model takes one.
        """
        if self.kinds(media, times)[0] == "video" and self.processor is not None:
            return self.processor.video_text(times(media))
        image = self.processor.image_text() if self.processor else IMAGE
        return image * len(times(media))

    def replace_marks(
        self, text: str, media: Sequence[Media], times: Times
    ) -> tuple[str, list[Media]]:
        """The text with every mark replaced, and the media in the order in which it shows them.

        Raises:
            BadRecordError: there are more or fewer marks of a kind than media.
        """
        waiting: dict[str, list[tuple[Media, bool]]] = {"image": [], "video": []}
        for item in media:
            kinds = self.kinds(item, times)
            waiting[kinds[0]] += [(item, place == 0) for place in range(len(kinds))]
        marks = {self.image_mark: "image", self.video_mark: "video"}
        marks.pop(None, None)
        self._check_number(text, marks, waiting)
        order: list[Media] = []
        pieces: list[str] = []
        end = 0
        for found in re.finditer("|".join(re.escape(str(mark)) for mark in marks), text):
            item, is_first = waiting[marks[found[0]]].pop(0)
            if is_first:
                order.append(item)
            pieces += [text[end : found.start()], self._text_of(item, times)]
            end = found.end()
        return "".join([*pieces, text[end:]]), order

    def _text_of(self, media: Media, times: Times) -> str:
        """What takes the place of one mark."""
        if self.processor is None:
            return IMAGE
        if media.kind == "image" or self.videos == "frames":
            return self.processor.image_text()
        return self.processor.video_text(times(media))

    def _check_videos(self) -> None:
        if self.processor is None:
            raise BadRecordError(
                "video_needs_model",
                "a video is laid out by the model's processor: pack with --model, or with "
                "--videos frames, where each frame is an image",
            )
        if self.processor.no_videos:
            raise BadRecordError(
                "video_refused",
                f"{self.processor.no_videos}; --videos frames makes each frame an image",
            )

    def _check_number(
        self, text: str, marks: dict[str | None, str], waiting: dict[str, list[tuple[Media, bool]]]
    ) -> None:
        for mark, kind in marks.items():
            found, expected = text.count(str(mark)), len(waiting[kind])
            if found != expected:
                raise BadRecordError(
                    "template_refuses",
                    f"the chat template writes {found} marks for {expected} {kind}s",
                )


def count_placeholders(text: str) -> int:
    """How many pictures a text stands for."""
    return sum(text.count(mark) for mark in PLACEHOLDER_IDS)
