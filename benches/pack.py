"""Processor seconds of ``pack`` for pairs of text and for pairs with a picture each query.

``python benches/pack.py`` writes MM-RLHF rows (a row a pair, six pairs a query), trains a small
byte-level BPE on their words, packs them in a process of its own and prints its processor seconds,
user and system, of all threads and without the start of Python and transformers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from loading.content import queries
from record import write_record

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image_pad|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|endoftext|>"]
WORDS = 4000
PACK = (
    "import resource, sys, json\n"
    "from mmrlhf_engine.pack import pack\n"
    "import transformers.models.auto.tokenization_auto\n"
    "config = pack.PackConfig(**json.loads(sys.argv[1]))\n"
    "before = resource.getrusage(resource.RUSAGE_SELF)\n"
    "from pathlib import Path\n"
    "pack.pack_dataset(config, Path(sys.argv[2]))\n"
    "after = resource.getrusage(resource.RUSAGE_SELF)\n"
    "from mmrlhf_engine.shards.dataset import open_dataset\n"
    "print(json.dumps({'processor_seconds': round(after.ru_utime - before.ru_utime"
    " + after.ru_stime - before.ru_stime, 2), 'peak_megabytes': after.ru_maxrss // 1000,"
    " 'fingerprint': open_dataset(Path(sys.argv[2])).fingerprint}))\n"
)


def main() -> None:
    """Write the rows, pack them, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000, help="Of text alone.")
    parser.add_argument("--pairs-with-pictures", type=int, default=9_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        tokenizer = _tokenizer(base / "tokenizer")
        cases = ((arguments.pairs, None), (arguments.pairs_with_pictures, 0.2))
        for pairs, megapixels in cases:
            folder = base / str(megapixels)
            _write(folder, pairs, megapixels)
            for run in range(arguments.runs):
                row = _packed(folder, tokenizer, base / f"{megapixels}-{run}", megapixels)
                rows.append({"pairs": pairs, "megapixels": megapixels, **row})
                print(rows[-1], flush=True)
    print(write_record("pack", vars(arguments), rows, ["a tokenizer of a released model"]))


def _packed(folder: Path, tokenizer: Path, out: Path, megapixels: float | None) -> dict[str, Any]:
    config = {
        "sources": [str(folder / "rows.jsonl")],
        "tokenizer": str(tokenizer),
        "image_rule": "none" if megapixels is None else "qwen2_vl",
        "threads": 1,
    }
    done = subprocess.run(
        [sys.executable, "-c", PACK, json.dumps(config), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _write(folder: Path, pairs: int, megapixels: float | None) -> None:
    """Rows of as many words as the bench of loading has tokens, two thirds each."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, query in enumerate(queries(-(-pairs // 6), megapixels)):
            if query.image is not None:
                (folder / f"{number}.jpg").write_bytes(query.image)
            prompt, *answers = (
                _text(generator, len(tokens)) for tokens in (query.prompt, *query.responses)
            )
            shown = {} if query.image is None else {"image": f"{number}.jpg"}
            mark = "<image>\n" if shown else ""
            for chosen, rejected in combinations(answers, 2):
                row = {"id": f"q{number}", **shown, "prompt": f"{mark}{prompt}?"}
                file.write(json.dumps({**row, "chosen": chosen, "rejected": rejected}) + "\n")


def _text(generator: np.random.Generator, tokens: int) -> str:
    return " ".join(f"w{word}" for word in generator.integers(0, WORDS, max(1, tokens * 2 // 3)))


def _tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(f"w{word}" for word in range(WORDS))], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
