"""Conversations as the text that a chat template makes of them, each image as one mark.

The prompt is rendered with the opening of an answer, the whole conversation with the answer in it;
the text of a response is what the second has more. Templates differ in what they take: text, lists
of parts, images among the parts or not; what this one takes is tried out once, at the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.pack.media_text import MediaText, Times, count_placeholders, still
from mmrlhf_engine.sources.preferences.record import STRING_ROLE, BadRecordError, Media, Message

__all__ = ["ChatTemplate", "Conversation", "Texts", "seam"]


@dataclass(frozen=True)
class Conversation:
    """A prompt and the answers to it."""

    prompt: tuple[Message, ...]
    responses: tuple[tuple[Message, ...], ...]
    times: Times = still


@dataclass(frozen=True)
class Texts:
    """A conversation as rendered, and its media in the order in which the texts show them."""

    prompt: str
    prompt_media: list[Media]
    whole: list["tuple[str, list[Media]] | BadRecordError"]
    """The whole text with each answer, and the media of the answer."""
    plain: bool


class ChatTemplate:
    """A chat template, and what was found out about it."""

    def __init__(
        self, tokenizer: Any, template: str | None, media: MediaText, strings: str
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._media = media
        self._strings = strings
        self._takes_text = self._takes_parts = False
        self._marked: frozenset[str] = frozenset()
        if template is not None:
            self._try_out()

    def render(self, conversation: Conversation) -> Texts | BadRecordError:
        """The texts of a conversation, or why its prompt cannot be used."""
        prompt, answers, times = conversation.prompt, conversation.responses, conversation.times
        plain = prompt[0].role == STRING_ROLE and self._strings == "plain"
        if prompt[0].role == STRING_ROLE and not plain:
            prompt = (Message("user", prompt[0].parts),)
            answers = tuple((Message("assistant", answer[0].parts),) for answer in answers)
        render = self._render_plain if plain else self._render_chat
        try:
            text, media = render(prompt, times, opening=True)
        except BadRecordError as error:
            return error
        whole: list[tuple[str, list[Media]] | BadRecordError] = []
        for answer in answers:
            try:
                both, shown = render((*prompt, *answer), times, opening=False)
                if not both.startswith(text) or shown[: len(media)] != media:
                    raise BadRecordError("template_breaks_prompt", seam(text, both))
                whole.append((both, shown[len(media) :]))
            except BadRecordError as error:
                whole.append(error)
        return Texts(text, media, whole, plain)

    def _render_plain(
        self, messages: tuple[Message, ...], times: Times, *, opening: bool
    ) -> tuple[str, list[Media]]:
        """Text as it stands; the end of a text is marked by the tokenizer's end token, once."""
        text = "".join(self._inline(message, times) for message in messages)
        end = self._tokenizer.eos_token or ""
        text = text if opening or text.endswith(end) else text + end
        return text, _media_of(messages)

    def _render_chat(
        self, messages: tuple[Message, ...], times: Times, *, opening: bool
    ) -> tuple[str, list[Media]]:
        import jinja2

        turns = [
            {"role": message.role, "content": self._content(message, times)} for message in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, chat_template=self._template, tokenize=False, add_generation_prompt=opening
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRecordError("template_refuses", f"the chat template: {error}") from None
        media = _media_of(messages)
        if self._marked:
            text, media = self._media.replace_marks(text, media, times)
        expected = sum(len(times(item)) for item in media)
        if count_placeholders(text) != expected:
            raise BadRecordError("template_refuses", "the chat template leaves pictures out")
        return text, media

    def _content(self, message: Message, times: Times) -> str | list[dict[str, str]]:
        """Content in the form the template knows: text alone as text, where it may be."""
        if self._takes_text and (not message.media or not self._marked):
            return self._inline(message, times)
        if not self._marked:
            return [{"type": "text", "text": self._inline(message, times)}]
        parts: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, str):
                self._media.check_text(part)
                parts.append({"type": "text", "text": part})
                continue
            kinds = self._media.kinds(part, times)
            if not self._marked.issuperset(kinds):
                raise BadRecordError("template_refuses", "the chat template knows of no videos")
            parts += [{"type": kind} for kind in kinds]
        return parts

    def _inline(self, message: Message, times: Times) -> str:
        """The message as text, an image on a line of its own where text follows at once."""
        texts = []
        for number, part in enumerate(message.parts):
            if isinstance(part, str):
                self._media.check_text(part)
                texts.append(part)
                continue
            following = message.parts[number + 1] if number + 1 < len(message.parts) else ""
            joined = isinstance(following, str) and following[:1] not in ("", "\n")
            texts.append(self._media.inline(part, times) + ("\n" if joined else ""))
        return "".join(texts)

    def probe(self) -> tuple[str, str]:
        """A small prompt and the conversation it begins, for trying the seam between them.

        Raises:
            ConfigError: the template does not render them.
        """
        question = Message("user", ("What is this?",))
        answer = Message("assistant", ("A small cat.",))
        try:
            prompt, _ = self._render_chat((question,), still, opening=True)
            return prompt, self._render_chat((question, answer), still, opening=False)[0]
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
        marks = {"image": self._media.image_mark, "video": self._media.video_mark}
        self._marked = frozenset(
            kind
            for kind, mark in marks.items()
            if mark and self._renders([{"role": "user", "content": [{"type": kind}, part]}], mark)
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


def _media_of(messages: Sequence[Message]) -> list[Media]:
    return [media for message in messages for media in message.media]


def seam(prompt: str, whole: str) -> str:
    """How a prompt ends and how the whole conversation reads there, for an error."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), len(prompt))
    start = max(same - 20, 0)
    return f"the prompt ends {prompt[start:]!r}, the conversation has {whole[start : same + 40]!r}"
