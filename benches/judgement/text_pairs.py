"""Pairs of texts with their truth: copies that must go, and look-alikes that must stay.

Every pair is drawn with a seed from a vocabulary. There are two halves of every list: ``tune`` has
the first entries and ``fresh`` the others, sentences and words alike, so that rules made while looking
at one half can be measured on the other.
"""
# Sentences are listed one kind a line, and every edit takes a draw.
# ruff: noqa: ARG001, ARG005, E501, RUF001

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Pair(NamedTuple):
    """Two texts, the kind of their difference, and whether they ask the same."""

    left: str
    right: str
    kind: str
    same: bool


class Draw:
    """Random choices from one half of every list."""

    def __init__(self, seed: int, half: str) -> None:
        self.random = random.Random(f"{seed} {half}")
        self.second = half == "fresh"

    def of(self, options: Sequence[str]) -> str:
        """One entry of a list."""
        return self.random.choice(self.half(options))

    def half(self, options: Sequence[str]) -> Sequence[str]:
        """The entries that this draw may choose from."""
        middle = len(options) // 2
        return options[middle:] if self.second else options[:middle]

    def two(self, options: Sequence[str]) -> tuple[str, str]:
        """Two different entries."""
        one, other = self.random.sample(list(self.half(options)), 2)
        return one, other

    def number(self, low: int, high: int) -> int:
        """A number from low to high."""
        return self.random.randint(low, high)


# Both halves of a list are separated by `/`.
def words(text: str) -> list[str]:
    first, second = (half.split() for half in text.split("/"))
    size = min(len(first), len(second))
    return first[:size] + second[:size]


THINGS = words(
    "car dog table window bottle horse umbrella bicycle lamp basket ladder boat chair guitar kettle / "
    "truck cat bench door glass cow kite scooter candle bucket fence ship sofa violin teapot"
)
PLACES = words(
    "kitchen garden street beach forest station museum library market bridge / "
    "bedroom park harbour desert meadow airport gallery school square tunnel"
)
PEOPLE = words(
    "Maria John Ahmed Sofia Peter Laura Kenji Olga / Anna David Omar Elena Paul Nora Hiro Vera"
)
CITIES = words("Paris Berlin Tokyo Cairo Lima Oslo / Rome Madrid Seoul Lagos Quito Bern")
COLOURS = words("red blue green black purple / white yellow orange brown pink")
FIELDS = words(
    "total date name iban currency vendor / address phone email subtotal quantity discount"
)
TOPICS = words(
    "gravity inflation photosynthesis democracy erosion recursion magnetism / "
    "evolution taxation fermentation federalism glaciation induction friction"
)
LANGUAGES = words("French German Italian Polish / Spanish Dutch Swedish Turkish")
TEMPLATES = [
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:",
    "You are a helpful assistant that looks at pictures with great care. Question: {}",
    "Look at every part of the scene before you answer, and think step by step. {}",
    "The following task was written by a teacher for pupils of twelve years. {}",
    "Use the information that you can see, and nothing else, to solve this task. {}",
    "As an expert in many fields, read the request with attention and respond to it. {}",
]
QUESTIONS = [
    "What color is the {thing} in the {place}?",
    "How many people stand near the {thing}?",
    "Describe the {thing} and the {place} in the picture.",
    "Is the {thing} on the left side of the {place}?",
    "Explain the concept of {topic} in simple terms.",
    "What is the largest {thing} that the {place} shows?",
    "Where is the {thing} that belongs to {person}?",
    "Name three facts about {topic}.",
    "Why does {person} carry a {thing} through the {place}?",
    "What kind of {thing} is shown beside the {colour} {other}?",
    "Which {thing} in the image is closest to the {place}?",
    "Give a short summary of the history of {topic}.",
    "Does the photo show a {colour} {thing} in front of the {place}?",
    "Write a story about {person} and a {thing}.",
    "What would happen if the {thing} fell on the {other}?",
    "Can the {thing} be moved to the {place} without help?",
    "How does {topic} affect the people of {city}?",
    "List the objects in the {place} that are {colour}.",
    "Who owns the {thing} near the entrance of the {place}?",
    "Calculate the area of a {place} of 12 by 30 meters.",
]


def question(draw: Draw) -> str:
    thing, other = draw.two(THINGS)
    return draw.of(QUESTIONS).format(
        thing=thing, other=other, place=draw.of(PLACES), topic=draw.of(TOPICS),
        person=draw.of(PEOPLE), colour=draw.of(COLOURS), city=draw.of(CITIES),
    )  # fmt: skip


def under_template(draw: Draw, texts: Sequence[str]) -> list[str]:
    """The texts as they are, or in half of the cases under one template."""
    if draw.random.random() < 0.5:
        return list(texts)
    template = draw.of(TEMPLATES)
    return [template.format(text) for text in texts]


# --- copies


def lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def mistyped(draw: Draw, text: str, how: str, count: int = 1) -> str:
    """Slips in words of four letters or more that are in lower case."""
    places = [w.span() for w in re.finditer(r"\b[a-z]{4,}\b", text)]
    for start, end in sorted(draw.random.sample(places, min(count, len(places))), reverse=True):
        text = text[:start] + slip(draw, text[start:end], how) + text[end:]
    return text


def slip(draw: Draw, word: str, how: str) -> str:
    at = draw.number(1, len(word) - 2)
    kind = how if how != "any" else draw.random.choice(["swap", "drop", "double", "key"])
    if kind == "swap":
        swappable = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
        at = draw.random.choice(swappable or [at])
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[:at] + word[at] + word[at:]
    row = next(row for row in KEYBOARD if word[at] in row)
    place = row.index(word[at])
    return word[:at] + row[place - 1 if place else 1] + word[at + 1 :]


def replaced(old: str, new: str) -> Callable[[Draw, str], str | None]:
    """Where a word occurs, another in its place."""

    def edit(draw: Draw, text: str) -> str | None:
        found = re.sub(rf"\b{old}\b", new, text)
        return found if found != text else None

    return edit


def one_of(*edits: tuple[str, str]) -> Callable[[Draw, str], str | None]:
    """One of the replacements that fit."""

    def edit(draw: Draw, text: str) -> str | None:
        fitting = [found for old, new in edits if (found := replaced(old, new)(draw, text))]
        return draw.random.choice(fitting) if fitting else None

    return edit


SYNONYMS = one_of(
    ("picture", "image"), ("image", "photo"), ("photo", "picture"), ("largest", "biggest"),
    ("kind", "type"), ("Give", "Provide"), ("car", "automobile"), ("Calculate", "Compute"),
    ("List", "Enumerate"), ("sofa", "couch"), ("bicycle", "bike"), ("shown", "displayed"),
    ("help", "assist"), ("happen", "occur"), ("show", "display"),
)  # fmt: skip
FUNCTION_WORDS = one_of(
    ("the", "a"), ("the", "this"), ("that", "which"), ("a", "the"), ("in the", "in"), ("Describe the", "Describe"),
    ("of the", "of this"), ("and the", "and"), ("the people", "people"), ("the objects", "objects"),
)  # fmt: skip
GREETINGS = ["Hello! ", "Hi, ", "Good morning. ", "Dear assistant, ", "Hey there, ", "Hi there! "]
THANKS = [
    " Thank you!",
    " Thanks in advance.",
    " Please.",
    " Thanks a lot!",
    " Thank you very much.",
    " Many thanks!",
]
REQUESTS = [
    "Could you please ",
    "Can you ",
    "Please ",
    "I want you to ",
    "Would you please ",
    "Kindly ",
]
ASKS = [
    "Could you tell me ",
    "Tell me, ",
    "I would like to know ",
    "Please tell me: ",
    "Do you know ",
    "Let me know: ",
]
IMPERATIVES = ("Describe", "Explain", "Name", "Give", "Write", "List", "Calculate")


def request(draw: Draw, text: str) -> str | None:
    asked = not text.startswith(IMPERATIVES)
    return draw.of(ASKS if asked else REQUESTS) + lower_first(text)


COPIES: dict[str, Callable[[Draw, str], str | None]] = {
    "upper case": lambda draw, text: text.upper(),
    "lower case": lambda draw, text: text.lower(),
    "title case": lambda draw, text: re.sub(r"\b[a-z](?=\w)", lambda m: m[0].upper(), text),
    "end mark": lambda draw, text: text.rstrip("?.") + draw.random.choice(["", "!", " ?", "...", "??"]),
    "spacing": lambda draw, text: "  " + text.replace(" ", draw.random.choice(["  ", "\n", " \t"])),
    "quotes and dashes": lambda draw, text: text.replace(" and ", ", and ").replace(" of ", " — of "),
    "emphasis": lambda draw, text: re.sub(r"\b([a-z]{4,})\b", r"**\1**", text, count=1),
    "greeting": lambda draw, text: draw.of(GREETINGS) + text,
    "thanks": lambda draw, text: text + draw.of(THANKS),
    "request": request,
    "greeting, request, thanks": lambda draw, text: (
        draw.of(GREETINGS) + (request(draw, text) or text) + draw.of(THANKS)
    ),
    "function word": FUNCTION_WORDS,
    "two function words": lambda draw, text: FUNCTION_WORDS(draw, FUNCTION_WORDS(draw, text) or text),
    "listed synonym": SYNONYMS,
    "synonym and case": lambda draw, text: (SYNONYMS(draw, text) or "").lower() or None,
    "spelling": one_of(("color", "colour"), ("meters", "metres"), ("harbour", "harbor"), ("closest", "closest ")),
    "number words": one_of(("three", "3"), ("12", "twelve")),
    "contraction": one_of(("What is", "What's"), ("Where is", "Where's"), ("that are", "that're")),
    "plural": one_of(("objects", "object"), ("facts", "fact"), ("terms", "term")),
    "typo: swapped": lambda draw, text: mistyped(draw, text, "swap"),
    "typo: lost": lambda draw, text: mistyped(draw, text, "drop"),
    "typo: doubled": lambda draw, text: mistyped(draw, text, "double"),
    "typo: neighbouring key": lambda draw, text: mistyped(draw, text, "key"),
    "two typos": lambda draw, text: mistyped(draw, text, "any", 2),
    "three typos": lambda draw, text: mistyped(draw, text, "any", 3),
    "typo, case, thanks": lambda draw, text: mistyped(draw, text, "any").lower() + draw.of(THANKS),
    "missing space": lambda draw, text: re.sub(r"\b(the|of|in) ([a-z]{4,})", r"\1\2", text, count=1),
}  # fmt: skip
INSTRUCTIONS = [
    "Answer in one short sentence.", "Explain your answer step by step.", "Be brief and factual.",
    "Keep the answer under fifty words.", "Think about it carefully.", "Respond with plain text only.",
]  # fmt: skip
OTHER_LANGUAGES = [
    "¿Cuál es el color del {} en la imagen?", "Décris le {} dans cette image en détail.",
    "Wie viele Leute stehen neben dem {} im Bild?", "Что находится рядом с {} на картинке?",
    "Quante persone ci sono vicino al {} nella foto?", "Qual é a cor do {} que está na imagem?",
    "Opisz dokładnie {} na tym zdjęciu.", "Resimdeki {} ne renk ve nerede duruyor?",
]  # fmt: skip
CHINESE = [
    "图中左边的{}是什么颜色的？",
    "请描述这张图片里的{}。",
    "这个{}在哪里？",
    "为什么图片里有一个{}？",
]
CHINESE_THINGS = ["汽车", "房子", "帽子", "狗", "桌子", "猫", "船", "椅子"]
SENTENCES = [
    "The {thing} stands beside the {other} in the {place}, and {person} looks at it from the window.",
    "In the morning {person} went to the {place} in order to find the old {thing} and the {other}.",
    "Many people in {city} know the story of the {colour} {thing} that was lost in the {place}.",
    "After a long day the {thing} was brought back to the {place} by {person}, who lives in {city}.",
    "Nobody knows how the {colour} {thing} came to the {place}, but {person} has an idea about it.",
    "On the way from {city} to the {place} one can see a {colour} {thing} and a very old {other}.",
]


def long_text(draw: Draw) -> str:
    parts = []
    for _ in range(4):
        thing, other = draw.two(THINGS)
        parts.append(
            draw.of(SENTENCES).format(
                thing=thing, other=other, place=draw.of(PLACES), person=draw.of(PEOPLE),
                colour=draw.of(COLOURS), city=draw.of(CITIES),
            )
        )  # fmt: skip
    return " ".join(parts)


def copies(draw: Draw, each: int) -> Iterator[Pair]:
    for kind, edit in COPIES.items():
        made = 0
        for _ in range(200 * each):
            text = question(draw)
            other = edit(draw, text)
            if made < each and other is not None and other != text:
                made += 1
                left, right = under_template(draw, (text, other))
                yield Pair(left, right, kind, True)
    for _ in range(each):
        text, instruction = question(draw), draw.of(INSTRUCTIONS)
        yield Pair(f"{text} {instruction}", f"{instruction} {text}", "moved sentence", True)
        other = draw.of(OTHER_LANGUAGES).format(draw.of(THINGS))
        yield Pair(other, other.upper(), "other language, case", True)
        yield Pair(other, other.strip("¿?.") + " !", "other language, end mark", True)
        chinese = draw.of(CHINESE).format(draw.of(CHINESE_THINGS))
        marks = str.maketrans("？。", "?.")
        yield Pair(chinese, " " + chinese.translate(marks), "Chinese, end mark", True)
        text = long_text(draw)
        yield Pair(
            text,
            replaced("the old", "an old")(draw, text) or text.replace("The ", "A ", 1),
            "long, function word",
            True,
        )
        yield Pair(text, mistyped(draw, text, "any", 2), "long, two typos", True)


# --- look-alikes: a sentence with a slot and what may fill it

SLOTS: dict[str, tuple[list[str], list[str]]] = {
    "noun": (["What color is the {} here?", "Where is the {} now?", "Describe the {} in detail.", "Is the {} broken?"], THINGS),
    "colour": (["Is the {} car parked?", "Find the {} ball in the box.", "Count the {} flowers.", "Name a {} fruit."], COLOURS),
    "direction": (["What is on the {} side of it?", "Who stands at the {}?", "Turn the page to the {}.", "Look at the {} corner."],
                  words("left top front north / right bottom back south")),
    "person": (["What did {} say about it?", "Is {} taller than the tree?", "Where does {} live now?", "Call {} at noon."], PEOPLE),
    "person in lower case": (["what did {} say about it?", "is {} taller than the tree?", "where does {} live now?", "call {} at noon."],
                             [name.lower() for name in PEOPLE]),
    "city": (["How large is {} today?", "Name a park of {}.", "Who founded {} long ago?", "Draw a map of {}."], CITIES),
    "field": (["Extract the {} from the document.", "Return the field {} as JSON.", "What is the {} of this bill?", "Read the {} aloud."], FIELDS),
    "topic": (["Explain {} to a child.", "Write a poem on {}.", "What is the cause of {}?", "Give an example of {}."], TOPICS),
    "language": (["Translate the text to {}.", "How does one say hello in {}?", "Write it in {}.", "Is this sentence {}?"], LANGUAGES),
    "question word": (["{} does the shop open?", "{} did the man go there?", "{} is the meeting held?", "{} was the bridge built?"],
                      words("When Where / Why How")),
    "comparative": (["Which is the {} of the boxes?", "Name the {} animal.", "Who is the {} in class?", "Find the {} value."],
                    words("largest oldest fastest / smallest youngest slowest")),
    "ordinal": (["What is the {} word?", "Who was {} in the race?", "Show the {} row.", "Open the {} door."],
                words("first third / second fourth")),
    "month": (["What happens in {} there?", "Is {} a cold month?", "How many days has {}?", "Book it for {}."], words("March July May / June August October")),
    "operator": (["Compute 12 {} 4 by hand.", "What is x {} y here?", "Simplify 3a {} 6b now.", "Is 7 {} 2 even?"], ["+", "*", "-", "%"]),
    "comparison": (["Is x {} 5 possible?", "When is a {} b true?", "Plot y {} 2x please.", "Solve n {} 9 for n."], words("< = <= / > != >=")),
    "option": (["Is option {} correct?", "Why is ({}) wrong?", "Choose {} or explain.", "Answer {}) is it right?"], words("A B C / D E F")),
    "variable case": (["Solve {} + 2 = 5.", "What is {} in it?", "Let {} be a set. Is it open?", "Find {} for me."], words("x X / n N")),
    "unit": (["Convert 30 {} to feet.", "Is 5 {} enough?", "A rope of 7 {} is cut.", "How much is 12 {} of it?"], words("km cm m / kg mg g")),
    "mega and milli": (["A motor of 5 {} runs.", "Is 20 {} a lot?", "It gives 3 {} of power.", "Use 9 {} here."], words("MW mW / MW mW")),
    "modal": (["What {} the man do?", "{} we go there?", "She {} leave. Why?", "How {} one help?"], words("can must / should may")),
    "tense": (["Where {} the cats?", "Who {} in the room?", "What {} the rules?", "Why {} they late?"], words("are were / were are")),
    "preposition": (["What is {} the box?", "Who sits {} the car?", "Put it {} the shelf.", "Is it {} the bed?"], words("in under on / behind above inside")),
    "antonym": (["Why is the water {}?", "Name a {} animal.", "Is the box {}?", "List {} examples."], words("hot open wet / cold closed dry")),
    "chemistry": (["What is {} used for?", "Draw {} as a formula.", "Is {} toxic?", "Where does {} occur?"], words("ethane ethene ethyne H2O H2O2 / propane propene propyne CO CO2")),
    "near words": (["Define {} in one line.", "Spell {} please.", "What does {} mean?", "Use {} in a sentence."],
                   words("cation caption form from angel angle / dairy diary trail trial casual causal")),
    "near words of no list": (["How does {} work?", "Install {} now.", "Is {} fast?", "Compare it with {}."],
                              words("pandaz pandax numbla numblo / tokeniq tokeniz rustiq rustib")),
    "code name": (["What does get_{} return?", "Fix the bug in {}_id.", "Rename the class My{}.", "Import {}2 first."], words("user item page / order event image")),
    "version": (["Is it new in Python {}?", "Install release {}.", "What changed in {}?", "Does {} fix it?"], words("3.1 3.10 3.11 / 2.2 2.20 2.12")),
    "time": (["Is the shop open at {}?", "Set an alarm for {}.", "What runs at {}?", "Meet me at {}."], words("10:30 10:13 / 11:45 14:45")),
    "and, or": (["Name a fruit {} a nut.", "Is it red {} round?", "Bring salt {} pepper.", "Use both A {} B."], words("and or / or and")),
    "amount": (["Are there {} apples left?", "He has {} friends. Why?", "{} people came. Who?", "Add {} drops."], ["few", "a few", "many", "a few", "few", "no"]),
    "answer form": (["Answer in one {}.", "Reply with a {} only.", "Give the result as a {}.", "Write a {} on it."], words("word sentence list / number paragraph table")),
    "quoted": (["Repeat '{}' twice.", 'What does "{}" mean?', "Is '{}' a verb?", 'Print "{}" now.'], words("cat cats act / run runs urn")),
    "task": (["{} the text below.", "{} this article for me.", "{} the chart on the page.", "{} the poem."], words("Summarize Translate Describe / Shorten Continue Explain")),
    "person of verb": (["What does {} want?", "Where is {} going?", "How did {} feel?", "Why does {} cry?"], words("he she / it she")),
    "other language": (["¿Dónde está el {}?", "Où est le {} rouge?", "Wo ist der {} heute?", "Где находится {}?"], words("perro coche gato / Baum Hund Stuhl")),
    "Chinese": (CHINESE, CHINESE_THINGS),
}  # fmt: skip
MINIMAL: list[tuple[str, str, str]] = [
    ("negation", "Name a fruit that is red.", "Name a fruit that is not red."),
    ("negation", "Which animals can fly?", "Which animals can't fly?"),
    ("negation", "Pay with a card.", "Pay without a card."),
    ("negation", "Is there a dog in the scene?", "Is there no dog in the scene?"),
    ("negation", "Use numbers in the answer.", "Never use numbers in the answer."),
    ("negation", "Why do cats sleep so long?", "Why don't cats sleep so long?"),
    ("brackets", "Compute (2 + 3) * 4.", "Compute 2 + (3 * 4)."),
    ("brackets", "Integrate x over [0, 1).", "Integrate x over (0, 1]."),
    ("brackets", "Evaluate 8 / (4 / 2).", "Evaluate (8 / 4) / 2."),
    ("brackets", "Expand a(b + c) now.", "Expand ab + c now."),
    ("superscript", "What is 2² plus one?", "What is 22 plus one?"),
    ("superscript", "Is it 10³ metres?", "Is it 103 metres?"),
    ("superscript", "Plot x² + 1.", "Plot x2 + 1."),
    ("superscript", "Round 5⁻² up.", "Round 5-2 up."),
    ("factorial and prime", "What is 5! divided by 3?", "What is 5 divided by 3?"),
    ("factorial and prime", "Find f'(2) for f.", "Find f(2) for f."),
    ("factorial and prime", "Is n! even?", "Is n even?"),
    ("factorial and prime", "Differentiate g'' twice.", "Differentiate g' twice."),
    ("sign", "Is -5 a root?", "Is 5 a root?"),
    ("sign", "Add 3 and -x.", "Add 3 and x."),
    ("sign", "What is 50% of 80?", "What is 50 of 80?"),
    ("sign", "It costs $5 today. Why?", "It costs €5 today. Why?"),
    ("so and then", "Why is the water so cold?", "Why is the water cold?"),
    ("so and then", "Was the king in Spain then?", "Was the king in Spain?"),
    ("so and then", "Is the old bridge so long?", "Is the old bridge long?"),
    ("so and then", "What did the man do then?", "What did the man do?"),
    ("order of words", "Does the dog chase the cat?", "Does the cat chase the dog?"),
    ("order of words", "Is Paris north of Rome?", "Is Rome north of Paris?"),
    ("order of words", "Divide ten by two.", "Divide two by ten."),
    ("order of words", "Did Anna call Paul?", "Did Paul call Anna?"),
    ("order of steps", "Walk to the old church. Turn left at the corner.", "Turn left at the corner. Walk to the old church."),
    ("order of steps", "Mix the eggs with sugar. Heat the pan on the stove.", "Heat the pan on the stove. Mix the eggs with sugar."),
    ("order of steps", "Add five to the number. Double the new result.", "Double the new result. Add five to the number."),
    ("order of steps", "Anna sold her car. Then she went to Rome.", "Then she went to Rome. Anna sold her car."),
    ("one more word", "What is the only red car?", "What is the red car?"),
    ("one more word", "Name the old king of Spain.", "Name the king of Spain."),
    ("one more word", "Is the dog always hungry?", "Is the dog hungry?"),
    ("one more word", "Who almost won the game?", "Who won the game?"),
    ("repeated", "Say it: very very very good.", "Say it: very very very very good."),
    ("repeated", "Count them: ha ha ha.", "Count them: ha ha ha ha ha."),
    ("options", "Is it A) cat B) dog?", "Is it A) dog B) cat?"),
    ("options", "Choose: (a) tea (b) milk", "Choose: (a) milk (b) tea"),
]  # fmt: skip


def look_alikes(draw: Draw, each: int) -> Iterator[Pair]:
    for kind, (sentences, fillers) in SLOTS.items():
        for _ in range(each):
            sentence = draw.of(sentences)
            left, right = under_template(draw, [sentence.format(x) for x in draw.two(fillers)])
            yield Pair(left, right, kind, False)
    kinds = dict.fromkeys(kind for kind, *_ in MINIMAL)
    for kind in kinds:
        listed = [pair for pair in MINIMAL if pair[0] == kind]
        for _ in range(each):
            chosen = draw.random.choice(listed[1::2] if draw.second else listed[::2])
            left, right = under_template(draw, chosen[1:])
            yield Pair(left, right, kind, False)
    for _ in range(each):
        number = draw.number(3, 2000)
        for kind, other in (("number", number + draw.number(1, 9)), ("digits", f"{number}{draw.number(0, 9)}"),
                            ("decimal point", f"{number // 10}.{number % 10}")):  # fmt: skip
            text = draw.of(
                [
                    "What is {} times two?",
                    "Name {} kinds of fish.",
                    "Was {} a good year?",
                    "Draw {} lines.",
                ]
            )
            left, right = under_template(draw, [text.format(number), text.format(other)])
            yield Pair(left, right, kind, False)
        left, right = under_template(draw, [question(draw), question(draw)])
        if left != right:
            yield Pair(left, right, "another question", False)
        text = long_text(draw)
        thing, other = draw.two(THINGS)
        yield Pair(
            f"{text} How many {thing}s are there?",
            f"{text} How many {other}s are there?",
            "long context",
            False,
        )


def pairs(seed: int, half: str, each: int) -> list[Pair]:
    """``each`` pairs of every kind; ``half`` is ``tune`` or ``fresh``."""
    draw = Draw(seed, half)
    found = [*copies(draw, each), *look_alikes(draw, each)]
    return list(dict.fromkeys(pair for pair in found if pair.left != pair.right))
