"""Text in normal form and as tokens: the first half of the reference of the text judge."""
# ruff: noqa: RUF001

import re
import unicodedata
from dataclasses import dataclass, replace
from itertools import pairwise

RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
FORMS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f«»", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u2014\u2015", " ")
    | dict.fromkeys("\u2044÷", "/")
    | dict.fromkeys("×·⋅∙", "*")
    | {"≠": "!=", "≤": "<=", "≥": ">=", "\u2028": "\n", "\u2029": "\n"}
    | dict.fromkeys("\xad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\ufe0f", "")
)


def normalise(text: str) -> str:
    for table, sign in ((RAISED, "^"), (LOWERED, "_")):
        run = f"[{''.join(table)}]+"
        text = re.sub(run, lambda m, t=table, s=sign: s + "".join(t[c] for c in m[0]), text)  # type: ignore[misc]
    text = re.sub("(?<=[0-9])(?=[¼-¾⅐-⅟↉])", " ", text).replace("º", "°")
    text = unicodedata.normalize("NFKC", text).translate(FORMS)
    text = "".join(" " if c != "\n" and (c.isspace() or is_control(c)) else c for c in text)
    return re.sub(" *\n[ \n]*", "\n", re.sub(" +", " ", text)).strip(" \n")


def is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"


# --- tokens


@dataclass(frozen=True)
class Token:
    text: str
    kind: str
    """word, variable, number, sign, bracket or character"""
    sentence: int
    name: bool = False
    quoted: bool = False
    identifier: bool = False
    between_words: bool = False
    lemma: str = ""
    meaning: str = ""
    flags: frozenset[str] = frozenset()
    courtesy: bool = False

    @property
    def fixed(self) -> str | None:
        """Why it is never explained away, if it is not."""
        named = "name" if self.name else None
        return "quoted" if self.quoted else "identifier" if self.identifier else named

    def is_hard(self) -> bool:
        return self.kind != "word" or "negation" in self.flags

    def is_free(self) -> bool:
        return "free" in self.flags and self.fixed is None


UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
PUNCTUATION = re.compile(
    "[!-/:-@\\[-`{-~¡§¶¿\u037e\u0387\u055a-\u055f\u0589\u058a\u05be\u05c0\u05c3\u05f3\u05f4"
    "\u0609-\u060d\u061b-\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e4f\u0e5a\u0e5b\u1361-\u1368\u17d4-\u17da"
    "\u2010-\u2027\u2030-\u205e\u3000-\u303f\u30fb]"
)
SENTENCE_ENDS = "。\u061f\u061b\u06d4\u0964\u0965"
PAIRS = ("!=", "==", "<=", ">=", "->", "**", "&&", "||")
CONTRACTIONS = {
    "won't": "will not", "wont": "will not", "can't": "can not", "cannot": "can not",
    "cant": "can not", "shan't": "shall not", "let's": "let us",
}  # fmt: skip
ENDINGS = {"s": "'s", "re": "are", "ve": "have", "ll": "will", "m": "am", "d": "would"}
UNMARKED = [
    "aren", "isn", "wasn", "weren", "don", "doesn", "didn", "hasn", "haven", "hadn", "couldn",
    "wouldn", "shouldn", "mustn", "needn", "ain",
]  # fmt: skip


def is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def is_letter(character: str) -> bool:
    return character.isalpha() or is_mark(character)


def is_in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or is_mark(character)


class Scanner:
    """Tokens of a text in normal form, and of every sentence whether it is a question."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.tokens: list[Token] = []
        self.questions = [False]
        self.quote: str | None = None
        self.emphasis: set[int] = set()
        cased = [c for c in text if c.isupper() or c.islower()]
        self.one_case = all(c.isupper() for c in cased) or all(c.islower() for c in cased)
        letters = "".join("a" if c.isalpha() else " " for c in text)
        starts = [word.start() for word in re.finditer("aa+", letters)]
        capitals = sum(text[start].isupper() for start in starts)
        self.capitals_mean = not self.one_case and 5 * capitals < 3 * len(starts)

    def peek(self, offset: int) -> str:
        place = self.at + offset
        return self.text[place] if 0 <= place < len(self.text) else "\n"

    def run(self) -> None:
        while self.at < len(self.text):
            character = self.text[self.at]
            point = character == "." and self.peek(-1) != "." and not is_in_word(self.peek(-1))
            if character == "\n":
                self.end_sentence(False)
                self.quote = None
                self.at += 1
            elif is_digit(character) or (point and is_digit(self.peek(1))):
                self.number()
            elif is_letter(character):
                self.word()
            else:
                self.sign(character)
        self.drop_plain_brackets()

    def push(self, text: str, kind: str, **more: bool) -> None:
        quoted = self.quote is not None
        self.tokens.append(Token(text, kind, len(self.questions) - 1, quoted=quoted, **more))

    def starts_sentence(self) -> bool:
        return not self.tokens or self.tokens[-1].sentence != len(self.questions) - 1

    def end_sentence(self, question: bool) -> None:
        if not self.starts_sentence():
            self.questions[-1] |= question
            self.questions.append(False)
        elif question and len(self.questions) > 1:
            self.questions[-2] = True

    def number(self) -> None:
        start = self.at
        found = re.compile(r"\.?[0-9]+(?:[.,:/][0-9]+)*").match(self.text, start)
        assert found is not None
        digits = found[0]
        self.at = found.end()
        opened = start > 0 and self.text[start - 1] in "([{"
        if not opened and re.fullmatch("[0-9]{1,3}(,[0-9]{3})+", digits):
            digits = digits.replace(",", "")
        self.push("0" + digits if digits.startswith(".") else digits, "number")

    def word(self) -> None:
        start = self.at
        end = self.abbreviation()
        if end:
            letters = self.text[start:end].replace(".", "")
            name = self.capitals_mean and self.text[start].isupper()
            self.push("".join(c.lower() for c in letters), "word", name=name)
            self.at = end
            return
        while is_in_word(self.peek(0)) or (
            self.peek(0) == "'" and is_letter(self.peek(1)) and self.at > start
        ):
            self.at += 1
        while self.text[self.at - 1] == "_":
            self.at -= 1
        raw = self.text[start : self.at]
        if re.search(f"[{UNSPACED}]", raw):
            self.unspaced(raw)
        elif len(raw) == 1:
            self.single_letter(raw)
        else:
            self.long_word(raw)

    def abbreviation(self) -> int | None:
        """The end of letters with a full stop behind each: ``e.g.``, ``U.S.A.``."""
        end = self.at
        while (
            self.text[end : end + 1].isalpha()
            and not re.match(f"[{UNSPACED}]", self.text[end])
            and self.text[end + 1 : end + 2] == "."
        ):
            end += 2
        whole = not is_in_word(self.text[end : end + 1] or "\n")
        return end if end >= self.at + 4 and whole and not is_in_word(self.peek(-1)) else None

    def unspaced(self, raw: str) -> None:
        word = ""
        for character in raw:
            if not re.match(f"[{UNSPACED}]", character):
                word += character.lower() if character != "'" else ""
                continue
            if word:
                self.push(word, "word")
                word = ""
            if is_mark(character) and self.tokens and self.tokens[-1].kind == "character":
                last = self.tokens[-1]
                self.tokens[-1] = replace(last, text=last.text + character)
            else:
                self.push(character, "character")
        if word:
            self.push(word, "word")

    def single_letter(self, letter: str) -> None:
        """A variable, unless it is the word `a` or `I` between words."""
        before = self.text[self.at - 2] if self.at >= 2 else "\n"
        following = self.peek(1)
        word_follows = self.peek(0) == " " and (
            is_digit(following)
            or following in "\"'"
            or (is_letter(following) and is_in_word(self.peek(2)))
        )
        after_word = self.starts_sentence() or self.tokens[-1].kind == "word"
        between = before in " \n\"'" and word_follows and after_word
        if between and letter in "aAiI":
            self.push(letter.lower(), "word")
        else:
            text = letter.lower() if self.one_case else letter
            self.push(text, "variable", between_words=between)

    def long_word(self, raw: str) -> None:
        after_number = bool(self.tokens) and self.tokens[-1].kind == "number"
        if after_number and raw in ("MW", "MV", "MJ", "MA", "Mg", "MΩ", "Mb", "Gb"):
            self.push(raw, "sign")
            return
        capital = raw[0].isupper()
        capitals = capital and not any(c.islower() for c in raw)
        inner = any(x.islower() and y.isupper() for x, y in pairwise(raw))
        name = self.capitals_mean and capital and (capitals or not self.starts_sentence())
        identifier = inner or any(c == "_" or c.isnumeric() for c in raw)
        for part in expanded(raw.lower()):
            self.push(part, "word", name=name, identifier=identifier)

    def sign(self, character: str) -> None:
        before, following, start = self.peek(-1), self.peek(1), self.at
        self.at += 1
        if start in self.emphasis or self.is_layout(start) or character == " ":
            return
        last = self.tokens[-1] if self.tokens else None
        after_word = last is not None and last.kind == "word" and not last.identifier
        if character in "*_" and self.emphasised(start):
            return
        if character == "&" and before == following == " " and after_word:
            self.push("and", "word")
        elif character + following in PAIRS:
            self.at += 1
            self.push(character + following, "sign")
        elif character in "()[]{}":
            self.push(character, "bracket")
        elif character == "!" and self.is_factorial(start):
            self.push("!", "sign")
        elif character in ".?!;:":
            self.stop(character, before, following)
        elif character == "-" and self.is_minus(start):
            self.push("-", "sign")
        elif character == "'" and self.quote != "'" and self.is_prime(start):
            self.push("'", "sign")
        elif (
            character in "'\"" and self.quote != character
            and is_digit(before) and not is_letter(following)
        ):  # fmt: skip
            self.push(character, "sign")
        elif character in "'\"`":
            self.quotation(character, before)
        elif character == "/" and self.is_between_words(start):
            pass
        elif character in "+*=<>%$#&@^|~\\/_":
            self.push(character, "sign")
        elif character in SENTENCE_ENDS:
            self.end_sentence(character == "\u061f")
        elif not PUNCTUATION.match(character) and not is_mark(character):
            self.push(character, "sign")

    def is_layout(self, start: int) -> bool:
        """Marks of lists, headings and quotations at the beginning of a line."""
        if start > 0 and self.text[start - 1] != "\n":
            return False
        found = re.compile(r"(?:[-*+•]|#+)(?= )").match(self.text, start)
        if not found and self.text[start : start + 2] == "> ":
            found = re.compile(">").match(self.text, start)
            found = found if is_letter(self.text[start + 2 : start + 3] or "\n") else None
        if found:
            self.at = found.end()
        return found is not None

    def emphasised(self, start: int) -> bool:
        """Whether a mark opens emphasis that is closed in the same line; remembers both."""
        text, mark = self.text, self.text[start]

        def run(at: int) -> int:
            return len(text[at:]) - len(text[at:].lstrip(mark))

        length = run(start)
        inside = start + length
        second = text[inside + 1 : inside + 2]
        opens = (
            length <= 3
            and not (start > 0 and is_in_word(text[start - 1]))
            and is_letter(text[inside : inside + 1] or "\n")
            and (second == " " or (second != "" and is_in_word(second)))
        )
        if not opens:
            return False
        line_end = text.find("\n", inside)
        for close in range(inside + 1, len(text) if line_end < 0 else line_end):
            behind = text[close + length : close + length + 1]
            if run(close) == length and text[close - 1] not in (" ", mark):
                if behind and is_in_word(behind):
                    continue
                self.emphasis |= {*range(start, inside), *range(close, close + length)}
                self.at = inside
                return True
        return False

    def is_factorial(self, at: int) -> bool:
        before = self.text[at - 1] if at else "\n"
        variable = bool(self.tokens) and self.tokens[-1].kind == "variable"
        return (
            is_digit(before)
            or before == ")"
            or (variable and before.isalpha() and before not in "iI")
        )

    def stop(self, character: str, before: str, following: str) -> None:
        if following in " \n" or (not is_in_word(following) and following != character):
            self.end_sentence(character == "?")
        elif character == "." and is_in_word(before) and is_in_word(following):
            if before.islower() and following.isupper():
                self.end_sentence(False)
            else:
                self.push(".", "sign")

    def is_minus(self, at: int) -> bool:
        left, right = self.text[:at], self.text[at + 1 :]
        spaced = (left.endswith(" "), right.startswith(" "))
        if left.endswith("-") or right.startswith("-"):
            return False
        left, right = left.removesuffix(" "), right.removeprefix(" ")
        left_word = word_at_edge(left[::-1])[::-1]
        right_word = word_at_edge(right)

        def is_math(word: str, edge: str) -> bool:
            if not word:
                return edge != "" and edge in "()[]=+*/<>^|-.,"
            return is_digit(word[0]) or len(word) == 1

        left_math = left == "" or is_math(left_word, left[-1:])
        return is_math(right_word, right[:1]) and (left_math or spaced == (True, False))

    def is_prime(self, at: int) -> bool:
        before = self.text[at - 1] if at else ""
        last = self.tokens[-1] if self.tokens else None
        if before == "'":
            return last is not None and last.text == "'"
        return before == ")" or (before.isalpha() and last is not None and last.kind == "variable")

    def quotation(self, character: str, before: str) -> None:
        line = self.text[self.at :].partition("\n")[0]
        if self.quote == character:
            self.quote = None
        elif self.quote is None and not is_in_word(before) and character in line:
            self.quote = character

    def is_between_words(self, at: int) -> bool:
        left = self.text[max(at - 3, 0) : at]
        return len(left) == 3 and left.isalpha() and self.text[at + 1 : at + 2].isalpha()

    def drop_plain_brackets(self) -> None:
        """Brackets count within two tokens of a number, a variable or an operator."""
        means = [
            t.kind in ("number", "variable") or (t.kind == "sign" and t.text not in "#@$%&")
            for t in self.tokens
        ]
        self.tokens = [
            token
            for at, token in enumerate(self.tokens)
            if token.kind != "bracket" or any(means[max(at - 2, 0) : at + 3])
        ]


def is_digit(character: str) -> bool:
    return "0" <= character <= "9"


def word_at_edge(text: str) -> str:
    end = next((at for at, c in enumerate(text) if not is_in_word(c)), len(text))
    return text[:end]


def expanded(word: str) -> list[str]:
    """The words of a contraction in lower case."""
    if word in CONTRACTIONS:
        return CONTRACTIONS[word].split()
    verb = None
    if word.endswith("n't"):
        verb = word.removesuffix("n't")
    elif word.endswith("t") and word[:-1] in UNMARKED:
        verb = word[:-2]
    if verb:
        return ["is" if verb == "ai" else verb, "not"]
    head, apostrophe, ending = word.rpartition("'")
    return [head, ENDINGS[ending]] if apostrophe and ending in ENDINGS else [word]
