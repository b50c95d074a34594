"""ms-swift: ``messages`` that end with the chosen answer, and ``rejected_response``.

The answer is what follows the last message of the user or of a tool. ``rejected_response`` takes
its place: a text, a list of texts, each of which is rejected, or a list of messages. The rejected
side may also be ``rejected_messages``, a conversation of its own. ``<image>`` and ``<video>`` in
the text stand for ``images`` and ``videos``; ``rejected_images`` are those of the rejected
conversation. They may be others than the chosen ones, in the prompt or in the answer; without a
rejected answer, the same one is rejected with these media. POVID's rows have the same form:
``conversations`` and ``rejected_conversations``.
"""

from typing import Any

from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    first_present,
    media_list,
    only_pair,
    place_in_front,
    required,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.messages import messages_of, tools_of
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Media,
    Message,
    Pair,
    Preference,
    Response,
)

__all__ = ["FIELDS", "history_turns", "matches", "parse"]

_CHOSEN = ("messages", "conversations")
_REJECTED_CONVERSATION = ("rejected_messages", "rejected_conversations")
_REJECTED_MEDIA = ("rejected_images", "rejected_videos")
FIELDS = frozenset(
    {"id", *_CHOSEN, "system", "history", "query", "response", "rejected_response", "tools"}
    | {*_REJECTED_CONVERSATION, *IMAGES, *VIDEOS, *_REJECTED_MEDIA}
    | {"margin", "weight"}
)
_REJECTED = frozenset({"rejected_response", *_REJECTED_CONVERSATION, *_REJECTED_MEDIA})


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    conversation = first_present(record, _CHOSEN) or {"query", "response"} <= record.keys()
    return bool(conversation) and not record.keys().isdisjoint(_REJECTED)


def parse(record: dict[str, Any]) -> Preference:
    """One row.

    Raises:
        BadRecordError: it cannot be used.
    """
    chosen = _messages(record)
    images, videos = media_list(record, *IMAGES), media_list(record, *VIDEOS)
    other_images, other_videos = (
        media_list(record, f"rejected_{key}") or own
        for key, own in (("images", images), ("videos", videos))
    )
    prompt, answer = _split("chosen", chosen, MediaTags(images, videos, tagged=True))
    responses = [Response(answer)]
    for conversation in _rejected(record, chosen):
        tags = MediaTags(other_images, other_videos, tagged=True)
        other_prompt, other = _split("rejected", conversation, tags)
        instead = _other_media(prompt, other_prompt)
        if instead and any(message.media for message in other):
            raise BadRecordError(
                "prompts_differ",
                "the rejected side has other media in the prompt and more in its answer",
            )
        responses.append(Response(other, instead=instead))
    own = only_pair(record)
    pairs = tuple(
        Pair(0, number, margin=own.margin, weight=own.weight) for number in range(1, len(responses))
    )
    return Preference(tuple(prompt), tuple(responses), pairs, tools_of(record))


def _other_media(prompt: list[Message], other: list[Message]) -> tuple[Media, ...]:
    """The media of the second prompt where they differ; all else must be the same."""
    if prompt == other:
        return ()

    def shape(messages: list[Message]) -> list[tuple[str, list[str], str]]:
        return [
            (
                message.role,
                [part if isinstance(part, str) else part.kind for part in message.parts],
                message.extras,
            )
            for message in messages
        ]

    if shape(prompt) != shape(other):
        raise BadRecordError(
            "prompts_differ", "the rejected conversation has other turns, or more or fewer media"
        )
    return tuple(media for message in other for media in message.media)


def history_turns(record: dict[str, Any]) -> list[dict[str, Any]]:
    """``system`` and ``history``, a list of questions with their answers, as messages.

    Raises:
        BadRecordError: ``history`` is not of that form.
    """
    turns = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise wrong_type("history", history, "a list of questions with their answers")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise wrong_type("history", turn, "pairs of a question and its answer")
        turns += [
            {"role": role, "content": said}
            for role, said in zip(("user", "assistant"), turn, strict=True)
        ]
    return turns


def _messages(record: dict[str, Any]) -> list[Any]:
    key = first_present(record, _CHOSEN)
    if key is None:
        turns = [("user", required(record, "query")), ("assistant", required(record, "response"))]
        asked = [{"role": role, "content": text} for role, text in turns]
        return [*history_turns(record), *asked]
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        raise wrong_type(key, messages, "a list of messages")
    return [*history_turns(record), *messages]


def _rejected(record: dict[str, Any], chosen: list[Any]) -> list[list[Any]]:
    """The rejected conversations, whole."""
    key = first_present(record, _REJECTED_CONVERSATION)
    if key is not None:
        messages = record[key]
        if not isinstance(messages, list):
            raise wrong_type(key, messages, "a list of messages")
        return [[*history_turns(record), *messages]]
    asked = chosen[: _start_of_answer(chosen)]
    given = record.get("rejected_response")
    if given is None and first_present(record, _REJECTED_MEDIA):
        return [chosen]
    if not isinstance(given, list):
        given = [text_field(record, "rejected_response", "empty_rejected")]
    if given and all(isinstance(turn, dict) for turn in given):
        return [[*asked, *given]]
    if not given or not all(isinstance(text, str) and text.strip() for text in given):
        raise BadRecordError("empty_rejected", "'rejected_response' holds an answer without text")
    return [[*asked, {"role": "assistant", "content": text}] for text in given]


def _start_of_answer(conversation: list[Any]) -> int:
    """How many messages there are up to the last one that is not the assistant's own."""
    own = ("assistant", "gpt", "model", "function_call", "tool_call")
    end = len(conversation)
    while end and isinstance(conversation[end - 1], dict):
        message = conversation[end - 1]
        if message.get("role", message.get("from")) not in own:
            break
        end -= 1
    return end


def _split(
    key: str, conversation: list[Any], tags: MediaTags
) -> tuple[list[Message], tuple[Message, ...]]:
    """The prompt with its media, and the messages of the answer."""
    start = _start_of_answer(conversation)
    messages = place_in_front(messages_of(key, conversation, tags), tags.rest())
    prompt, answer = messages[:start], tuple(messages[start:])
    if not answer:
        raise BadRecordError(f"empty_{key}", f"the last message is of the {messages[-1].role}")
    if all(message.empty for message in answer):
        raise BadRecordError(f"empty_{key}", "the last message is empty")
    if all(message.empty for message in prompt):
        raise BadRecordError("empty_prompt", "there is no message before the answer")
    return prompt, answer
