"""Conversations as the text that a chat template makes of them, each image as one mark.

The prompt is rendered with the opening of an answer, the whole conversation with the answer in it;
the text of a response is what the second has more. Templates differ in what they take: text, lists
of parts, images among the parts or not; what this one takes is tried out once, at the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.sources.preferences.record import STRING_ROLE, BadRecordError, Media, Message

__all__ = ["SLOT", "ChatTemplate", "Conversation", "CountSlots", "Texts", "one_slot", "seam"]

SLOT = "<|mmrlhf:slot|>"
"""Mark of one image in a rendered text; known to the tokenizer in memory, never written."""

CountSlots = Callable[[Media], int]
"""How many images a medium stands for: 1, or the frames of a video."""


def one_slot(_media: Media) -> int:
    """Every medium is one image."""
    return 1


@dataclass(frozen=True)
class Conversation:
    """A prompt and the answers to it."""

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    slots: CountSlots = one_slot


@dataclass(frozen=True)
class Texts:
    """A conversation as rendered."""

    prompt: str
    whole: list[str | BadRecordError]
    plain: bool


class ChatTemplate:
    """A chat template, and what was found out about it.

    ``image_mark`` is what it writes for an image part; None where it knows of no images.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, image_mark: str | None, strings: str
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._image_mark = image_mark
        self._strings = strings
        self._takes_text = self._takes_parts = self._marks_images = False
        if template is not None:
            self._try_out()

    def render(self, conversation: Conversation) -> Texts | BadRecordError:
        """The texts of a conversation, or why its prompt cannot be used."""
        prompt, answers, slots = conversation.prompt, conversation.responses, conversation.slots
        plain = prompt[0].role == STRING_ROLE and self._strings == "plain"
        if prompt[0].role == STRING_ROLE and not plain:
            prompt = (Message("user", prompt[0].parts),)
            answers = tuple((Message("assistant", answer[0].parts),) for answer in answers)
        render = self._render_plain if plain else self._render_chat
        try:
            text = render(prompt, slots, opening=True)
            self._check_slots(text, prompt, slots)
        except BadRecordError as error:
            return error
        whole: list[str | BadRecordError] = []
        for answer in answers:
            try:
                both = render((*prompt, *answer), slots, opening=False)
                if not both.startswith(text):
                    raise BadRecordError("template_breaks_prompt", seam(text, both))
                self._check_slots(both[len(text) :], answer, slots)
                whole.append(both)
            except BadRecordError as error:
                whole.append(error)
        return Texts(text, whole, plain)

    def _render_plain(
        self, messages: tuple[Message, ...], slots: CountSlots, *, opening: bool
    ) -> str:
        """Text as it stands; the end of a text is marked by the tokenizer's end token, once."""
        text = "".join(self._inline(message, slots) for message in messages)
        end = self._tokenizer.eos_token or ""
        return text if opening or text.endswith(end) else text + end

    def _render_chat(
        self, messages: tuple[Message, ...], slots: CountSlots, *, opening: bool
    ) -> str:
        import jinja2

        turns = [
            {"role": message.role, "content": self._content(message, slots)} for message in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, chat_template=self._template, tokenize=False, add_generation_prompt=opening
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRecordError("template_refuses", f"the chat template: {error}") from None
        if self._marks_images and self._image_mark:
            text = text.replace(self._image_mark, SLOT)
        return str(text)

    def _content(self, message: Message, slots: CountSlots) -> str | list[dict[str, str]]:
        """Content in the form the template knows: text alone as text, where it may be."""
        if self._takes_text and (not message.media or not self._marks_images):
            return self._inline(message, slots)
        if not self._marks_images:
            return [{"type": "text", "text": self._inline(message, slots)}]
        parts: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts += [{"type": "image"}] * slots(part)
        return parts

    def _inline(self, message: Message, slots: CountSlots) -> str:
        """The message as text, an image on a line of its own where text follows at once."""
        texts = []
        for number, part in enumerate(message.parts):
            if isinstance(part, str):
                texts.append(part)
                continue
            following = message.parts[number + 1] if number + 1 < len(message.parts) else ""
            joined = isinstance(following, str) and following[:1] not in ("", "\n")
            texts.append(SLOT * slots(part) + ("\n" if joined else ""))
        return "".join(texts)

    def _check_slots(self, text: str, messages: tuple[Message, ...], slots: CountSlots) -> None:
        """That the rendered text has exactly the images of its messages."""
        expected = sum(slots(media) for message in messages for media in message.media)
        found = sum(text.count(mark) for mark in (SLOT, self._image_mark) if mark)
        if found != expected:
            raise BadRecordError(
                "image_mark_in_text",
                f"{found} image marks after the chat template, but {expected} images: the text "
                "itself holds a mark, or the template leaves images out",
            )

    def probe(self) -> tuple[str, str]:
        """A small prompt and the conversation it begins, for trying the seam between them.

        Raises:
            ConfigError: the template does not render them.
        """
        question = Message("user", ("What is this?",))
        answer = Message("assistant", ("A small cat.",))
        try:
            prompt = self._render_chat((question,), one_slot, opening=True)
            return prompt, self._render_chat((question, answer), one_slot, opening=False)
        except BadRecordError as error:
            raise ConfigError(f"{error.detail}", hint="another by --chat-template FILE") from None

    def _try_out(self) -> None:
        """Learn what the template takes.

        Raises:
            ConfigError: it takes neither text nor parts.
        """
        text, part = "probe", {"type": "text", "text": "probe"}
        self._takes_text = self._renders([{"role": "user", "content": text}], text)
        self._takes_parts = self._renders([{"role": "user", "content": [part]}], text)
        with_image = [{"role": "user", "content": [{"type": "image"}, part]}]
        self._marks_images = bool(self._image_mark) and self._renders(
            with_image, str(self._image_mark)
        )
        if not self._takes_text and not self._takes_parts:
            raise ConfigError(
                "chat template: it renders neither text nor content parts of a user message",
                hint="give another with --chat-template FILE",
            )

    def _renders(self, turns: list[dict[str, Any]], expected: str) -> bool:
        """Whether the template renders these turns, with ``expected`` once and no raw parts."""
        try:
            text = self._tokenizer.apply_chat_template(
                turns, chat_template=self._template, tokenize=False, add_generation_prompt=False
            )
        except Exception:  # A template may fail in any way on a form it was not made for.
            return False
        return text.count(expected) == 1 and "'type'" not in text


def seam(prompt: str, whole: str) -> str:
    """How a prompt ends and how the whole conversation reads there, for an error."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), len(prompt))
    start = max(same - 20, 0)
    return f"the prompt ends {prompt[start:]!r}, the conversation has {whole[start : same + 40]!r}"
