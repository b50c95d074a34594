"""What short answers state, written plainly: the specification of ``answers_contradict``."""
# ruff: noqa: RUF001

import re
from decimal import Decimal

from naive_text_judge import english

MARKS = ".,;:!?\"'`()[]*"
SIGNS = {"$": "dollar", "€": "euro", "£": "pound", "%": "percent", "°": "degree"}
UNITS = SIGNS | {"dollars": "dollar", "euros": "euro", "cents": "cent", "degrees": "degree"}
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
NUMBER = re.compile(r"[-−+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d*)?")


def read_number(text):
    """The value of a decimal number, or None."""
    if not NUMBER.fullmatch(text) or not re.search(r"\d", text):
        return None
    return Decimal(text.replace("−", "-").replace(",", ""))


def stated(answer):
    """(letter, number, words) of a short answer, each None if it is not stated; else None."""
    words = answer.lower().split()
    if not 1 <= len(words) <= 5:
        return None
    letter = None
    first = re.sub(rf"^[{re.escape(MARKS)}]+(?=[^.\d])|^[{re.escape(MARKS)}]+$", "", words[0])
    alone = re.fullmatch(rf"([a-z])[{re.escape(MARKS)}]*", first)
    if alone and (len(words) == 1 or re.fullmatch(r"[a-z][.):\]]", first)):
        letter, words = alone[1], words[1:]
    bare = []
    for word in words:
        left = word.lstrip(MARKS)
        if left[:1].isdigit() and word[: len(word) - len(left)].endswith("."):
            left = "." + left
        bare.append(left.rstrip(MARKS))
    words = [word for word in bare if word]
    while len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    number = None
    if words in (["no"], ["none"], ["nothing"]):
        number = Decimal(0)
    elif words:
        sign, rest = words[0][:1], words[0]
        unit = [SIGNS[sign]] if sign in SIGNS else []
        rest = rest[1:] if unit else rest
        digits = re.match(r"[\d.,\-−+]*", rest)[0]
        number = read_number(digits)
        if number is not None:
            glued = [rest[len(digits) :]] if rest != digits else []
            words = unit + [UNITS.get(word, word) for word in glued + words[1:]]
        elif words[0] in WORDS:
            number = Decimal(WORDS.index(words[0]))
            words = [UNITS.get(word, word) for word in words[1:]]
    return letter, number, [english().look_up(word).lemma for word in words] or None


def contradict(one, other):
    """Whether two answers are short and differ in a notation that both use."""
    pairs = zip(stated(one) or (None,) * 3, stated(other) or (None,) * 3, strict=True)
    return any(a is not None and b is not None and a != b for a, b in pairs)
