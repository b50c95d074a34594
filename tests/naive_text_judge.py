"""Whether two texts ask the same, written plainly: the specification of the core's text judge.

Two texts ask the same if every token that differs is explained: courtesy, function words, listed
synonyms, inflections and spellings, slips of the fingers, words joined or parted, sentences moved.
The word lists are the core's own files. Texts that are not English must have equal tokens.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from naive_text_tokens import Scanner, Token, is_mark, normalise

DATA = Path(__file__).parent.parent / "rust_core/src/judge/text/data"

# --- what is known of English


class Word(NamedTuple):
    lemma: str
    meaning: str
    flags: frozenset[str]


class Lexicon:
    """``data/words.txt``, ``data/variants.txt`` and ``data/english.txt``."""

    def __init__(self) -> None:
        self.sections = read_sections((DATA / "english.txt").read_text(encoding="utf-8"))
        self.flags: dict[str, set[str]] = {}
        for line in (DATA / "words.txt").read_text(encoding="utf-8").split():
            self.flags[line.removesuffix("+")] = {"known"}
        names = ("free", "function", "strong", "negation", "protected", "requests", "contracted")
        for name in names:
            for word in self.sections[name]:
                self.flags.setdefault(word, set()).update({name, "known"})
        for word in self.sections["free"]:
            self.flags[word].add("function")
        for entry in self.sections["courtesy"] + self.sections["closing"]:
            for word in entry.split():
                self.flags.setdefault(word, set()).add("known")
        self.variants = dict(
            line.split()
            for line in (DATA / "variants.txt").read_text(encoding="utf-8").splitlines()
        )
        self.variants |= self.firsts("inflections")
        self.synonyms = self.firsts("synonyms")
        for word in self.firsts("inflections") | self.synonyms:
            self.flags.setdefault(word, set()).add("known")
        phrases = self.sections["courtesy"] + self.sections["closing"]
        empty = {word for phrase in phrases for word in phrase.split()}
        empty |= {w for w, f in self.flags.items() if f & {"function", "negation", "contracted"}}
        self.empty = {self.look_up(word).meaning for word in empty if word != "~"}
        self.numbers = dict(entry.split() for entry in self.sections["numbers"])
        self.courtesy, self.closing = (
            sorted((self.phrase(entry) for entry in self.sections[name]), key=lambda p: -len(p[0]))
            for name in ("courtesy", "closing")
        )

    def firsts(self, section: str) -> dict[str, str]:
        """Every word of an entry, with the first word of it."""
        words = (entry.split() for entry in self.sections[section])
        return {word: entry[0] for entry in words for word in entry}

    def phrase(self, entry: str) -> tuple[list[str], bool]:
        words = [word for word in entry.split() if word != "~"]
        return [self.look_up(word).meaning for word in words], entry.endswith("~")

    def look_up(self, word: str) -> Word:
        if word not in self.flags:
            return Word(word, word, frozenset())
        lemma = self.lemma(word)
        return Word(lemma, self.synonyms.get(lemma, lemma), frozenset(self.flags[word]))

    def lemma(self, word: str) -> str:
        word = self.variant(word)
        if "protected" in self.flags.get(word, ()) or word in self.synonyms:
            return word
        return self.variant(self.singular(word))

    def variant(self, word: str) -> str:
        plain = without_accents(word)
        word = plain if plain in self.flags else word
        return self.variants.get(word, word)

    def singular(self, word: str) -> str:
        if (
            not word.endswith("s")
            or word.endswith(("ss", "us", "is"))
            or word in self.sections["singular"]
            or "function" in self.flags.get(word, ())
        ):
            return word
        endings = [("ies", "y")] if word.endswith("ies") else []
        endings += [("es", "")] if re.search("[sxzho]es$", word) else []
        for old, new in [*endings, ("s", "")]:
            stem = word.removesuffix(old) + new
            flags = self.flags.get(stem, set())
            if len(stem) >= 3 and flags and not flags & {"protected", "function", "negation"}:
                return stem
        return word


def read_sections(text: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            entries = sections.setdefault(line[1:].partition("]")[0], [])
        elif line and not line.startswith("#"):
            entries += [entry.strip() for entry in line.split(", ")]
    return sections


@cache
def english() -> Lexicon:
    return Lexicon()


def without_accents(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", word) if not is_mark(c))


# --- one text


@dataclass(frozen=True)
class Prepared:
    tokens: tuple[Token, ...]
    questions: tuple[bool, ...]
    english: bool

    def spelling(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens)

    def hard(self) -> Counter[str]:
        return Counter(token.text for token in self.tokens if token.is_hard())


def prepare(text: str, known: frozenset[str] = frozenset()) -> Prepared:
    """``known``: words of the corpus that no list has."""
    scanner = Scanner(normalise(text))
    scanner.run()
    if not is_english(scanner.tokens):
        tokens = [without_word_lists(token) for token in scanner.tokens]
        return Prepared(tuple(tokens), tuple(scanner.questions), False)
    tokens = [with_word_lists(token, known) for token in scanner.tokens]
    for at in range(1, len(tokens)):
        if tokens[at].text in ("few", "little", "lot") and tokens[at - 1].text == "a":
            tokens[at - 1] = replace(tokens[at - 1], flags=tokens[at - 1].flags - {"free"})
    sentences = [mark_courtesy(list(s)) for _, s in groupby(tokens, lambda t: t.sentence)]
    return Prepared(tuple(t for s in sentences for t in s), tuple(scanner.questions), True)


def is_english(tokens: list[Token]) -> bool:
    """At least three of five words are known, and a longer text has a word of English grammar."""
    words = [english().look_up(t.text) for t in tokens if t.kind == "word" and not t.identifier]
    known = sum(bool(word.flags) for word in words)
    strong = sum("strong" in word.flags for word in words)
    characters = sum(token.kind == "character" for token in tokens)
    return (
        bool(words)
        and 2 * characters <= len(words)
        and 5 * known >= 3 * len(words)
        and (len(words) < 6 or 20 * strong >= len(words))
    )


def without_word_lists(token: Token) -> Token:
    text = token.text.lower() if token.between_words else token.text
    return replace(token, text=text, lemma=text, meaning=text)


def with_word_lists(token: Token, known: frozenset[str]) -> Token:
    text = token.text
    if token.kind != "word":
        return replace(token, lemma=text, meaning=text)
    digits = english().numbers.get(text)
    if digits is not None:
        return replace(token, text=digits, kind="number", lemma=digits, meaning=digits)
    word = english().look_up(text)
    if not word.flags:
        plain = english().look_up(without_accents(text))
        if plain.flags:
            word = plain
        elif text in known:
            word = word._replace(flags=frozenset({"known"}))
    # Grammar and courtesy begin with a capital behind a comma too, and are no names.
    name = token.name and not (word.flags and word.meaning in english().empty)
    token = replace(token, name=name)
    return replace(token, lemma=word.lemma, meaning=word.meaning, flags=word.flags)


def mark_courtesy(sentence: list[Token]) -> list[Token]:
    """Phrases of courtesy from both edges inwards."""

    def matches(tokens: list[Token], meanings: list[str]) -> bool:
        return len(tokens) >= len(meanings) and all(
            t.meaning == m and t.kind == "word" and t.fixed is None
            for t, m in zip(tokens, meanings, strict=False)
        )

    start = 0
    while True:
        lengths = (
            len(meanings)
            for meanings, before_request in english().courtesy
            if matches(sentence[start:], meanings)
            and (not before_request or has_request(sentence[start + len(meanings) :]))
        )
        length = next(lengths, 0)
        if not length:
            break
        start += length
    end = len(sentence)
    while True:
        lengths = (
            len(meanings)
            for meanings, _ in english().closing
            if end - len(meanings) >= start
            and sum(not t.is_free() for t in sentence[start : end - len(meanings)]) >= 2
            and matches(sentence[end - len(meanings) : end], meanings)
        )
        length = next(lengths, 0)
        if not length:
            break
        end -= length
    return [replace(token, courtesy=not start <= at < end) for at, token in enumerate(sentence)]


def has_request(tokens: list[Token]) -> bool:
    return bool(tokens) and "requests" in tokens[0].flags


# --- two words


def same_word(a: Token, b: Token) -> str | None:
    """Why two words of different spelling mean the same, if they do."""
    if a.kind != "word" or b.kind != "word" or a.fixed or b.fixed:
        return None
    if "negation" in a.flags | b.flags:
        return None
    if a.lemma == b.lemma:
        return "inflection or spelling"
    if a.meaning == b.meaning:
        return "synonym"
    if ("known" in a.flags) == ("known" in b.flags):
        return None
    typed, word = (b, a) if "known" in a.flags else (a, b)
    return "typo" if is_typo(typed.text, word.text, "function" in word.flags) else None


def is_typo(typed: str, word: str, is_function: bool) -> bool:
    longest = max(len(typed), len(word))
    if not (typed + word).isalpha() or typed[0] != word[0] or longest > 32:
        return False
    if longest <= 3:
        swapped = {
            typed[:at] + typed[at + 1] + typed[at] + typed[at + 2 :] for at in range(len(typed) - 1)
        }
        return longest == 3 and is_function and word in swapped
    return word in OneSlip(typed) or (
        longest >= 8 and any(word in OneSlip(once) for once in slips_behind_first(typed))
    )


KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def neighbours(key: str) -> str:
    rows = (row for row in KEYBOARD if key in row)
    return "".join(
        row[max(row.index(key) - 1, 0) : row.index(key) + 2].replace(key, "") for row in rows
    )


class OneSlip:
    """The words that one slip of the fingers makes of another."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __contains__(self, other: str) -> bool:
        word = self.word
        if len(word) == len(other):
            swapped = (
                word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)
            )
            keyed = (
                word[:i] + k + word[i + 1 :] for i, c in enumerate(word) for k in neighbours(c)
            )
            return other != word and (other in swapped or other in keyed)
        short, long = sorted((word, other), key=len)
        return len(short) + 1 == len(long) and any(
            long[:i] + long[i + 1 :] == short for i in range(len(long))
        )


def slips_behind_first(word: str) -> list[str]:
    """A letter lost, doubled, swapped with the next, or a neighbouring key."""
    found = []
    for at in range(1, len(word)):
        head, this, tail = word[:at], word[at], word[at + 1 :]
        found += [head + tail, head + word[at - 1] + this + tail]
        found += [head + tail[0] + this + tail[1:]] if tail else []
        found += [head + key + tail for key in neighbours(this)]
    return found


# --- two texts


class Difference(NamedTuple):
    left: str
    right: str
    why: str


class Verdict(NamedTuple):
    same: bool
    differences: list[Difference]


EXPLAINED = {
    "synonym", "inflection or spelling", "typo", "joined words", "courtesy", "function word",
    "moved sentences",
}  # fmt: skip
LARGEST_TABLE = 1 << 18


def is_explained(differences: list[Difference]) -> bool:
    return all(difference.why in EXPLAINED for difference in differences)


def same_question(a: Prepared, b: Prepared) -> Verdict:
    if a.spelling() == b.spelling():
        return Verdict(True, [])
    if not (a.english and b.english):
        return Verdict(False, [Difference("", "", "not English")])
    if a.hard() != b.hard():
        return Verdict(False, [Difference("", "", "number, sign or negation")])
    found = differences(list(a.tokens), list(b.tokens))
    if is_explained(found):
        return Verdict(True, found)
    moved = in_order_of(a, b)
    if moved is not None:
        again = differences(list(a.tokens), moved)
        if is_explained(again):
            return Verdict(True, [*again, Difference("", "", "moved sentences")])
    return Verdict(False, found)


def differences(a: list[Token], b: list[Token]) -> list[Difference]:
    """Those of the cheapest alignment: 10 points for what is explained, 1000 for what is not."""
    shorter = min(len(a), len(b))
    while a and b and a[0].text == b[0].text:
        a, b = a[1:], b[1:]
    while a and b and a[-1].text == b[-1].text:
        a, b = a[:-1], b[:-1]
    if len(a) * len(b) > LARGEST_TABLE:
        return [Difference("", "", "too long to align")]
    found = align(a, b)
    function = [difference for difference in found if difference.why == "function word"]
    gone = sum(not difference.right for difference in function)
    if abs(2 * gone - len(function)) > max(2, shorter // 5):
        found.append(Difference("", "", "too many function words"))
    return found


def align(a: list[Token], b: list[Token]) -> list[Difference]:
    best: dict[tuple[int, int], tuple[int, tuple[int, int], Difference | None]] = {}
    best[0, 0] = (0, (0, 0), None)
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            offers = list(steps(a[:i], b[:j])) if i + j else []
            totals = [
                (best[i - x, j - y][0] + cost, (i - x, j - y), difference)
                for x, y, cost, difference in offers
            ]
            if totals:
                best[i, j] = min(totals, key=lambda total: total[0])
    found = []
    place = (len(a), len(b))
    while place != (0, 0):
        _, place, difference = best[place]
        if difference is not None:
            found.append(difference)
    return found[::-1]


def steps(a: list[Token], b: list[Token]) -> list[tuple[int, int, int, Difference | None]]:
    """How the last tokens may be aligned: how many of each text, the cost, and the difference."""
    found: list[tuple[int, int, int, Difference | None]] = []
    if a and b:
        why = same_word(a[-1], b[-1])
        if a[-1].text == b[-1].text:
            found.append((1, 1, 0, None))
        elif why:
            found.append((1, 1, 10, Difference(a[-1].text, b[-1].text, why)))
        if len(a) > 1 and is_joined(a[-2], a[-1], b[-1]):
            found.append(
                (2, 1, 10, Difference(f"{a[-2].text} {a[-1].text}", b[-1].text, "joined words"))
            )
        if len(b) > 1 and is_joined(b[-2], b[-1], a[-1]):
            found.append(
                (1, 2, 10, Difference(a[-1].text, f"{b[-2].text} {b[-1].text}", "joined words"))
            )
    costs = {"courtesy": 4, "function word": 8}
    if a:
        why = why_lone(a[-1])
        found.append((1, 0, costs.get(why, 1000), Difference(a[-1].text, "", why)))
    if b:
        why = why_lone(b[-1])
        found.append((0, 1, costs.get(why, 1000), Difference("", b[-1].text, why)))
    if a and b:
        kinds = [kind_of_lone(a[-1]), kind_of_lone(b[-1])]
        why = kinds[1] if kinds[0] == "another word" else kinds[0]
        found.append((1, 1, 1900, Difference(a[-1].text, b[-1].text, why)))
    return found


def why_lone(token: Token) -> str:
    if token.courtesy:
        return "courtesy"
    return "function word" if token.is_free() else kind_of_lone(token)


def kind_of_lone(token: Token) -> str:
    if token.kind == "number":
        return "number"
    if token.kind in ("sign", "bracket", "variable"):
        return "sign"
    return "negation" if "negation" in token.flags else token.fixed or "another word"


def is_joined(first: Token, second: Token, whole: Token) -> bool:
    """A known compound of words that are no function words, or a space forgotten."""
    words = (first, second, whole)
    if any(t.kind != "word" or t.fixed or "negation" in t.flags for t in words):
        return False
    if (first.text + second.text).replace("'", "") != whole.text.replace("'", ""):
        return False
    if "known" not in whole.flags and "known" in first.flags and "known" in second.flags:
        return True
    grammar = "function" in first.flags | second.flags
    return not grammar and min(len(first.text.encode()), len(second.text.encode())) > 1


INSTRUCTIONS = [
    "answer", "respond", "reply", "justify", "think", "keep", "explain", "be", "output", "return",
]  # fmt: skip


def in_order_of(a: Prepared, b: Prepared) -> list[Token] | None:
    """The tokens of b with its sentences in the order of a, if that order may differ and does."""
    left, right = roles(a), roles(b)
    if left is None or right is None or len(left) < 2 or len(left) != len(right):
        return None
    for role in ("told", "asked"):
        if [c for r, c, _ in left if r == role] != [c for r, c, _ in right if r == role]:
            return None
    if Counter(x[:2] for x in left) != Counter(x[:2] for x in right):
        return None
    if [c for _, c, _ in left] == [c for _, c, _ in right]:
        return None
    rest = list(right)
    tokens: list[Token] = []
    for sentence in left:
        match = next(other for other in rest if other[:2] == sentence[:2])
        rest.remove(match)
        tokens += match[2]
    return tokens


def roles(text: Prepared) -> list[tuple[str, tuple[str, ...], list[Token]]] | None:
    """Of every sentence its role, its content and its tokens; None if one is too short to move."""
    found = []
    for _, group in groupby(text.tokens, lambda token: token.sentence):
        tokens = list(group)
        content = [token for token in tokens if not token.courtesy and not token.is_free()]
        if not content:
            continue
        first = next(token for token in tokens if not token.courtesy)
        asked = text.questions[first.sentence]
        instruction = first.text in INSTRUCTIONS
        role = "asked" if asked else "instruction" if instruction else "told"
        if len(content) < 3 and role != "instruction":
            return None
        found.append((role, tuple(token.meaning for token in content), tokens))
    return found
