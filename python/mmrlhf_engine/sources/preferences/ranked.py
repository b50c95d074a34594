"""A question with several answers and what each of them got: ranks, scores or ratings.

UltraFeedback and VLFeedback (``completions`` with ``annotations``), Nectar (``answers`` with
``rank``), and sets of distilabel (``generations`` with a list of ``ratings``). Answers of different
rank or score are pairs, answers of equal ones ties.
"""

from typing import Any

from mmrlhf_engine.sources.preferences.columns import prompt_columns, prompt_turns, question_of
from mmrlhf_engine.sources.preferences.dialog import dialog_turns, is_dialog
from mmrlhf_engine.sources.preferences.field_names import check_nested
from mmrlhf_engine.sources.preferences.fields import (
    IMAGES,
    VIDEOS,
    MediaTags,
    finite,
    first_present,
    media_list,
    place_in_front,
    wrong_type,
)
from mmrlhf_engine.sources.preferences.messages import answer_messages, messages_of
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Preference,
    Response,
    pairs_of_ranks,
    ranks_of_scores,
)

__all__ = ["FIELDS", "columns_read", "matches", "parse", "unread_within"]

_LISTS = ("completions", "answers", "responses", "generations", "candidates")
_TEXTS = ("response", "answer", "text", "content", "completion")
_SCORES = ("fine-grained_score", "overall_score", "score", "rating")
_RANKS = ("rank", "ranks", "ranking")
_PARALLEL = ("ratings", "scores", *_RANKS)
_WITHIN = frozenset({*_TEXTS, *_SCORES, *_RANKS, "annotations"})
# UltraFeedback asked each model under another system prompt; no pair has it in common.
_OF_ONE_ANSWER = frozenset({"custom_system_prompt"})
FIELDS = frozenset({"id", *IMAGES, *VIDEOS})


def matches(record: dict[str, Any]) -> bool:
    """Whether a record is of this form."""
    key = first_present(record, _LISTS)
    if key is None or question_of(record) is None or record.get("chosen") is not None:
        return False
    try:
        answers = _answers_of(record, key)
    except BadRecordError:
        return False
    if all(isinstance(answer, str) for answer in answers):
        return first_present(record, _PARALLEL) is not None
    return all(isinstance(answer, dict) and first_present(answer, _TEXTS) for answer in answers)


def columns_read(record: dict[str, Any]) -> frozenset[str]:
    """The columns that :func:`parse` reads of a record, besides :data:`FIELDS`."""
    key = first_present(record, _LISTS)
    objects = key is not None and _are_objects(_answers_of(record, key))
    parallel = None if objects else first_present(record, _PARALLEL)
    return prompt_columns(record) | frozenset(name for name in (key, parallel) if name is not None)


def unread_within(record: dict[str, Any]) -> list[str]:
    """The fields of the answers that :func:`parse` does not read, as ``completions[].model``.

    Raises:
        BadRecordError: one may be a part of the prompt.
    """
    key = first_present(record, _LISTS)
    answers = _answers_of(record, key) if key is not None else []
    names: dict[str, None] = {}
    for answer in answers if _are_objects(answers) else ():
        for name, value in answer.items():
            if name in _WITHIN or value in (None, "", [], {}):
                continue
            if name not in _OF_ONE_ANSWER:
                check_nested(str(name), value)
            names[f"{key}[].{name}"] = None
    return list(names)


def _answers_of(record: dict[str, Any], key: str) -> list[Any]:
    """The answers; an object of lists, as ``datasets`` stores a sequence, as a list of objects."""
    answers = record[key]
    if isinstance(answers, dict) and all(isinstance(items, list) for items in answers.values()):
        lengths = {name: len(items) for name, items in answers.items()}
        if len(set(lengths.values())) != 1:
            raise BadRecordError(
                "wrong_length", f"the lists of {key!r} differ in length: {lengths}"
            )
        rows = zip(*answers.values(), strict=True)
        return [dict(zip(answers, row, strict=True)) for row in rows]
    if not isinstance(answers, list):
        raise wrong_type(key, answers, "a list of answers")
    return answers


def _are_objects(answers: list[Any]) -> bool:
    return bool(answers) and all(isinstance(answer, dict) for answer in answers)


def parse(record: dict[str, Any]) -> Preference:
    """One row, with every pair its ranks or scores stand for.

    Raises:
        BadRecordError: it cannot be used.
    """
    key = first_present(record, _LISTS)
    if key is None:
        raise BadRecordError("missing_key", f"no answers; one of {', '.join(_LISTS)} is expected")
    answers = _answers_of(record, key)
    tags = MediaTags(media_list(record, *IMAGES), media_list(record, *VIDEOS), tagged=True)
    turns = prompt_turns(record)
    only = turns[0] if len(turns) == 1 and isinstance(turns[0], dict) else {}
    if is_dialog(str(only.get("content"))):
        turns = dialog_turns("prompt", str(only["content"]))
    prompt = place_in_front(messages_of("prompt", turns, tags), tags.rest())
    ranks, scores = _judgements(record, key, answers)
    responses = tuple(
        Response(
            answer_messages(
                f"{key}[{number}]", _text_of(answer), MediaTags(), empty="empty_response"
            ),
            rank,
            score,
        )
        for number, (answer, rank, score) in enumerate(zip(answers, ranks, scores, strict=True))
    )
    return Preference(tuple(prompt), responses, tuple(pairs_of_ranks(ranks)))


def _text_of(answer: Any) -> Any:
    if not isinstance(answer, dict):
        return answer
    key = first_present(answer, _TEXTS)
    return answer[key] if key is not None else ""


def _judgements(
    record: dict[str, Any], key: str, answers: list[Any]
) -> tuple[list[int | None], list[float | None]]:
    """The rank and the score of each answer; ranks are those of the scores where none are given."""
    parallel = first_present(record, _PARALLEL)
    if _are_objects(answers):
        ranks = [_number(answer, _RANKS) for answer in answers]
        scores = [_score(answer) for answer in answers]
    else:
        none: list[float | None] = [None] * len(answers)
        values = record[parallel] if parallel is not None else None
        if not isinstance(values, list) or len(values) != len(answers):
            raise BadRecordError("wrong_length", f"{parallel!r} has no item for each of {key!r}")
        given = [None if value is None else finite(str(parallel), value) for value in values]
        ranks, scores = (given, none) if parallel in _RANKS else (none, given)
    if all(rank is None for rank in ranks):
        return ranks_of_scores(scores), scores
    if not all(rank is None or (rank.is_integer() and abs(rank) < 2**15) for rank in ranks):
        raise BadRecordError("bad_rank", f"a rank in {key!r} is no whole number")
    return [None if rank is None else int(rank) for rank in ranks], scores


def _score(answer: dict[str, Any]) -> float | None:
    """The mean of the ratings of its aspects, else its score as a whole."""
    aspects = answer.get("annotations")
    if isinstance(aspects, dict):
        ratings = [_rating(aspect) for aspect in aspects.values()]
        known = [rating for rating in ratings if rating is not None]
        if known and len(known) == len(ratings):
            return sum(known) / len(known)
    return _number(answer, _SCORES)


def _rating(aspect: Any) -> float | None:
    """A rating from 1 to 5, also as text; ``N/A`` is none."""
    rating = aspect.get("Rating") if isinstance(aspect, dict) else None
    try:
        return None if rating is None else finite("Rating", float(rating))
    except (TypeError, ValueError):
        return None


def _number(answer: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    key = first_present(answer, keys)
    return None if key is None else finite(key, answer[key])
