"""Texts in the form in which answers are compared; the rules are those of ``answers.py``."""

import re
import unicodedata
from collections.abc import Iterator

__all__ = ["normalised"]

_OPERATORS = r"[-+*/=<>^\u00d7\u00f7\u00b7\u2212,;:)]"
_ARTICLES = re.compile(rf"\b(?:a|an|the)\b(?!\s*(?:$|{_OPERATORS}))")
_BEHIND = ".,;:?\u3001\u3002 "
"""After NFKC, which makes most signs of other scripts plain; minus, plus, per cent stay."""
_MINUS = "\u2212"
_EMPHASIS = "*` "
_QUOTES = "\"'"
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_BRACKETS = re.compile(r"[()\[\]{}]")
_VALUE = re.compile(r"(?:\d|[)\]}|]|(?<!\w)\w)$")
"""A text whose end a sign behind it may belong to: ``5!``, ``6'``, ``n!``."""
_RAISED = frozenset({"No", "Lm", "Sm", "Ps", "Pe"})
"""Categories of superscripts that raise to a power, unlike those of ordinals and trade marks."""


def normalised(text: str) -> str:
    """The text as it is compared."""
    signs = unicodedata.normalize("NFKC", "".join(_expanded(text)))
    plain = " ".join(signs.replace(_MINUS, "-").lower().split())
    before = None
    while plain != before:
        before = plain
        plain = _without_edges(plain)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _expanded(text: str) -> Iterator[str]:
    """The signs, with superscripts as ``^2`` and fractions as ``1/2``, which NFKC makes digits."""
    raised, before = False, ""
    for sign in text:
        form = unicodedata.decomposition(sign)
        power = form.startswith("<super>") and unicodedata.category(sign) in _RAISED
        if power and not raised:
            yield "^"
        if form.startswith("<fraction>"):
            yield " " if before.isdigit() else ""
            yield unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
        elif form.startswith("<square>"):
            yield from _expanded("".join(chr(int(code, 16)) for code in form.split()[1:]))
        else:
            yield sign
        raised, before = power, sign


def _without_edges(text: str) -> str:
    """One step: what does not belong to the value is taken away from both ends."""
    text = text.lstrip(_EMPHASIS).rstrip(_BEHIND + _EMPHASIS)
    if not text:
        return text
    if text[0] in _QUOTES:
        return text[1:].removesuffix(text[0])
    if text[-1] in _QUOTES + "!" and not _VALUE.search(text[:-1]):
        return text[:-1]
    return _without_brackets(text)


def _without_brackets(text: str) -> str:
    """Without brackets around the whole, or a bracket at an end that is the only one."""
    brackets = _BRACKETS.findall(text)
    if len(brackets) == 1:
        return text.lstrip("([{").rstrip(")]}")
    inner = text[1:-1]
    around = text[-1] == _CLOSING.get(text[0]) and _is_balanced(inner)
    return inner if around and not re.search("[,;]", inner) else text


def _is_balanced(text: str) -> bool:
    waiting = []
    for bracket in _BRACKETS.findall(text):
        if bracket in _CLOSING:
            waiting.append(_CLOSING[bracket])
        elif not waiting or waiting.pop() != bracket:
            return False
    return not waiting
