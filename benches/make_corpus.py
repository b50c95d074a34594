"""A corpus of any size with planted duplicates whose distances are known: JSONL, streamed.

    python benches/make_corpus.py OUT --rows 10000000

Writes ``OUT/rows/*.jsonl`` (records with a prompt, an answer and, in four of five, a picture that
is stored as its hash alone), ``OUT/truth.parquet`` (what each planted row was made from, the
Jaccard index of the two shingle sets and the bits in which the hashes differ) and, with
``--width``, ``OUT/embeddings.npy`` (float16 unit rows, a mixture of Gaussians) with the ids of its
rows in ``OUT/embeddings.ids``. The same seed and number of rows give the same bytes.

What a row is:

| kind | share | made of |
|---|---|---|
| base | the rest | a new text of 20 to 100 words by Zipf's law, a new picture |
| question | 25 % | a new text on a picture of the last few thousand rows |
| hot | 5 % | one of twenty prompts such as "Describe this image.", a new picture |
| template | 3 % | a long instruction that all of them share, then a few words; no picture |
| exact | 3 % | text and picture of an earlier row |
| text | 4 % | some words of an earlier text replaced, the same picture |
| picture | 3 % | an earlier text, up to 8 bits of the hash flipped |
| other_text | 1 % | half of the words replaced, the same picture: no duplicate |
| other_picture | 1 % | the same text, another picture: no duplicate |

One row in ten is in another language than English: German, Russian or Chinese. Planted rows are
made from rows up to a few hundred thousand before them, so copies also lie in other files.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 20_000
"""Rows that are made and written at once."""
REMEMBERED = 300_000
"""Earlier rows that planted rows are made from."""
VOCABULARY = 60_000
SHINGLE = 3
SHARES = {
    "question": 0.25,
    "hot": 0.05,
    "template": 0.03,
    "exact": 0.03,
    "text": 0.04,
    "picture": 0.03,
    "other_text": 0.01,
    "other_picture": 0.01,
}
"""By kind; the rest of the rows are ``base``."""
COPIES = ("exact", "text", "picture", "other_text", "other_picture")
FIRST_WORDS = {
    "en": "the of a what is in this picture and how many to are on which color where does it with "
    "for that person as from by have at one there was you or can describe show their some these "
    "two not be left right has all between than more most each his her they into when why who",
    "de": "die der und in den von zu das mit sich des auf ist im dem nicht ein eine als auch es an "
    "werden aus er hat dass sie nach wird bei einer um am sind noch wie einem so zum",
    "ru": "",
    "zh": "",
}
"""The most frequent words; further ones are made of syllables."""
SYLLABLES = {
    "en": "ba ker ton ing sil va mor ter lin da pro con tra ble ment ous ist ra ne cu",
    "de": "schaf ung ver lich keit bau haus ge stein berg werk ab auf zeit tra nis",
    "ru": " ".join(chr(0x430 + code) for code in range(32)),
    "zh": " ".join(chr(0x4E00 + code) for code in range(3000)),
}
TEMPLATE = (
    "Below is an instruction that describes a task, paired with an input that gives further "
    "context. Write a response that completes the request and explain every step of it: "
)
HOT = tuple(
    f"{verb} {what}."
    for verb in ("Describe", "Summarize", "Explain", "What is shown in")
    for what in ("this image", "the picture", "the photo in detail", "what you see", "the scene")
)


@dataclass
class Rows:
    """Rows of one chunk, or those remembered of chunks before it."""

    number: np.ndarray
    """int64 [n]: the place of the row in the corpus."""
    words: np.ndarray
    """int32 [n, 100]: words of the vocabulary of its language, -1 behind the last."""
    language: np.ndarray
    """int8 [n]."""
    picture: np.ndarray
    """uint64 [n]: the hash, 0 for none."""

    def take(self, rows: np.ndarray) -> "Rows":
        """Some of the rows, copied."""
        return Rows(self.number[rows], self.words[rows], self.language[rows], self.picture[rows])


class Vocabulary:
    """Words of each language by rank, and Zipf's law over them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.languages = list(FIRST_WORDS)
        self.words = pa.chunked_array(
            [pa.array(self._words(language, rng), pa.string()) for language in self.languages]
        ).combine_chunks()
        weights = 1 / np.arange(2, VOCABULARY + 2)
        self.cumulated = np.cumsum(weights) / weights.sum()

    @staticmethod
    def _words(language: str, rng: np.random.Generator) -> list[str]:
        words = dict.fromkeys(FIRST_WORDS[language].split())
        syllables = SYLLABLES[language].split()
        while len(words) < VOCABULARY:
            drawn = rng.integers(0, len(syllables), (VOCABULARY, 5))
            lengths = rng.integers(2, 6, VOCABULARY)
            pairs = zip(drawn.tolist(), lengths.tolist(), strict=True)
            words.update(
                dict.fromkeys("".join(syllables[i] for i in row[:length]) for row, length in pairs)
            )
        return list(words)[:VOCABULARY]

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """int32: ranks of words, the frequent ones more often."""
        return np.searchsorted(self.cumulated, rng.random(shape)).astype(np.int32)

    def texts(self, rows: Rows) -> pa.Array:
        """The words of each row, joined by blanks."""
        lengths = (rows.words >= 0).sum(axis=1)
        offset = rows.language.astype(np.int64)[:, None] * VOCABULARY
        flat = (rows.words + offset)[rows.words >= 0]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), self.words.take(pa.array(flat)))
        return pc.binary_join(lists, " ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a corpus with planted duplicates.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rows-per-file", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=0, help="of the embeddings; 0: none")
    options = parser.parse_args()
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    truth = []
    for start, rows, kinds, planted, prompts in chunks(options.rows, options.seed):
        file = options.out / "rows" / f"rows-{start // options.rows_per_file:05d}.jsonl"
        with file.open("ab" if start % options.rows_per_file else "wb") as lines:
            lines.write(records(rows, prompts, options.seed, start))
        truth.append(planted.with_columns(kind=pl.Series(kinds)).filter(pl.col("of") >= 0))
    pl.concat(truth).write_parquet(options.out / "truth.parquet")
    if options.width:
        write_embeddings(options.out, options.rows, options.width, options.seed)
    print(json.dumps({"rows": options.rows, "planted": sum(part.height for part in truth)}))


def chunks(total: int, seed: int) -> Iterator[tuple[int, Rows, np.ndarray, pl.DataFrame, pa.Array]]:
    """The rows from ``start`` on, the kind of each, what planted ones were made from, the texts."""
    vocabulary = Vocabulary(np.random.default_rng([seed, 1]))
    memory: Rows | None = None
    for start in range(0, total, CHUNK):
        rng = np.random.default_rng([seed, 2, start])
        count = min(CHUNK, total - start)
        names = [*SHARES, "base"]
        shares = [*SHARES.values(), 1 - sum(SHARES.values())]
        kinds = np.array(names)[rng.choice(len(names), count, p=shares)]
        if memory is None:  # nothing to make copies from yet
            kinds[np.isin(kinds, [*COPIES, "question"])] = "base"
        rows = new_rows(start, count, kinds, vocabulary, rng)
        planted = plant(rows, kinds, memory, vocabulary, rng)
        prompts = with_fixed_texts(vocabulary.texts(rows), kinds, rng)
        yield start, rows, kinds, planted, prompts
        seen = rows.take(np.flatnonzero(kinds == "base"))
        memory = seen if memory is None else join(memory, seen)


def join(memory: Rows, seen: Rows) -> Rows:
    """The last rows of both."""
    columns = ("number", "words", "language", "picture")
    kept = [np.concatenate([getattr(memory, c), getattr(seen, c)])[-REMEMBERED:] for c in columns]
    return Rows(*kept)


def new_rows(
    start: int, count: int, kinds: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator
) -> Rows:
    lengths = rng.integers(20, 101, count)
    lengths[kinds == "template"] = rng.integers(4, 12, int((kinds == "template").sum()))
    words = vocabulary.draw((count, 100), rng)
    words[np.arange(100) >= lengths[:, None]] = -1
    language = np.where(rng.random(count) < 0.1, rng.integers(1, 4, count), 0).astype(np.int8)
    language[np.isin(kinds, ["template", "hot"])] = 0
    picture = rng.integers(1, 2**64 - 1, count, dtype=np.uint64)
    picture[(rng.random(count) < 0.24) & (kinds == "base")] = 0
    picture[kinds == "template"] = 0
    return Rows(np.arange(start, start + count), words, language, picture)


def plant(
    rows: Rows,
    kinds: np.ndarray,
    memory: Rows | None,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Make copies from rows remembered; ``of`` is -1 for rows that are none."""
    count = len(rows.number)
    of = np.full(count, -1)
    jaccard = np.ones(count)
    hamming = np.zeros(count, np.int64)
    if memory is not None:
        places = rng.integers(0, len(memory.number), count)
        asks = kinds == "question"
        rows.picture[asks] = memory.picture[places[asks]]
        copies = np.isin(kinds, COPIES)
        of[copies] = memory.number[places[copies]]
        rows.words[copies] = memory.words[places[copies]]
        rows.language[copies] = memory.language[places[copies]]
        other = kinds == "other_picture"
        rows.picture[copies & ~other] = memory.picture[places[copies & ~other]]
        replace_words(rows, kinds, jaccard, vocabulary, rng)
        for row in np.flatnonzero((kinds == "picture") & (rows.picture > 0)):
            bits = rng.permutation(64)[: rng.integers(1, 9)]
            rows.picture[row] ^= np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
            hamming[row] = len(bits)
    return pl.DataFrame({"row": rows.number, "of": of, "jaccard": jaccard, "hamming": hamming})


def replace_words(
    rows: Rows,
    kinds: np.ndarray,
    jaccard: np.ndarray,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> None:
    """Replace one to four words of rows of kind ``text``, half of those of ``other_text``."""
    for row in np.flatnonzero(np.isin(kinds, ["text", "other_text"])):
        before = rows.words[row].copy()
        length = int((before >= 0).sum())
        changed = rng.integers(1, 5) if kinds[row] == "text" else length // 2
        places = rng.permutation(length)[:changed]
        rows.words[row, places] = vocabulary.draw((changed,), rng)
        jaccard[row] = jaccard_of(before[:length], rows.words[row, :length])


def jaccard_of(a: np.ndarray, b: np.ndarray) -> float:
    """Of the sets of runs of three words."""
    sets = [
        set(zip(*(words[i:].tolist() for i in range(SHINGLE)), strict=False)) for words in (a, b)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def with_fixed_texts(texts: pa.Array, kinds: np.ndarray, rng: np.random.Generator) -> pa.Array:
    """The texts, with hot prompts in the place of some and the template in front of others."""
    hot = pa.array(HOT).take(pa.array(rng.integers(0, len(HOT), len(texts))))
    behind = pc.binary_join_element_wise(TEMPLATE, texts, "")
    texts = pc.if_else(pa.array(kinds == "hot"), hot, texts)
    return pc.if_else(pa.array(kinds == "template"), behind, texts)


def records(rows: Rows, prompts: pa.Array, seed: int, start: int) -> bytes:
    """Lines of JSON: id, prompt, answer, and the hash of the picture where there is one."""
    rng = np.random.default_rng([seed, 3, start])
    sizes = np.array([[640, 480], [1024, 768], [800, 600], [336, 336]])
    # A picture has one size wherever it occurs.
    size = sizes[(rows.picture >> np.uint64(7)).astype(np.int64) % len(sizes)]
    texts = pl.Series("prompt", prompts)
    numbers = pl.Series(rows.picture)
    frame = pl.DataFrame(
        {
            "id": rows.number,
            "prompt": texts,
            "said": texts.str.slice(0, 40),
            "number": rng.integers(0, 9999, len(texts)),
            "picture": numbers,
            "width": size[:, 0],
            "height": size[:, 1],
        }
    )
    hexadecimal = pl.Series([f"{value:016x}" for value in rows.picture.tolist()])
    picture = pl.struct(phash=hexadecimal, width="width", height="height")
    with_picture = pl.when(pl.col("picture") > 0).then(picture).alias("image")
    # Too long to be a fact that another answer contradicts.
    answer = pl.format("It is about {} and is answer number {} of all.", "said", "number")
    identifier = pl.format("r{}", "id")
    frame = frame.select(identifier.alias("id"), "prompt", answer.alias("answer"), with_picture)
    return frame.write_ndjson().encode()


def write_embeddings(out: Path, rows: int, width: int, seed: int) -> None:
    """A mixture of 2,000 Gaussians of unequal weight, one unit row for every row of the corpus."""
    rng = np.random.default_rng([seed, 4])
    centres = rng.standard_normal((2000, width), dtype=np.float32)
    weights = 1 / np.arange(1, 2001) ** 0.7
    mapped = np.lib.format.open_memmap(
        out / "embeddings.npy", mode="w+", dtype=np.float16, shape=(rows, width)
    )
    with (out / "embeddings.ids").open("w", encoding="utf-8") as ids:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            which = rng.choice(2000, count, p=weights / weights.sum())
            block = centres[which] + 0.7 * rng.standard_normal((count, width), dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            mapped[start : start + count] = block
            ids.writelines(f"rows:r{number}\n" for number in range(start, start + count))


if __name__ == "__main__":
    main()
