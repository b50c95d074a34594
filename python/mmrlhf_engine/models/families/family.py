"""What a family of models is to the packer and the loader: one small description.

A processor of transformers does three things to a picture: it resizes and cuts it, it counts its
tokens, and it writes those tokens, with text around them, where the chat template has put a mark.
The first two are arithmetic and belong to the core (an *image rule*); a description says which rule
with which numbers, and what stands in the place of a mark.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.inputs import ShownPictures
from mmrlhf_engine.models.families.placeholders import IMAGE
from mmrlhf_engine.models.families.vision import Vision

__all__ = ["CLIP_MEAN", "CLIP_STD", "Family", "ModelProcessor", "Tokens", "Videos"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that OpenAI trained CLIP on; the default of most image processors."""

Tokens = Mapping[str, str]
"""The text of each special token by its name, as the tokenizer has it."""

_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Settings that would change pixels in a way that the core does not follow.
_ALWAYS_ON = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Videos:
    """How a family takes videos."""

    mark: str
    """Name of the token that the chat template writes for a video."""
    token: str
    """Name of the token that is repeated, one for each feature."""
    text: Callable[[Tokens, Sequence[float]], str]
    """What takes the place of the mark: from the times of the frames in seconds, a text with
    ``len(times)`` placeholders in it."""
    rule: Callable[[ProcessorFiles], dict[str, Any] | str]
    """The part ``video`` of the image rule, or which setting of the processor is not followed."""


@dataclass(frozen=True)
class Family:
    """One family of models, as its processor in transformers lays texts and pictures out."""

    name: str
    """As ``model_type`` in ``config.json``."""
    processor_class: str
    """Class of its processor."""
    image_processor: str
    """Class of its image processor, without what stands for the way it resizes (``Fast``, ``Pil``);
    it names the family where no file names the processor."""
    image_rule: Callable[[ProcessorFiles], dict[str, Any]]
    """The rule of its images, as JSON for the core."""
    forward_inputs: Callable[[ShownPictures], dict[str, Any]]
    """Keyword arguments of ``forward`` that pictures add."""
    vision: Vision | str
    """How its model sees, or why packs are not given to it."""
    tokens: Mapping[str, str]
    """Special tokens by their attribute of the tokenizer (``image_token``), with the text that each
    has where the tokenizer does not name it."""
    image_mark: str = "image_token"
    """Name of the token that the chat template writes for an image."""
    image_token: str = "image_token"
    """Name of the token that is repeated, one for each feature."""
    image_text: Callable[[Tokens], str] = lambda _: IMAGE
    """What takes the place of the mark, with one placeholder in it."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Additions to the image rule where the packer has written the text around images."""
    videos: Videos | None = None
    """None where the family takes no videos."""
    image_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the class of its image processor, where they are not CLIP's and bicubic."""
    video_defaults: Mapping[str, Any] = field(default_factory=dict)
    """The same of its video processor."""
    temporal: int = 1
    """Frames that become one block of pixels, where the files do not say so."""

    def read(self, files: ProcessorFiles, tokenizer: Any) -> "ModelProcessor":
        """The processor of one model of the family.

        Args:
            files: Its settings.
            tokenizer: Its tokenizer of transformers.

        Raises:
            ConfigError: a token is not in the vocabulary, or a setting is not followed here.
            InputError: a number that the image rule needs is missing.
        """
        tokens = {
            name: str(getattr(tokenizer, name, None) or text) for name, text in self.tokens.items()
        }
        pictures = _pixels(files, files.image, self.image_defaults)
        pictures |= {
            "image_token": _id_of(tokenizer, tokens[self.image_token], files),
            "temporal": int(files.image.get("temporal_patch_size") or self.temporal),
            "background": [int(255 * mean) for mean in pictures["mean"]],
        }
        image_rule = self.image_rule(files) | dict(self.written)
        no_videos = f"{self.name} takes no videos"
        if self.videos is not None:
            of_videos = _pixels(files, files.video, self.video_defaults)
            rule = self.videos.rule(files)
            no_videos = _difference(of_videos, pictures)
            if isinstance(rule, str):
                no_videos = rule
            elif not no_videos:
                image_rule["video"] = rule
                pictures["video_token"] = _id_of(tokenizer, tokens[self.videos.token], files)
        return ModelProcessor(self, tokens, image_rule, pictures, no_videos)


@dataclass(frozen=True)
class ModelProcessor:
    """What one model's processor does, as far as tokens and pixels depend on it."""

    family: Family
    tokens: Tokens
    image_rule: dict[str, Any]
    pictures: dict[str, Any]
    """Settings of :class:`mmrlhf_engine.PictureSettings`."""
    no_videos: str = ""
    """Why videos cannot be laid out; empty where they can."""

    @property
    def image_mark(self) -> str:
        """What the chat template writes for an image."""
        return self.tokens[self.family.image_mark]

    @property
    def video_mark(self) -> str | None:
        """What the chat template writes for a video; None where videos cannot be laid out."""
        videos = self.family.videos
        return None if videos is None or self.no_videos else self.tokens[videos.mark]

    def image_text(self) -> str:
        """What takes the place of the mark of an image."""
        return self.family.image_text(self.tokens)

    def video_text(self, times: Sequence[float]) -> str:
        """What takes the place of the mark of a video with frames at these times (seconds)."""
        if self.family.videos is None:
            raise ConfigError(self.no_videos)
        return self.family.videos.text(self.tokens, times)

    def record(self) -> dict[str, Any]:
        """What a dataset keeps of it, as JSON."""
        return {
            "family": self.family.name,
            "image_rule": self.image_rule,
            "pictures": self.pictures,
            "image_mark": self.image_mark,
            "image_text": self.image_text(),
            "video_mark": self.video_mark,
        }


def _pixels(
    files: ProcessorFiles, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Mean, deviation and filter of an image or video processor."""
    known: dict[str, Any] = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3} | dict(
        defaults
    )
    chosen = known | {key: settings[key] for key in known if settings.get(key) is not None}
    for key in _ALWAYS_ON:
        if settings.get(key) is False:
            raise ConfigError(f"{files.name}: {key} is false, which is not followed here")
    scale = settings.get("rescale_factor") or 1 / 255
    if abs(scale * 255 - 1) > 1e-6:
        raise ConfigError(f"{files.name}: rescale_factor is {scale}, expected 1/255")
    if chosen["resample"] not in _FILTERS:
        raise ConfigError(
            f"{files.name}: resample is {chosen['resample']}, expected one of {_FILTERS}"
        )
    return {
        "mean": [float(value) for value in chosen["image_mean"]],
        "std": [float(value) for value in chosen["image_std"]],
        "filter": _FILTERS[chosen["resample"]],
    }


def _difference(of_videos: Mapping[str, Any], of_images: Mapping[str, Any]) -> str:
    """In what videos are prepared otherwise than images; one filter and one mean hold for both."""
    differing = [key for key in of_videos if of_videos[key] != of_images[key]]
    return f"videos have another {' and '.join(differing)} than images" if differing else ""


def _id_of(tokenizer: Any, token: str, files: ProcessorFiles) -> int:
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise ConfigError(
            f"{files.name}: the tokenizer has no token {token!r}, which the processor repeats",
            hint="tokenizer and processor must be of the same model",
        )
    return int(number)
