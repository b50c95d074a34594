"""Messages to token ids: the prompt once, each response as what the template puts after it.

1. The prompt is rendered with the opening of an answer, the whole conversation with the answer in
   it; the text of the response is what the second has more, end of turn included.
2. Both are tokenised, many texts at once, by the Rust tokenizers. The tokens of the prompt and of
   the response must add up to those of the whole conversation. Where a token would span the seam
   (an answer that begins with a line break), the response is tokenised by itself, as a model that
   continues the prompt would write it; these are counted. What stands before the last special token
   of the prompt is tokenised once, as tokenizers cut a text there before all else.
3. A picture is one placeholder id wherever the template puts it; how many tokens it becomes is for
   the loader to say, which knows the model.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families import family_of
from mmrlhf_engine.models.families.files import ProcessorFiles
from mmrlhf_engine.models.families.placeholders import (
    FRAME,
    IMAGE,
    PLACEHOLDER_IDS,
    RUN,
    VIDEO,
)
from mmrlhf_engine.pack.chat_template import ChatTemplate, Conversation, Texts, seam
from mmrlhf_engine.pack.media_text import MediaText, VideoLayout
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer, sha256_of_tokenizer
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media

__all__ = [
    "ChatTokenizer",
    "TokenizedConversation",
    "load_tokenizer",
]

_SHOWN = {IMAGE: "<image>", VIDEO: "<video>", RUN: "", FRAME: ""}
"""Placeholders in the text that is kept for people."""


# What pack itself gives to apply_chat_template.
_OWN_ARGUMENTS = frozenset(
    {"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt"}
    | {"continue_final_message", "documents", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)


@dataclass(frozen=True)
class TokenizedConversation:
    """Token ids, uint32, a placeholder for each picture; media in the order of the placeholders."""

    prompt: np.ndarray
    prompt_media: list[Media]
    responses: list[tuple[np.ndarray, list[Media]] | BadRecordError]
    prompt_text: str


@dataclass(frozen=True)
class _Cut:
    """A place in a prompt: characters and ids before it."""

    text: int
    ids: int


class ChatTokenizer:
    """A fast tokenizer with its chat template; ``identity`` is what the shards record of them."""

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        *,
        identity: dict[str, Any],
        media: MediaText,
        strings: str,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = identity
        self.processor = media.processor
        self.tokenised_apart = 0
        self._end: tuple[str, list[int]] = ("", [])
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may carry the limits of the model it was trained for.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.add_special_tokens(_placeholder_tokens(tokenizer, media.image_mark))
        self._placeholders = {
            self._backend.token_to_id(mark): number for mark, number in PLACEHOLDER_IDS.items()
        }
        # Text is cut at these before it is normalised, whatever stands around them.
        self._cuts = {
            number: token.content
            for number, token in self._backend.get_added_tokens_decoder().items()
            if not token.normalized and not token.single_word
        }
        self._template = ChatTemplate(tokenizer, template, media, strings, template_args)
        self._opening = _opening_ids(self) if media.processor is not None else ([], "")
        if template is not None:
            self._choose_opening()

    @property
    def opens_as_conversation(self) -> bool:
        """Whether an answer is opened as in a conversation, not by the generation prompt."""
        return self._template.opens_as_conversation

    def tokenize(
        self, conversations: Sequence[Conversation]
    ) -> list[TokenizedConversation | BadRecordError]:
        """Tokenise many conversations at once.

        Returns:
            One item a conversation: its ids, or why the prompt cannot be used; inside it, one item
            a response.
        """
        texts = [self._template.render(conversation) for conversation in conversations]
        rendered = [text for text in texts if isinstance(text, Texts)]
        prompts = self._encode_all([(text.plain, text.prompt) for text in rendered])
        cuts = [self._last_cut(text, prompts[text.plain, text.prompt]) for text in rendered]
        ends = self._encode_all(
            [
                (text.plain, one[0][cut.text :])
                for text, cut in zip(rendered, cuts, strict=True)
                for one in text.whole
                if isinstance(one, tuple)
            ]
        )
        found = iter(
            self._tokenized(text, prompts[text.plain, text.prompt], cut, ends)
            for text, cut in zip(rendered, cuts, strict=True)
        )
        return [text if isinstance(text, BadRecordError) else next(found) for text in texts]

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Plain ids of texts; ``special`` adds what the tokenizer puts around a text."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    @property
    def bos_token(self) -> str:
        """The text of the token that begins a text; empty where there is none."""
        return str(self._tokenizer.bos_token or "")

    def _encode_all(self, texts: Sequence[tuple[bool, str]]) -> dict[tuple[bool, str], list[int]]:
        """Ids of (whether it is plain, text), each distinct one once."""
        ids: dict[tuple[bool, str], list[int]] = {}
        for plain in (False, True):
            keys = list(dict.fromkeys(key for key in texts if key[0] == plain))
            if keys:
                encoded = self.encode([key[1] for key in keys], special=plain)
                ids.update(zip(keys, encoded, strict=True))
        return ids

    def _last_cut(self, text: Texts, ids: list[int]) -> _Cut:
        """Before the last special token of a prompt, or its start where nothing cuts it."""
        if text.plain:
            return _Cut(0, 0)
        back = next((place for place, one in enumerate(reversed(ids)) if one in self._cuts), None)
        if back is None:
            return _Cut(0, 0)
        place = len(ids) - 1 - back
        start = text.prompt.rfind(self._cuts[ids[place]])
        if start < 0 or self._ids_of_end(text.prompt[start:]) != ids[place:]:
            return _Cut(0, 0)
        return _Cut(start, place)

    def _ids_of_end(self, text: str) -> list[int]:
        """Ids of how a prompt ends, which is the same for nearly all of them."""
        if text != self._end[0]:
            self._end = (text, self.encode([text])[0])
        return self._end[1]

    def _tokenized(
        self,
        text: Texts,
        prompt: list[int],
        cut: _Cut,
        ends: dict[tuple[bool, str], list[int]],
    ) -> TokenizedConversation:
        responses: list[tuple[np.ndarray, list[Media]] | BadRecordError] = []
        for one in text.whole:
            if isinstance(one, BadRecordError):
                responses.append(one)
                continue
            whole, media = one
            end = ends[text.plain, whole[cut.text :]]
            seam_at = len(prompt) - cut.ids
            if end[:seam_at] == prompt[cut.ids :]:
                answer = end[seam_at:]
            else:
                self.tokenised_apart += 1
                answer = self.encode([whole[len(text.prompt) :]])[0]
            responses.append((self._array(answer), media))
        shown = text.prompt
        for mark, instead in _SHOWN.items():
            shown = shown.replace(mark, instead)
        opening, mark = self._opening
        if not text.plain and not (mark and text.prompt.startswith(mark)):
            prompt = [*opening, *prompt]
        return TokenizedConversation(self._array(prompt), text.prompt_media, responses, shown)

    def _choose_opening(self) -> None:
        """The opening of an answer with which the tokens of prompt and answer add up.

        It is tried in a plain example, and in one that reasons, where the generation prompt begins
        the reasoning.

        Raises:
            ConfigError: there is none.
        """
        prompt, whole = self._template.probe()
        if self._adds_up(prompt, whole):
            return
        if whole.startswith(prompt) and self._adds_up(*self._template.probe("It has fur.")):
            return
        self._template.opens_as_conversation = True
        as_conversation, whole = self._template.probe()
        same = "".join(prompt.split()) == "".join(as_conversation.split())
        if not same or not self._adds_up(as_conversation, whole):
            raise ConfigError(
                "chat template: the tokens of prompt and answer do not add up to those of the "
                f"conversation: {seam(prompt, whole)}",
                hint="the opening of an answer (add_generation_prompt) must be how a full "
                "conversation goes on; an argument of the template may say so (--template-arg "
                "enable_thinking=false), or another template (--chat-template FILE)",
            )

    def _adds_up(self, prompt: str, whole: str) -> bool:
        first, both = self.encode([prompt, whole])
        return whole.startswith(prompt) and both[: len(first)] == first

    def _array(self, ids: list[int]) -> np.ndarray:
        array = np.array(ids, dtype=np.uint32)
        for number, placeholder in self._placeholders.items():
            array[array == number] = placeholder
        return array


def load_tokenizer(
    name: str,
    *,
    chat_template: str | None,
    image_mark: str | None,
    strings: str,
    template_args: Mapping[str, Any] | None = None,
    files: ProcessorFiles | None = None,
    videos: VideoLayout = "native",
) -> ChatTokenizer:
    """A tokenizer by name or folder, with its chat template or the one in the file given.

    Args:
        name: Of the tokenizer, or of a model with a processor.
        chat_template: A Jinja file; None is the tokenizer's own template.
        image_mark: What the template writes for an image; with ``files``, the processor says so.
        strings: Whether bare texts are turns of a chat, or tokenised as they stand.
        template_args: Arguments of the template.
        files: Settings of the model's processor, if it has one.
        videos: How videos are laid out.

    Raises:
        ConfigError: there is no such tokenizer, it is not a fast one, it has no chat template, it
            lacks the token of an image, or the template does not know an argument.
        InputError: the processor is of no family that is known.
        MissingExtraError: transformers is not installed.
    """
    tokenizer = load_fast_tokenizer(name, needed_for="pack")
    processor = family_of(files).read(files, tokenizer) if files is not None else None
    if processor is not None:
        image_mark = processor.image_mark
    template = _template(tokenizer, name, chat_template)
    if template is None and strings != "plain":
        raise ConfigError(
            f"--tokenizer {name}: it has no chat template",
            hint="give one with --chat-template FILE, or --strings plain for bare text",
        )
    if image_mark and len(tokenizer.tokenize(image_mark)) != 1:
        raise ConfigError(
            f"--tokenizer {name}: {image_mark!r} is no token of it, as the image rule needs",
            hint="choose the --image-rule of this model, or none",
        )
    _check_arguments(template_args or {}, template)
    identity = {
        "name": name if not Path(name).is_dir() else Path(name).resolve().name,
        "sha256": sha256_of_tokenizer(tokenizer, name),
        "vocabulary": len(tokenizer),
        "chat_template_sha256": hashlib.sha256((template or "").encode()).hexdigest(),
    }
    if template_args:
        identity["template_args"] = dict(template_args)
    if processor is not None:
        identity["processor"] = processor.record()
    media = MediaText(image_mark, processor, videos)
    return ChatTokenizer(
        tokenizer,
        template,
        identity=identity,
        media=media,
        strings=strings,
        template_args=template_args,
    )


def _placeholder_tokens(tokenizer: Any, image_mark: str | None) -> list[Any]:
    """Tokens of the placeholders, which take as much white space around them as an image's does."""
    from tokenizers import AddedToken

    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    like = known.get(image_mark or "")
    strips = {side: bool(getattr(like, side, False)) for side in ("lstrip", "rstrip")}
    return [AddedToken(mark, special=True, **strips) for mark in PLACEHOLDER_IDS]


def _opening_ids(tokenizer: "ChatTokenizer") -> tuple[list[int], str]:
    """What a processor puts before a text that does not begin with it: ids and text.

    Processors tokenise a rendered chat with the tokenizer's special tokens, unless the template has
    written the first one itself.
    """
    (bare,), (framed,) = tokenizer.encode(["a"]), tokenizer.encode(["a"], special=True)
    at = next(
        (n for n in range(len(framed) - len(bare) + 1) if framed[n : n + len(bare)] == bare), 0
    )
    return framed[:at], tokenizer.bos_token


def _check_arguments(arguments: Mapping[str, Any], template: str | None) -> None:
    for name in arguments:
        if name in _OWN_ARGUMENTS or not re.search(rf"\b{re.escape(name)}\b", template or ""):
            raise ConfigError(
                f"--template-arg {name}: the chat template has no such argument",
                hint="the name of a variable that it reads, such as enable_thinking",
            )


def _template(tokenizer: Any, name: str, file: str | None) -> str | None:
    """The template of the file given, of a processor in the same folder, or of the tokenizer."""
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {file}: {error}") from None
    of_processor = Path(name) / "chat_template.json"
    if of_processor.is_file():
        template = json.loads(of_processor.read_text(encoding="utf-8")).get("chat_template")
        return str(template) if template else None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return str(template) if template else None
