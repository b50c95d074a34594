"""Data for the tests of pack: a small real tokenizer with a chat template, pictures, files."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<image>"),
    *("<img>", "</img>", "<IMG_CONTEXT>"),
)
TEXTS = (
    "The picture shows a red apple on a wooden table beside a window.",
    "There are two dogs and one cat in the garden, and it is raining.",
    "How many people can be seen in this photograph? Answer in one word.",
    "Describe what is written on the sign, and say where it stands.",
    "user assistant system tool: a short answer is better than a long one.",
)


def tokenizer_folder(
    folder: Path, template: str | None = CHATML, special: Sequence[str] = ()
) -> Path:
    """A byte-level BPE of 500 tokens, trained here, saved as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*SPECIAL, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def picture(width: int = 64, height: int = 48, *, seed: int = 0, kind: str = "PNG") -> bytes:
    """A picture of smooth colours that differ by ``seed``."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def put(path: Path, content: bytes) -> str:
    """Write a file, creating its folder; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.name


def write_lines(path: Path, rows: list) -> Path:
    """JSON Lines; a row that is text goes in as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def words(seed: int, count: int = 8) -> str:
    """Some words, different for every seed."""
    generator = np.random.default_rng(seed)
    vocabulary = " ".join(TEXTS).split()
    return " ".join(vocabulary[int(n)] for n in generator.integers(0, len(vocabulary), count))


def pack_in_process(source: str, tokenizer: str, out: str) -> None:
    """Append a source to a dataset; the target of a process that is started to do so."""
    from mmrlhf_engine.pack import pack

    report = pack.pack_dataset(
        pack.PackConfig(sources=[source], tokenizer=tokenizer, append=True), Path(out)
    )
    assert report["pairs_out"] == 30


def stored(out: Path) -> list[dict]:
    """Every pair of the newest version with its query, responses and pictures, by pyarrow alone."""
    manifest = json.loads(sorted((out / "_mmrlhf").glob("manifest-*.json"))[-1].read_text())
    pictures = {}
    for blobs in manifest["blobs"]:
        for row, blob in enumerate(_rows(out / blobs["file"])):
            pictures[blobs["id"] << 32 | row] = blob["bytes"]
    found = []
    for shard in manifest["shards"]:
        queries, responses, pairs = (_rows(out / shard[letter]["file"]) for letter in "qrp")
        for row in (*queries, *responses):
            row["pictures"] = [pictures[blob] for blob in row["media"]]
        for pair in pairs:
            ends = {side: responses[pair[side]] for side in ("chosen", "rejected")}
            found.append({**pair, **ends, "query": queries[pair["q"]]})
    return found


def _rows(file: Path) -> list[dict]:
    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()
