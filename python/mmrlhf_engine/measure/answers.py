"""When an answer counts as the expected one: normalised equality, and letters of multiple choice.

Texts are equal after the same steps: Unicode NFKC, but a superscript is written with ``^`` and a
fraction with ``/``; lower case; white space joined; quotes, marks of emphasis and brackets around
the whole and punctuation behind removed; and the words a, an and the removed before another word.
What may be part of a value stays: brackets around a text with commas (intervals, points, lists) or
of two kinds, and ``!`` and quotes right behind a digit, a bracket or a letter alone. Synonyms, and
"two" and "2", are different: it is an exact match, and a lower bound of what people would accept.

Multiple choice is scored by the letter that an answer names. Rules, in this order: the answer is a
letter; it begins with a letter in brackets or before a bracket, period or colon; it says "answer
is" or "answer:" and a letter, or "answer" and a capital one; one letter alone stands in brackets;
one capital letter alone stands in it; the text of exactly one option is the answer, or is in it. A
small a or i before another word is a word, and so are A and I but behind "answer is" or "answer:".
Letters beyond the options do not count. No letter is wrong, and is counted.
"""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence

from mmrlhf_engine.measure.plain_text import normalised

__all__ = ["LETTERS", "UNLISTED", "letter_of", "options_in", "same_answer"]

LETTERS = string.ascii_uppercase
"""Of options, in their order."""
UNLISTED = LETTERS[:10]
"""Where the options are not known, since they are in the picture: MMMU-Pro has up to ten."""

_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_LEADING = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])(?:\s|$|(?=\*))")
_BEFORE_A_WORD = r"\s+(?!because\b|since\b)\w"
_MARKS = r"[*\s]*(?:[Oo]ption\s+)?[(*]*"
_SAID = re.compile(
    rf"\b[Aa](?i:nswer)(?:\s*:|\s+(?i:is)\b\s*:?){_MARKS}(?![ai]{_BEFORE_A_WORD})([A-Za-z])\b(?!')"
    rf"|\b[Aa](?i:nswer)\s+{_MARKS}(?![AI]{_BEFORE_A_WORD})([A-Z])\b(?!')"
)
_BRACKETS = re.compile(r"\(([A-Za-z])\)")
_CAPITAL = re.compile(r"(?<![\w'])(?![AI]" + _BEFORE_A_WORD + r")([A-Z])(?![\w'])")
_OPTION = re.compile(r"^\s*\(?([A-Za-z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)


def same_answer(answers: Sequence[str], prediction: str) -> bool:
    """Whether the prediction is one of the expected answers, after normalisation."""
    found = normalised(prediction)
    return bool(found) and any(found == normalised(answer) for answer in answers)


def options_in(question: str) -> list[str]:
    """The texts of options that a question lists, one a line, from A or a on; none if under two."""
    listed = _OPTION.findall(question)
    letters, texts = "".join(letter for letter, _ in listed), [text for _, text in listed]
    in_order = letters in (LETTERS[: len(texts)], LETTERS[: len(texts)].lower())
    return texts if len(texts) > 1 and in_order else []


def letter_of(prediction: str, options: Sequence[str] = ()) -> str | None:
    """The letter that an answer to a question of multiple choice names, by the rules above.

    Args:
        prediction: The answer.
        options: Texts of the options, from A on; letters beyond them do not count. Where there are
            none, those of :data:`UNLISTED` count.
    """
    text = unicodedata.normalize("NFKC", prediction).strip().strip("*\"' ")
    known = LETTERS[: len(options)] if options else UNLISTED
    for letters in _named(text):
        counted = [letter.upper() for letter in letters if letter.upper() in known]
        if len(set(counted)) == 1:
            return counted[0]
    return _by_text(text, options)


def _named(text: str) -> Iterable[list[str]]:
    """The letters that each rule finds, in the order of the rules; of "answer is" the last one."""
    alone, leading = _ALONE.fullmatch(text), _LEADING.match(text)
    yield [alone[1]] if alone else []
    yield [leading[1] or leading[2]] if leading else []
    yield [first or second for first, second in _SAID.findall(text)][-1:]
    yield _BRACKETS.findall(text)
    yield _CAPITAL.findall(text)


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
