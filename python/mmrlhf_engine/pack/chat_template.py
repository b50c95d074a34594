"""Conversations as the text that a chat template makes of them, each image as one mark.

The prompt is rendered with the opening of an answer, the whole conversation with the answer in it;
the text of a response is what the second has more. Templates differ in what they take: text, lists
of parts, images among the parts or not; what this one takes is tried out once, at the start.

The opening is the template's generation prompt. Where a conversation goes on with other white space
(LLaVA-OneVision's own template), it is what stands before an answer in the conversation. A prompt
that ends in a message of the assistant is continued: its answers are the rest of that message.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pack.template_marks import check_marks, marks_of
from mmrlhf_engine.sources.preferences.messages import joined_parts
from mmrlhf_engine.sources.preferences.record import STRING_ROLE, BadRecordError, Media, Message

__all__ = ["SLOT", "ChatTemplate", "Conversation", "CountSlots", "Texts", "one_slot", "seam"]

SLOT = "<|mmrlhf:slot|>"
"""Mark of one image in a rendered text; known to the tokenizer in memory, never written."""

_ANSWER = "<|mmrlhf:answer|>"
"""Stands for an answer in a text that is rendered to see what comes before one."""

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
    tools: str = ""
    """A JSON list for the template, or nothing."""


@dataclass(frozen=True)
class Texts:
    """A conversation as rendered."""

    prompt: str
    whole: list[str | BadRecordError]
    plain: bool


class ChatTemplate:
    """A chat template, and what was found out about it.

    ``image_mark`` is what it writes for an image part; None where it knows of no images.
    ``arguments`` are its own, such as ``enable_thinking``.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None,
        image_mark: str | None,
        strings: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._image_mark = image_mark
        self._strings = strings
        self._arguments = dict(arguments or {})
        self._marks: tuple[str, ...] = ()
        self._takes_text = self._takes_parts = self._marks_images = False
        self.opens_as_conversation = False
        """Whether an answer is opened as in a conversation, not by the generation prompt."""
        if template is not None:
            self._try_out()

    def render(self, conversation: Conversation) -> Texts | BadRecordError:
        """The texts of a conversation, or why its prompt cannot be used."""
        prompt, answers = conversation.prompt, conversation.responses
        bare = prompt[0].role == STRING_ROLE
        plain = bare and self._strings == "plain"
        if bare and not plain:
            prompt = (Message("user", prompt[0].parts),)
            answers = tuple((Message("assistant", answer[0].parts),) for answer in answers)
        try:
            if not plain:
                check_marks(prompt, self._marks, bare=bare)
            text = self._prompt(prompt, conversation, plain=plain)
            self._check_slots(text, prompt, conversation.slots)
        except BadRecordError as error:
            return error
        whole: list[str | BadRecordError] = []
        for answer in answers:
            try:
                if not plain:
                    check_marks(answer, self._marks, bare=bare)
                both = self._whole(prompt, answer, conversation, plain=plain)
                if not both.startswith(text):
                    raise BadRecordError("template_breaks_prompt", seam(text, both))
                self._check_slots(both[len(text) :], answer, conversation.slots)
                whole.append(both)
            except BadRecordError as error:
                whole.append(error)
        return Texts(text, whole, plain)

    def _prompt(
        self, prompt: tuple[Message, ...], conversation: Conversation, *, plain: bool
    ) -> str:
        """The prompt, up to where an answer begins."""
        slots, tools = conversation.slots, conversation.tools
        if plain:
            return self._render_plain(prompt, slots, opening=True)
        if tools and self._render_chat(prompt, slots, "") == self._render_chat(
            prompt, slots, tools
        ):
            raise _dropped("tools")
        if not self.opens_as_conversation and prompt[-1].role != "assistant":
            return self._render_chat(prompt, slots, tools, opening=True)
        whole = self._render_chat(_answered(prompt, (_message(_ANSWER),)), slots, tools)
        before, mark, _ = whole.partition(_ANSWER)
        if not mark:
            raise BadRecordError("template_breaks_prompt", "the template leaves the answer out")
        return before

    def _whole(
        self,
        prompt: tuple[Message, ...],
        answer: tuple[Message, ...],
        conversation: Conversation,
        *,
        plain: bool,
    ) -> str:
        """The conversation with one answer, in which every field of its messages is made use of."""
        slots, tools = conversation.slots, conversation.tools
        if plain:
            return self._render_plain((*prompt, *answer), slots, opening=False)
        messages = _answered(prompt, answer)
        whole = self._render_chat(messages, slots, tools)
        extras = [json.loads(message.extras) for message in messages if message.extras]
        for name in dict.fromkeys(name for given in extras for name in given):
            without = tuple(_without(message, name) for message in messages)
            if self._render_chat(without, slots, tools) == whole:
                raise _dropped(name)
        return whole

    def _render_plain(
        self, messages: tuple[Message, ...], slots: CountSlots, *, opening: bool
    ) -> str:
        """Text as it stands; the end of a text is marked by the tokenizer's end token, once."""
        text = "".join(self._inline(message, slots) for message in messages)
        end = self._tokenizer.eos_token or ""
        return text if opening or text.endswith(end) else text + end

    def _render_chat(
        self,
        messages: tuple[Message, ...],
        slots: CountSlots,
        tools: str = "",
        *,
        opening: bool = False,
    ) -> str:
        import jinja2

        turns = [
            {
                "role": message.role,
                "content": self._content(message, slots),
                **(json.loads(message.extras) if message.extras else {}),
            }
            for message in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                tools=json.loads(tools) if tools else None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=opening,
                **self._arguments,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
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

    def probe(self, reasoning: str = "") -> tuple[str, str]:
        """A small prompt and the conversation it begins, for trying the seam between them.

        Raises:
            ConfigError: the template does not render them.
        """
        question, answer = Message("user", ("What is this?",)), _message("A small cat.")
        if reasoning:
            extras = json.dumps({"reasoning_content": reasoning})
            answer = Message("assistant", answer.parts, extras)
        try:
            example = Conversation((question,), ())
            prompt = self._prompt((question,), example, plain=False)
            return prompt, self._render_chat((question, answer), one_slot)
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
        self._marks = marks_of(self._tokenizer, "".join(self.probe()))

    def _renders(self, turns: list[dict[str, Any]], expected: str) -> bool:
        """Whether the template renders these turns, with ``expected`` once and no raw parts."""
        try:
            text = self._tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=False,
                **self._arguments,
            )
        except Exception:  # A template may fail in any way on a form it was not made for.
            return False
        return text.count(expected) == 1 and "'type'" not in text


def _message(text: str) -> Message:
    return Message("assistant", (text,))


def _answered(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages of both; a last message of the assistant goes on with the answer.

    Raises:
        BadRecordError: it cannot go on with this answer.
    """
    last, first = prompt[-1], answer[0]
    if last.role != "assistant":
        return (*prompt, *answer)
    if last.extras or first.extras or first.role != "assistant":
        raise BadRecordError(
            "prompt_ends_in_answer",
            "the prompt ends in a message of the assistant, and calls of tools or another role "
            "cannot go on with it",
        )
    return (
        *prompt[:-1],
        Message("assistant", joined_parts([*last.parts, *first.parts])),
        *answer[1:],
    )


def _without(message: Message, name: str) -> Message:
    """A message without one of its fields for the template."""
    extras = json.loads(message.extras) if message.extras else {}
    extras.pop(name, None)
    return Message(message.role, message.parts, json.dumps(extras) if extras else "")


def _dropped(name: str) -> BadRecordError:
    return BadRecordError(
        "template_drops_field",
        f"the chat template makes no use of {name!r}; --ignore-field {name} leaves it out",
    )


def seam(prompt: str, whole: str) -> str:
    """How a prompt ends and how the whole conversation reads there, for an error."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), len(prompt))
    start = max(same - 20, 0)
    return f"the prompt ends {prompt[start:]!r}, the conversation has {whole[start : same + 40]!r}"
