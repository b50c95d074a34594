"""When an answer counts as the expected one: normalised equality, and letters of multiple choice.

Texts are equal after the same steps: Unicode NFKC, lower case, white space joined, quotes and
opening brackets before and punctuation behind removed, and the words a, an and the removed unless
they are the last one. Synonyms, and "two" and "2", are different: it is an exact match, and a lower
bound of what people would accept.

Multiple choice is scored by the letter that an answer names. Rules, in this order: the answer is a
letter; it begins with a letter in brackets or before a bracket, period or colon; it says "answer
is" or "answer:" and a letter; one letter alone stands in brackets; one capital letter alone stands
in it, where "A" before another word does not count, for it is an article; the text of exactly one
option is the answer, or is in it. No letter is wrong, and is counted.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["letter_of", "normalised", "options_in", "same_answer"]

LETTERS = "ABCDEFGH"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b(?!\s*$)", re.IGNORECASE)
_BEFORE = "\"'([{*` "
_BEHIND = ".,;:!?\"')]}*`\u3001\u3002 "
"""After NFKC, which makes most signs of other scripts plain; minus, plus, per cent stay."""

_LETTER = r"[A-Ha-h]"
_ALONE = re.compile(rf"\(?({_LETTER})\)?[.:)]?")
_LEADING = re.compile(rf"(?:\(({_LETTER})\)|({_LETTER})[).:])(?:\s|$|(?=\*))")
_SAID = re.compile(
    rf"answer\s*(?:is|:)?\s*:?\s*(?:option\s+)?\(?\**({_LETTER})\b(?!')", re.IGNORECASE
)
_BRACKETS = re.compile(rf"\(({_LETTER})\)")
_CAPITAL = re.compile(r"(?<![\w'])([A-H])(?![\w'])")
_ARTICLE = re.compile(r"(?<![\w'])A(?=\s+\w)")
_OPTION = re.compile(r"^\s*\(?([A-H])[).:]\s*(\S.*?)\s*$", re.MULTILINE)


def normalised(text: str) -> str:
    """The text as it is compared."""
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    plain = plain.lstrip(_BEFORE).rstrip(_BEHIND)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def same_answer(answers: Sequence[str], prediction: str) -> bool:
    """Whether the prediction is one of the expected answers, after normalisation."""
    found = normalised(prediction)
    return bool(found) and any(found == normalised(answer) for answer in answers)


def options_in(question: str) -> list[str]:
    """The texts of options that a question lists, one a line, from A on; none if fewer than two."""
    listed = _OPTION.findall(question)
    texts = [text for _, text in listed]
    return (
        texts
        if len(texts) > 1 and [one for one, _ in listed] == list(LETTERS[: len(texts)])
        else []
    )


def letter_of(prediction: str, options: Sequence[str] = ()) -> str | None:
    """The letter that an answer to a question of multiple choice names, by the rules above.

    Args:
        prediction: The answer.
        options: Texts of the options, from A on; letters beyond them do not count.
    """
    text = unicodedata.normalize("NFKC", prediction).strip().strip("*\"' ")
    known = LETTERS[: len(options)] if options else LETTERS
    for letter in _named(text):
        if letter is not None and letter in known:
            return letter
    return _by_text(text, options)


def _named(text: str) -> list[str | None]:
    """What each rule finds, in their order."""
    alone, leading = _ALONE.fullmatch(text), _LEADING.match(text)
    said = _SAID.findall(text)
    capitals = _CAPITAL.findall(_ARTICLE.sub(" ", text))
    return [
        alone[1].upper() if alone else None,
        (leading[1] or leading[2]).upper() if leading else None,
        said[-1].upper() if said else None,
        _only(letter.upper() for letter in _BRACKETS.findall(text)),
        _only(capitals),
    ]


def _only(letters: Iterable[str]) -> str | None:
    distinct = set(letters)
    return distinct.pop() if len(distinct) == 1 else None


def _by_text(text: str, options: Sequence[str]) -> str | None:
    found, texts = normalised(text), [normalised(option) for option in options]
    equal = [place for place, option in enumerate(texts) if option and option == found]
    within = [
        place
        for place, option in enumerate(texts)
        if option and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", found)
    ]
    for places in (equal, within):
        if len(places) == 1:
            return LETTERS[places[0]]
    return None
