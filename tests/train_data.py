"""Tiny models and shards for the tests of training: text alone, and pictures."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from mmrlhf_engine import run_mm_dpo, run_reference
from mmrlhf_engine.pack import pack
from pack_data import tokenizer_folder, words, write_lines
from tiny_models import TEXT

# One process imports the heavy packages; each run is forked from it, before any thread is started.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch", "accelerate", "transformers.models.qwen2.modeling_qwen2"),
        *("mmrlhf_engine.train.mm_dpo", "train_data"),
    ]
)


def text_model(folder: Path, seed: int = 0) -> Path:
    """A random Qwen2 with a tokenizer, saved as a Hugging Face folder."""
    tokenizer_folder(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**TEXT, vocab_size=len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    return folder


def text_rows(queries: int, *, answers: int = 3, margins: bool = True, seed: int = 0) -> list[dict]:
    """All pairs of the answers of each query, the earlier answer being the better one."""
    rows = []
    for query in range(queries):
        prompt = f"{words(seed + query, 9)} {query}?"
        texts = [f"{words(1000 + 10 * query + n, 3 + n)} {n}" for n in range(answers)]
        for chosen in range(answers):
            for rejected in range(chosen + 1, answers):
                row = {"prompt": prompt, "chosen": texts[chosen], "rejected": texts[rejected]}
                if margins:
                    row["margin"] = 0.5 * (rejected - chosen)
                rows.append(row)
    return rows


def judged_rows(queries: int, *, ties: bool = True, seed: int = 0) -> list[dict]:
    """Pairs with reasons of an annotator; some are ties, and every fifth query has no reason."""
    rows = text_rows(queries, seed=seed)
    reasons = {}
    for number, row in enumerate(rows):
        query = int(row["prompt"].split()[-1].rstrip("?"))
        for side in ("chosen", "rejected"):
            length = 2 + len(row[side]) % 5
            reasons.setdefault(row[side], f"{words(5000 + len(reasons), length)}.")
            if query % 5:
                row[f"{side}_reason"] = reasons[row[side]]
        row["is_tie"] = ties and number % 4 == 3
    return rows


def pack_rows(folder: Path, rows: list[dict], out: Path, **settings) -> Path:
    """Pack rows with the tokenizer, or for the processor, of a model's folder."""
    source = write_lines(out.parent / f"{out.name}.jsonl", rows)
    kind = "model" if (folder / "processor_config.json").exists() else "tokenizer"
    config = pack.PackConfig(sources=[str(source)], **{kind: str(folder)}, **settings)
    pack.pack_dataset(config, out)
    return out


def text_shards(folder: Path, *, queries: int = 12, **options) -> tuple[Path, Path]:
    """A text model, and shards that are packed for it."""
    model = text_model(folder / "model")
    return model, pack_rows(model, text_rows(queries, **options), folder / "shards")


def metrics_of(folder: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` of a command's folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(model: Path, shards: Path, out: Path, settings: dict) -> multiprocessing.Process:
    """Train by MM-DPO in another process."""
    process = SERVER.Process(target=_train, args=(model, shards, out, settings))
    process.start()
    return process


def start_reference(model: Path, shards: Path, out: Path, settings: dict) -> Any:
    """Score responses in another process, with a record of what is done after every second pack."""
    process = SERVER.Process(target=_score, args=(model, shards, out, settings))
    process.start()
    return process


def _score(model: Path, shards: Path, out: Path, settings: dict) -> None:
    from mmrlhf_engine.train import reference

    os.environ["HF_HUB_OFFLINE"] = "1"
    reference._KEEP_EVERY = 2
    run_reference(shards, model, out, settings)


def _train(model: Path, shards: Path, out: Path, settings: dict) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        run_mm_dpo(shards, model, out, settings)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
