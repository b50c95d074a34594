"""The demo's corpus: real pictures and questions from installed packages, in four raw formats.

    shapes.jsonl + pictures/   easy-vqa: multi-turn conversations about pictures in a folder
    shapes.parquet             easy-vqa: pictures as bytes in the table, one question a row
    photos.tar                 WebDataset: photographs with a caption each
    album/                     a folder of small photographs, each with a text file of the same name

Into these, :func:`plant` puts what raw corpora really contain, with the outcome known beforehand:
repeated rows, a photograph saved again smaller and at another quality, a prompt with a word more,
broken lines, missing and truncated files, a decompression bomb, a path that leaves the folder. So
the page does not only show that things were removed, but that the right ones were.
"""

import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from mmrlhf_engine.errors import MissingExtraError

__all__ = ["SOURCES", "Corpus", "Planted", "build"]

SOURCES = ("shapes.jsonl", "shapes.parquet", "photos.tar", "album")

_PARQUET_PICTURES = 120
_LETTERS = "ABCD"
_DESCRIBE = (
    "Look at the whole picture before you answer, then describe in full sentences which shape it "
    "shows, which colour that shape has, which shapes and colours do not appear, and how one can "
    "tell"
)


@dataclass(frozen=True)
class Planted:
    """One thing put into the corpus on purpose, and what must become of it."""

    what: str
    source: str
    position: str
    """The source id of a planted sample, or the position of a planted bad row."""
    expected: str
    """``exact`` or ``near`` for a duplicate, otherwise the reason of the rejection."""


@dataclass
class Corpus:
    """The corpus while it is being made: its lines, files and what was planted."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    planted: list[Planted] = field(default_factory=list)

    def add_line(self, record: dict[str, Any] | str) -> int:
        """Append a record (or a raw line) to shapes.jsonl; returns its line number from 1."""
        self.lines.append(record if isinstance(record, str) else json.dumps(record))
        return len(self.lines)


def build(folder: Path, seed: int = 0, conversations: int = 420) -> Corpus:
    """Make the corpus in ``folder``; the same arguments give the same bytes.

    Args:
        folder: Made where it is not there.
        seed: Of the choice of pictures.
        conversations: Pictures with a conversation each in ``shapes.jsonl``.

    Raises:
        MissingExtraError: a package of the ``[demo]`` extra is not installed.
    """
    for package in ("easy_vqa", "foolbox", "PIL", "sklearn"):
        _package_folder(package)
    corpus = Corpus(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "album").mkdir(exist_ok=True)
    randomness = random.Random(seed)
    pictures = list(_shape_pictures(randomness, conversations + _PARQUET_PICTURES))
    for picture in pictures[:conversations]:
        _write_conversation(corpus, picture, randomness)
    _write_parquet(folder, pictures[conversations:])
    photographs = _photographs()
    _write_photos(folder, photographs)
    _write_album(folder)
    plant(corpus, photographs)
    (folder / "shapes.jsonl").write_text("\n".join(corpus.lines) + "\n", encoding="utf-8")
    truth = [asdict(planted) for planted in corpus.planted]
    (folder / "planted.json").write_text(json.dumps(truth, indent=2), encoding="utf-8")
    return corpus


@dataclass(frozen=True)
class _Picture:
    number: int
    file: Path
    questions: list[tuple[str, str]]


def _shape_pictures(randomness: random.Random, count: int) -> Iterator[_Picture]:
    """A seeded choice of easy-vqa pictures, each with its questions and right answers."""
    import easy_vqa

    texts, answers, numbers = easy_vqa.get_train_questions()
    files = easy_vqa.get_train_image_paths()
    questions: dict[int, list[tuple[str, str]]] = {}
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        questions.setdefault(number, []).append((text, answer))
    rich = sorted(number for number, asked in questions.items() if len(asked) >= 6)
    for number in randomness.sample(rich, count):
        yield _Picture(number, Path(files[number]), questions[number])


def _write_conversation(corpus: Corpus, picture: _Picture, randomness: random.Random) -> None:
    """One LLaVA-style record: every question a turn, one as multiple choice, and a description."""
    name = f"pictures/shape_{picture.number:05d}.png"
    (corpus.folder / name).write_bytes(picture.file.read_bytes())
    turns = [*picture.questions, _as_choice(picture, randomness), (_DESCRIBE, _describe(picture))]
    conversations = [
        message
        for question, answer in turns
        for message in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]
    conversations[0]["value"] = "<image>\n" + conversations[0]["value"]
    record = {"id": f"shape_{picture.number:05d}", "image": name, "conversations": conversations}
    corpus.add_line(record)


def _as_choice(picture: _Picture, randomness: random.Random) -> tuple[str, str]:
    """The first question about a colour or a shape, with four options."""
    shapes = ["circle", "rectangle", "triangle"]
    colours = ["black", "gray", "red", "green", "blue", "yellow", "teal", "brown"]
    question, answer = next(
        ((q, a) for q, a in picture.questions if a in shapes or a in colours),
        picture.questions[0],
    )
    kind = shapes if answer in shapes else colours if answer in colours else ["yes", "no"]
    options = [answer, *randomness.sample([o for o in kind if o != answer], min(3, len(kind) - 1))]
    randomness.shuffle(options)
    listed = "\n".join(f"{letter}. {o}" for letter, o in zip(_LETTERS, options, strict=False))
    return f"{question.capitalize()}\n{listed}", _LETTERS[options.index(answer)]


def _describe(picture: _Picture) -> str:
    """A long answer put together from the picture's own questions and answers."""
    facts = [
        f"To the question {question!r} the answer is {a}." for question, a in picture.questions
    ]
    return "The picture shows a single flat shape on a plain background. " + " ".join(facts)


def _write_parquet(folder: Path, pictures: list[_Picture]) -> None:
    rows = [
        {
            "id": f"table_{picture.number:05d}_{turn}",
            "image": {"bytes": picture.file.read_bytes(), "path": f"{picture.number}.png"},
            "question": question,
            "answer": answer,
        }
        for picture in pictures
        for turn, (question, answer) in enumerate(picture.questions[:3])
    ]
    pl.DataFrame(rows).write_parquet(folder / "shapes.parquet")


def _photographs() -> dict[str, bytes]:
    """Name -> JPEG bytes of the photographs that foolbox and scikit-learn carry."""
    names: dict[str, bytes] = {}
    for package, pattern in (("foolbox", "data/imagenet_*.jpg"), ("sklearn", "**/images/*.jpg")):
        for file in sorted(_package_folder(package).glob(pattern)):
            names[file.stem] = file.read_bytes()
    return names


def _package_folder(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtraError(package, extra="demo", needed_for="the demo corpus")
    return Path(spec.origin).parent


def _write_photos(folder: Path, photographs: dict[str, bytes]) -> None:
    with tarfile.open(folder / "photos.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in photographs.items():
            caption = {"question": "What is the main subject of this photograph?", "id": name}
            for suffix, member in (("jpg", content), ("json", json.dumps(caption).encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))


def _write_album(folder: Path) -> None:
    for file in sorted(_package_folder("foolbox").glob("data/cifar*.png")):
        (folder / "album" / file.name).write_bytes(file.read_bytes())
        (folder / "album" / f"{file.stem}.txt").write_text("What does this small picture show?")


def plant(corpus: Corpus, photographs: dict[str, bytes]) -> None:
    """Put known duplicates and known bad rows into the corpus."""
    _plant_repeated_rows(corpus)
    _plant_saved_again(corpus, photographs)
    _plant_bad_rows(corpus)


def _plant_repeated_rows(corpus: Corpus) -> None:
    """The same picture and question under another id: letter for letter, and with a word more."""
    for number, line in enumerate(corpus.lines[:20]):
        record = json.loads(line)
        question, answer = record["conversations"][0], record["conversations"][1]
        again = {**record, "id": f"again_{number:02d}", "conversations": [question, answer]}
        corpus.add_line(again)
        corpus.planted.append(Planted("repeated row", "shapes.jsonl", again["id"], "exact"))
        reworded = {"from": "human", "value": f"Please {_DESCRIBE[0].lower()}{_DESCRIBE[1:]}"}
        description = record["conversations"][-1]
        near = {**record, "id": f"reworded_{number:02d}", "conversations": [reworded, description]}
        corpus.add_line(near)
        corpus.planted.append(Planted("reworded prompt", "shapes.jsonl", near["id"], "near"))


def _plant_saved_again(corpus: Corpus, photographs: dict[str, bytes]) -> None:
    """Photographs as they come back from the web: smaller, another quality, another format."""
    from PIL import Image

    edits: list[tuple[str, Callable[[Any], Any], str, dict[str, Any]]] = [
        ("half size", lambda i: i.resize((i.width // 2, i.height // 2)), "jpg", {"quality": 90}),
        ("JPEG quality 40", lambda i: i, "jpg", {"quality": 40}),
        ("as WebP", lambda i: i, "webp", {"quality": 80}),
    ]
    for index, (name, content) in enumerate(photographs.items()):
        what, edit, suffix, options = edits[index % len(edits)]
        image = edit(Image.open(io.BytesIO(content)).convert("RGB"))
        image.save(corpus.folder / "album" / f"{name}.{suffix}", **options)
        text = "What is the main subject of this photograph?"
        (corpus.folder / "album" / f"{name}.txt").write_text(text)
        corpus.planted.append(Planted(f"photograph {what}", "album", f"{name}.{suffix}", "near"))


def _plant_bad_rows(corpus: Corpus) -> None:
    """One of each kind of bad row that a line of JSON can be."""
    good = json.loads(corpus.lines[0])
    pictures = corpus.folder / "pictures"
    whole = (corpus.folder / good["image"]).read_bytes()
    (pictures / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "page.png").write_bytes(b"<html>404 Not Found</html>")
    (pictures / "bomb.png").write_bytes(_bomb())
    talk = good["conversations"][:2]
    empty = [{"from": "human", "value": "<image>\n  "}, talk[1]]
    twice = [{"from": "human", "value": "<image>\n<image>\nWhat differs?"}, talk[1]]
    bad: list[tuple[str, str | dict[str, Any], str]] = [
        ("line cut short", corpus.lines[1][:80], "broken_record"),
        ("a list where an object belongs", "[1, 2, 3]", "wrong_type"),
        ("picture not there", {"image": "pictures/absent.png"}, "missing_media"),
        ("picture cut short", {"image": "pictures/truncated.png"}, "truncated_media"),
        ("a web page saved as picture", {"image": "pictures/page.png"}, "unreadable_media"),
        ("decompression bomb", {"image": "pictures/bomb.png"}, "too_many_pixels"),
        ("path that leaves the folder", {"image": "../../etc/passwd"}, "outside_root"),
        ("empty prompt", {"conversations": empty}, "empty_prompt"),
        ("two marks, one picture", {"conversations": twice}, "marks_and_media_differ"),
    ]
    for what, change, reason in bad:
        plain = {"id": f"bad_{reason}", "image": good["image"], "conversations": talk}
        line = corpus.add_line(change if isinstance(change, str) else {**plain, **change})
        corpus.planted.append(Planted(what, "shapes.jsonl", f"shapes.jsonl:{line}", reason))


def _bomb() -> bytes:
    """A valid PNG header of 30,000 by 30,000 pixels with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
