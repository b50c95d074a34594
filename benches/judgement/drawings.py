"""Pictures that are drawn: the same one again from the same seed, or with one named change.

A function of :data:`DRAWINGS` takes a :class:`Draw` and a change. What the change would use is drawn in
any case, so that all else of the two pictures is equal. The halves of :class:`Draw` have other fonts,
words, names and colours.
"""
# A kind is a line.
# ruff: noqa: E501

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sheet import FILLS, Picture, Sheet, another_digit, price
from text_pairs import CITIES, FIELDS, PEOPLE, SENTENCES, THINGS, TOPICS, Draw


def sentence(draw: Draw) -> str:
    thing, other = draw.two(THINGS)
    return draw.of(SENTENCES).format(
        thing=thing, other=other, place="old town", person=draw.of(PEOPLE), colour="small", city=draw.of(CITIES)
    )  # fmt: skip


def invoice(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 420)
    width, line = sheet.size[0], sheet.line
    total = price(draw)
    (name, other), date = (
        draw.two(PEOPLE),
        f"{draw.number(10, 28)}.{draw.number(10, 12)}.20{draw.number(10, 26)}",
    )
    wrong_total, wrong_date = another_digit(draw, total), another_digit(draw, date)
    sheet.pen.rectangle((0, 0, width, 3 * line), fill=draw.of(FILLS))
    sheet.write(16, line, "INVOICE", 1.5)
    sheet.write(16, 3.5 * line, f"To: {other if change == 'name' else name} Miller")
    sheet.write(16, 4.5 * line, f"Date: {wrong_date if change == 'date' else date}")
    at = 6.0
    while (at + 3) * line < sheet.size[1]:
        sheet.write(16, at * line, f"{draw.number(1, 9)} {draw.of(THINGS)}")
        sheet.write(width - 100, at * line, price(draw))
        at += 1
    sheet.write(16, at * line, "Total", 1.2)
    sheet.write(width - 110, at * line, wrong_total if change == "digit" else total, 1.2)
    return sheet.image


def receipt(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 320, 520)
    rows = (sheet.size[1] - 20) // sheet.line
    changed = draw.number(1, rows - 1)
    for row in range(rows):
        (item, other), amount = draw.two(THINGS), price(draw)
        wrong = another_digit(draw, amount)
        here = row == changed
        sheet.write(14, 10 + row * sheet.line, other if here and change == "item" else item)
        sheet.write(
            sheet.size[0] - 90,
            10 + row * sheet.line,
            wrong if here and change == "price" else amount,
        )
    return sheet.image


def form(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 400)
    rows = (sheet.size[1] - 20) // (2 * sheet.line)
    changed = draw.number(0, rows - 1)
    for row in range(rows):
        y, here = 16 + 2 * row * sheet.line, row == changed
        name, other = draw.two(CITIES)
        ticked = (draw.random.random() < 0.5) != (here and change == "tick")
        sheet.write(16, y, draw.of(FIELDS).capitalize())
        sheet.pen.rectangle((150, y - 2, sheet.size[0] - 60, y + sheet.line), outline=sheet.ink)
        sheet.write(156, y, other if here and change == "field" else name)
        box = (sheet.size[0] - 46, y, sheet.size[0] - 28, y + 18)
        sheet.pen.rectangle(box, outline=sheet.ink, width=2)
        if ticked:
            sheet.pen.line(
                (box[0] + 4, box[1] + 9, box[0] + 8, box[3] - 4, box[2] - 3, box[1] + 3),
                sheet.ink,
                3,
            )
    return sheet.image


def chart(sheet: Sheet) -> tuple[float, float, float, float]:
    """Axes; the box inside: left, top, right, bottom."""
    width, height = sheet.size
    box = (60, 50, width - 20, height - 60)
    for step in range(5):
        y = box[3] - step * (box[3] - box[1]) / 4
        sheet.pen.line((box[0], y, box[2], y), fill=(200, 200, 200))
        sheet.write(14, y - 8, str(25 * step), 0.8)
    sheet.pen.line((box[0], box[1], box[0], box[3], box[2], box[3]), fill=sheet.ink, width=2)
    return box


def bar_chart(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw)
    left, top, right, bottom = chart(sheet)
    sheet.write(left, 14, f"{draw.of(TOPICS).capitalize()} by city", 1.1)
    count = draw.number(3, 6)
    names = draw.random.sample(list(draw.half(CITIES)), count)
    values = [draw.number(20, 95) for _ in names]
    at, by = draw.number(0, count - 2), draw.random.choice([-12, -8, 8, 12])
    if change == "value":
        values[at] = min(max(values[at] + by, 5), 100)
    if change == "labels":
        names[at], names[at + 1] = names[at + 1], names[at]
    fill, step = draw.of(FILLS), (right - left) / count
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        x = left + place * step
        sheet.pen.rectangle(
            (x + 8, bottom - value / 100 * (bottom - top), x + step - 8, bottom), fill=fill
        )
        sheet.write(x + 8, bottom + 8, name, 0.9)
    return sheet.image


def line_chart(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw)
    left, top, right, bottom = chart(sheet)
    series, points = draw.number(1, 3), draw.number(6, 10)
    changed, by = (
        (draw.number(0, series - 1), draw.number(1, points - 2)),
        draw.random.choice([-20, 20]),
    )
    for number, fill in zip(
        range(series), draw.random.sample(list(draw.half(FILLS)), series), strict=True
    ):
        values = [draw.number(25, 75) for _ in range(points)]
        if change == "point" and number == changed[0]:
            values[changed[1]] += by
        places = [
            (left + i * (right - left) / (points - 1), bottom - v / 100 * (bottom - top))
            for i, v in enumerate(values)
        ]
        sheet.pen.line(places, fill=fill, width=3)
    return sheet.image


def pie_chart(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw)
    side = min(sheet.size) - 60
    shares = [draw.number(10, 40) for _ in range(draw.number(3, 5))]
    by = draw.number(5, 9)
    if change == "share":
        shares[0], shares[1] = shares[0] + by, shares[1] - by
    start = 0.0
    for share, fill in zip(
        shares, draw.random.sample(list(draw.half(FILLS)), len(shares)), strict=True
    ):
        end = start + 360 * share / sum(shares)
        sheet.pen.pieslice(
            (30, 30, 30 + side, 30 + side), start, end, fill=fill, outline=sheet.paper
        )
        start = end
    return sheet.image


def equation(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 330, 520)
    operators, exponents = draw.random.sample("+-=<>", 2), draw.random.sample("23456789", 2)
    names = draw.random.sample("abcxyz", 3)
    x, y = 24.0, sheet.size[1] / 2 - 20
    parts = [
        (names[0], 2.0, 0), (exponents[change == "exponent"], 1.1, -10), (operators[change == "operator"], 2.0, 0),
        (f"{draw.number(2, 99)}{names[1]}", 2.0, 0), ("(", 2.0, 0), (names[2], 2.0, 0), (")", 2.0, 0),
    ]  # fmt: skip
    for text, scale, up in parts:
        sheet.write(x, y + up, text, scale)
        x += sheet.pen.textlength(text, sheet.font(scale)) + 5
    for row in range(2):
        sheet.write(24, 20 + row * sheet.line, sentence(draw)[:36])
    return sheet.image


def code(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 420)
    rows = (sheet.size[1] - 20) // sheet.line
    changed = draw.number(0, rows - 1)
    for row in range(rows):
        here = row == changed
        (name, other), number = draw.two(THINGS), str(draw.number(1, 500))
        one, two = draw.random.sample(["==", "!=", "<=", ">="], 2)
        wrong = another_digit(draw, number)
        name = other if here and change == "name" else name
        number = wrong if here and change == "number" else number
        operator = two if here and change == "operator" else one
        sheet.write(14 + 20 * (row % 3), 10 + row * sheet.line, f"if {name} {operator} {number}:")
    return sheet.image


def page(draw: Draw, change: str) -> Picture:
    """A page of text, as printed."""
    sheet = Sheet(draw, 420)
    words = " ".join(sentence(draw) for _ in range(40)).split()
    thing, other = draw.two(THINGS)
    rows, at = (sheet.size[1] - 40) // sheet.line, 0
    changed = draw.number(0, rows - 1)
    for row in range(rows):
        # Whichever word stands here, as many follow.
        first = max(thing, other, key=len) if row == changed else ""
        start = at
        while (
            sheet.pen.textlength(" ".join([first, *words[start : at + 1]]), sheet.font())
            < sheet.size[0] - 40
        ):
            at += 1
        first = (other if change == "word" else thing) if row == changed else ""
        sheet.write(20, 20 + row * sheet.line, " ".join([first, *words[start:at]]))
    return sheet.image


def scan(draw: Draw, change: str) -> Picture:
    """A page on a scanner, which adds noise of its own every time."""
    seed = draw.number(0, 2**31)
    again = draw.number(0, 2**31)
    clean = page(Draw(seed, "fresh" if draw.second else "tune"), change)
    pen = ImageDraw.Draw(clean)
    x, y = clean.width - 150, clean.height - 60
    if change == "signature":
        wave = [(x + i, y + 14 * math.sin(i / 9) + 6 * math.sin(i / 4)) for i in range(110)]
        pen.line(wave, fill=(30, 40, 140), width=3)
    noise = np.random.default_rng(again if change else seed).normal(
        0, 6, (clean.height, clean.width, 1)
    )
    values = np.asarray(clean.filter(ImageFilter.GaussianBlur(0.7)), np.float64) * 0.96 + noise
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def speed_sign(draw: Draw, change: str) -> Picture:
    sheet, box = plate(draw)
    side = box[2] - box[0]
    sheet.pen.ellipse(box, fill="white", outline=(200, 20, 30), width=int(side // 9))
    text = str(draw.random.sample([20, 30, 40, 50, 60, 70, 80, 90], 2)[change == "number"])
    scale = side / 2.6 / sheet.text_size
    wide = sheet.pen.textlength(text, sheet.font(scale))
    sheet.write((box[0] + box[2] - wide) / 2, (box[1] + box[3]) / 2 - side / 4, text, scale)
    return sheet.image


def arrow_sign(draw: Draw, change: str) -> Picture:
    sheet, box = plate(draw)
    side, x, y = box[2] - box[0], (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    sheet.pen.ellipse(box, fill=(20, 70, 170))
    turn = 1 if (draw.random.random() < 0.5) != (change == "arrow") else -1
    reach = turn * side / 3
    sheet.pen.line((x - reach, y, x + reach / 3, y), fill="white", width=int(side // 8))
    head = [(x + reach, y), (x + reach / 3, y - side / 5), (x + reach / 3, y + side / 5)]
    sheet.pen.polygon(head, fill="white")
    sheet.write(10, 6, f"{draw.of(CITIES)} {draw.number(1, 999)} km", 1.5)
    return sheet.image


def plate(draw: Draw) -> tuple[Sheet, tuple[float, float, float, float]]:
    """A sheet, and the box of a round sign in its middle."""
    sheet = Sheet(draw, 330, 520)
    (width, height), half = sheet.size, (min(sheet.size) - 60) / 2
    return sheet, (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)


def icon(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 256, 400)
    width, height = sheet.size
    fill, dot = draw.random.sample(list(draw.half(FILLS)), 2)
    sheet.pen.rounded_rectangle((20, 20, width - 20, height - 20), 40, fill=fill)
    letters = draw.random.sample("ABCDEFGHKLMNPRSTUVXYZ", 2)
    sheet.write(width / 3, height / 3, letters[change == "letter"], 6, (255, 255, 255))
    if change == "badge":
        sheet.pen.ellipse((width - 80, 24, width - 30, 74), fill=dot)
    return sheet.image


def table(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 400)
    rows, columns = (sheet.size[1] - 20) // (sheet.line + 8), (sheet.size[0] - 20) // 90
    cells = [[str(draw.number(10, 9999)) for _ in range(columns)] for _ in range(rows)]
    row, column = draw.number(1, rows - 1), draw.number(1, columns - 1)
    wrong = another_digit(draw, cells[row][column])
    if change == "digit":
        cells[row][column] = wrong
    if change == "swapped":
        cells[row][column], cells[row - 1][column] = cells[row - 1][column], cells[row][column]
    for y in range(rows):
        for x in range(columns):
            at = (10 + 90 * x, 10 + (sheet.line + 8) * y)
            sheet.pen.rectangle((*at, at[0] + 90, at[1] + sheet.line + 8), outline=sheet.ink)
            sheet.write(at[0] + 8, at[1] + 4, cells[y][x])
    return sheet.image


def plan(draw: Draw, change: str) -> Picture:
    """A map with streets and a marker."""
    sheet = Sheet(draw)
    width, height = sheet.size
    for _ in range(7):
        ends = [(draw.number(0, width), 0), (draw.number(0, width), height)]
        if draw.random.random() < 0.5:
            ends = [(0, draw.number(0, height)), (width, draw.number(0, height))]
        sheet.pen.line(ends, fill=(180, 180, 170), width=9)
        sheet.write(
            draw.number(10, width - 120), draw.number(10, height - 30), draw.of(CITIES), 0.9
        )
    x, y = draw.number(60, width - 60), draw.number(60, height - 60)
    turn, far = draw.random.random() * 2 * math.pi, draw.number(25, 60)
    if change == "marker":
        x, y = round(x + far * math.cos(turn)), round(y + far * math.sin(turn))
    sheet.pen.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(210, 30, 30))
    return sheet.image


def calendar(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 400)
    wide, high = (sheet.size[0] - 20) / 7, (sheet.size[1] - 60) / 5
    days = draw.random.sample(range(31), 2)
    circled = days[change == "day"]
    sheet.write(12, 12, draw.of(["March", "May", "July", "June", "August", "October"]), 1.3)
    for day in range(31):
        x, y = 10 + day % 7 * wide, 50 + day // 7 * high
        sheet.write(x + 10, y + 8, str(day + 1))
        if day == circled:
            sheet.pen.ellipse((x + 1, y + 1, x + 36, y + 36), outline=(200, 30, 40), width=3)
    return sheet.image


def clock(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 330, 560)
    x, y, radius = sheet.size[0] / 2, sheet.size[1] / 2, min(sheet.size) / 2 - 20
    hour, minute, by = (
        draw.number(0, 11),
        draw.number(0, 11) * 5,
        draw.random.choice([-10, -5, 5, 10]),
    )
    if change == "minute":
        minute += by
    if change == "hour":
        hour += 1 if by > 0 else -1
    sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=sheet.ink, width=6)
    for turn, length, wide in ((hour * 30 + 3, 0.5, 8), (minute * 6, 0.8, 5)):
        angle = math.radians(turn - 90)
        end = (x + radius * length * math.cos(angle), y + radius * length * math.sin(angle))
        sheet.pen.line((x, y, *end), fill=sheet.ink, width=wide)
    for tick in range(12):
        angle = math.radians(30 * tick)
        inner, outer = (
            (x + radius * r * math.cos(angle), y + radius * r * math.sin(angle))
            for r in (0.88, 0.96)
        )
        sheet.pen.line((*inner, *outer), fill=sheet.ink, width=3)
    return sheet.image


def board(draw: Draw, change: str) -> Picture:
    """A chess board."""
    sheet = Sheet(draw, 360, 640)
    cell = min(sheet.size) // 8
    places = draw.random.sample([(x, y) for x in range(8) for y in range(8)], 15)
    free = places.pop()
    if change == "piece":
        places[0] = free
    for x in range(8):
        for y in range(8):
            fill = (181, 136, 99) if (x + y) % 2 else (240, 217, 181)
            sheet.pen.rectangle((x * cell, y * cell, (x + 1) * cell, (y + 1) * cell), fill=fill)
    for number, (x, y) in enumerate(places):
        dark = number % 2
        box = ((x + 0.2) * cell, (y + 0.2) * cell, (x + 0.8) * cell, (y + 0.8) * cell)
        sheet.pen.ellipse(box, fill=(30, 30, 30) if dark else "white", outline="black")
        letter = "KQRBNPPPKQRBNP"[number]
        sheet.write(
            box[0] + cell * 0.15,
            box[1] + cell * 0.05,
            letter,
            fill=(250, 250, 250) if dark else (0, 0, 0),
        )
    return sheet.image


def screen(draw: Draw, change: str) -> Picture:
    """A screenshot of a program."""
    sheet = Sheet(draw, 420, 760)
    width = sheet.size[0]
    accent = draw.of(FILLS)
    time = f"{draw.number(10, 23)}:{draw.number(10, 59)}"
    wrong = another_digit(draw, time)
    sheet.pen.rectangle((0, 0, width, 36), fill=accent)
    sheet.write(12, 8, "File  Edit  View")
    sheet.write(width - 70, 8, wrong if change == "time" else time)
    chosen = draw.random.sample(range(5), 2)[change == "chosen"]
    for row in range(5):
        y = 56 + row * 44
        sheet.pen.rounded_rectangle(
            (20, y, 190, y + 34), 8, fill=accent if row == chosen else (220, 220, 220)
        )
        sheet.write(32, y + 6, draw.of(TOPICS).capitalize(), fill=(0, 0, 0))
        sheet.write(210, y + 6, sentence(draw)[: max((width - 230) // 9, 4)])
    return sheet.image


def shapes(draw: Draw, change: str) -> Picture:
    sheet = Sheet(draw, 330, 560)
    *fills, another = draw.random.sample(list(draw.half(FILLS)), 5)
    if change == "colour":
        fills[-1] = another
    for number, fill in enumerate(fills):
        size = draw.number(50, 110)
        x, y = (draw.number(10, side - size - 10) for side in sheet.size)
        shape = sheet.pen.ellipse if draw.random.random() < 0.5 else sheet.pen.rectangle
        if not (change == "missing" and number == len(fills) - 1):
            shape((x, y, x + size, y + size), fill=fill)
    return sheet.image


DRAWINGS: dict[str, tuple[Callable[[Draw, str], Picture], Sequence[str]]] = {
    "invoice": (invoice, ("digit", "name", "date")),
    "receipt": (receipt, ("price", "item")),
    "form": (form, ("tick", "field")),
    "bar chart": (bar_chart, ("value", "labels")),
    "line chart": (line_chart, ("point",)),
    "pie chart": (pie_chart, ("share",)),
    "equation": (equation, ("operator", "exponent")),
    "code": (code, ("operator", "number", "name")),
    "page": (page, ("word",)),
    "scan": (scan, ("word", "signature")),
    "speed sign": (speed_sign, ("number",)),
    "arrow sign": (arrow_sign, ("arrow",)),
    "icon": (icon, ("letter", "badge")),
    "table": (table, ("digit", "swapped")),
    "map": (plan, ("marker",)),
    "calendar": (calendar, ("day",)),
    "clock": (clock, ("minute", "hour")),
    "chess board": (board, ("piece",)),
    "screenshot": (screen, ("time", "chosen")),
    "shapes": (shapes, ("colour", "missing")),
}
"""What is drawn, and the changes that it knows."""
