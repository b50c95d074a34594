"""TRL's preference type: ``prompt``, ``chosen``, ``rejected`` as text or as lists of messages.

Without a ``prompt`` the messages that ``chosen`` and ``rejected`` begin with alike are the prompt;
of texts, what they begin with alike. Lists that repeat the prompt, as those of UltraFeedback's
binarized set do, are split at the same place. Pictures stand in the content parts, or in a field of
their own.
"""

from operator import eq
from typing import Any

from mmrlhf_engine.sources.preferences.dialog import dialog_turns, is_dialog
from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    both_answers,
    media_list,
    number_field,
    only_pair,
    place_in_front,
    required,
    text_field,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.messages import (
    answer_messages,
    asks_first,
    messages_of,
    tools_of,
)
from mmrlhf_engine.sources.preferences.record import (
    STRING_ROLE,
    BadRecordError,
    Message,
    Preference,
    Response,
)

__all__ = ["FIELDS", "matches", "parse"]

FIELDS = frozenset(
    {"id", "prompt", "chosen", "rejected", *IMAGES, *VIDEOS, "tools", "system"}
    | {"margin", "weight", "score_chosen", "score_rejected"}
)


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    sides = [record.get(key) for key in ("chosen", "rejected")]
    return all(isinstance(side, str) for side in sides) or all(_is_messages(side) for side in sides)


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in value
    )


def parse(record: dict[str, Any]) -> Preference:
    """One row; texts become messages of role ``string``, which the tokeniser knows to treat.

    Raises:
        BadRecordError: it cannot be used.
    """
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS))
    if isinstance(required(record, "chosen"), str):
        prompt, sides = _strings(record, tags)
    else:
        prompt, sides = _conversations(record, tags)
    responses = tuple(
        Response(side, score=number_field(record, f"score_{key}"))
        for key, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    return Preference(tuple(prompt), responses, (only_pair(record),), tools_of(record))


_Sides = list[tuple[Message, ...]]


def _strings(record: dict[str, Any], tags: MediaTags) -> tuple[list[Message], _Sides]:
    sides = [text_field(record, key, f"empty_{key}") for key in ("chosen", "rejected")]
    given = record.get("prompt")
    if given is not None and (_is_messages(given) or record.get("system")):
        return _conversations(record, tags)
    if record.get("system"):
        raise BadRecordError("empty_prompt", "'system', but no 'prompt'")
    if given is None:
        common = _common_start(*sides)
        prompt, sides = sides[0][:common], [side[common:] for side in sides]
        if not prompt.strip():
            raise BadRecordError("empty_prompt", "no 'prompt', and the answers begin differently")
    else:
        prompt = text_field(record, "prompt", "empty_prompt")
    if given is not None and is_dialog(prompt):
        messages = messages_of("prompt", dialog_turns("prompt", prompt), tags)
        answers: _Sides = [(Message("assistant", (side.strip(),)),) for side in sides]
    else:
        messages = [Message(STRING_ROLE, tags.parts_of(prompt))]
        answers = [(Message(STRING_ROLE, (side,)),) for side in sides]
    return place_in_front(messages, tags.rest()), answers


def _common_start(first: str, second: str) -> int:
    """How far two texts are alike, back to the last white space before the first difference."""
    shorter = min(len(first), len(second))
    same = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    while same and not first[same - 1].isspace():
        same -= 1
    return same


def _conversations(record: dict[str, Any], tags: MediaTags) -> tuple[list[Message], _Sides]:
    given = record.get("prompt")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if given is not None and not isinstance(given, list):
        raise wrong_type("prompt", given, "a text or a list of messages")
    sides = {key: required(record, key) for key in ("chosen", "rejected")}
    if given is None or any(asks_first(side) for side in sides.values()):
        given, sides = _split_prompt(given, sides)
    if isinstance(record.get("system"), str) and record["system"]:
        given = [{"role": "system", "content": record["system"]}, *given]
    prompt = messages_of("prompt", given, tags)
    if all(message.empty for message in prompt):
        raise BadRecordError("empty_prompt", "the prompt has no message with content")
    answers = both_answers(
        tags, lambda key, tags: answer_messages(key, sides[key], tags), reads_text=False
    )
    return place_in_front(prompt, tags.rest()), list(answers)


def _split_prompt(
    given: list[Any] | None, sides: dict[str, Any]
) -> tuple[list[Any], dict[str, list[Any]]]:
    """The turns both conversations begin with alike, and what is left of each.

    Beside a prompt that is given, white space in a question makes no difference; the turns are
    those of the chosen side.

    Raises:
        BadRecordError: they begin differently, or otherwise than the prompt that was given.
    """
    for key, side in sides.items():
        if not isinstance(side, list):
            raise wrong_type(key, side, "a list of messages")
    chosen, rejected = sides.values()
    same = 0
    alike = _asked_alike if given is not None else eq
    while same < min(len(chosen), len(rejected)) and alike(chosen[same], rejected[same]):
        same += 1
    if same == min(len(chosen), len(rejected)):
        raise BadRecordError("chosen_is_rejected", "one conversation begins with all of the other")
    common = chosen[:same]
    if asks_first(chosen[same:]) or asks_first(rejected[same:]):
        raise BadRecordError(
            "prompts_differ", f"turn {same + 1} of 'chosen' and of 'rejected' ask different things"
        )
    asked, begun = [_said(turn) for turn in given or []], [_said(turn) for turn in common]
    # A prompt that is text is one of the questions of a longer conversation.
    if asked and asked != begun[-len(asked) :] and (len(asked) > 1 or asked[0] not in begun):
        raise BadRecordError(
            "prompts_differ", "'chosen' and 'rejected' begin with another prompt than 'prompt'"
        )
    return common, {"chosen": chosen[same:], "rejected": rejected[same:]}


def _asked_alike(turn: Any, other: Any) -> bool:
    """Whether two turns are the same, or questions that differ in white space alone."""
    if turn == other:
        return True
    return (
        asks_first([turn])
        and asks_first([other])
        and _without_text(turn) == _without_text(other)
        and _said(turn) == _said(other)
    )


def _without_text(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key not in ("content", "value")}


def _said(turn: Any) -> object:
    """The content of a turn, with single blanks for white space."""
    content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
    return " ".join(content.split()) if isinstance(content, str) else content
