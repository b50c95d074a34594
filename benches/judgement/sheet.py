"""A page to draw on: its size, paper, ink and font are drawn from one half of the lists."""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from text_pairs import Draw

Picture = Image.Image
Colour = tuple[int, int, int]

FONTS = [  # package, file
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/STIXGeneral.ttf"),
    ("font_roboto", "files/Roboto-Regular.ttf"),
    ("font_roboto", "files/Roboto-Medium.ttf"),
    ("font_source_sans_pro", "files/SourceSansPro-Regular.ttf"),
    ("font_source_serif_pro", "files/SourceSerifPro-Regular.ttf"),
]
INKS: list[Colour] = [
    (20, 20, 20), (20, 40, 110), (60, 30, 20),
    (0, 0, 0), (40, 40, 60), (25, 60, 40),
]  # fmt: skip
PAPERS: list[Colour] = [
    (255, 255, 255), (250, 248, 238), (236, 240, 246),
    (255, 255, 255), (245, 245, 245), (252, 246, 230),
]  # fmt: skip
FILLS: list[Colour] = [
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (102, 194, 165), (252, 141, 98), (141, 160, 203), (231, 138, 195), (166, 216, 84),
    (229, 196, 148),
]  # fmt: skip


class Sheet:
    """A page of a drawn size, paper, ink and font."""

    def __init__(self, draw: Draw, low: int = 360, high: int = 720) -> None:
        self.size = draw.number(low, high), draw.number(low, high)
        self.paper, self.ink, self._font = draw.of(PAPERS), draw.of(INKS), draw.of(FONTS)
        self.text_size = draw.number(14, 19)
        self.image = Image.new("RGB", self.size, self.paper)
        self.pen = ImageDraw.Draw(self.image)

    def font(self, scale: float = 1) -> ImageFont.FreeTypeFont:
        """Its font, so many times the size of the text."""
        return font(self._font, round(scale * self.text_size))

    def write(
        self, x: float, y: float, text: str, scale: float = 1, fill: Colour | None = None
    ) -> None:
        """A line of text with its top left corner there, in its ink unless said otherwise."""
        self.pen.text((x, y), text, font=self.font(scale), fill=fill or self.ink)

    @property
    def line(self) -> int:
        """Pixels from line to line."""
        return round(1.6 * self.text_size)


def font(name: tuple[str, str], size: int) -> ImageFont.FreeTypeFont:
    spec = find_spec(name[0])
    assert spec is not None, name[0]
    assert spec.origin is not None
    return ImageFont.truetype(str(Path(spec.origin).parent / name[1]), size)


def price(draw: Draw) -> str:
    return f"{draw.number(1, 999)}.{draw.number(0, 99):02}"


def another_digit(draw: Draw, text: str) -> str:
    """The text with one digit changed."""
    at = draw.random.choice([i for i, c in enumerate(text) if c.isdigit()])
    digit = draw.random.choice([c for c in "0123456789" if c != text[at]])
    return text[:at] + digit + text[at + 1 :]
