"""``score`` beside a plain loop: ``generate`` for each answer, then a forward pass for its reward.

Both write critiques greedily, some 13 tokens each, and read the reward after them, with the demo's
model (EfficientNet-Lite0 before a text model of two layers) after a few steps of training, on
questions about pictures of easy-vqa with four answers each. Rewards must be equal. The time of our
path is that of the whole stage; that of the loop leaves packing and loading out.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrlhf_engine import PreferenceDataset, open_dataset, run_reward, run_score
from mmrlhf_engine.demo.vqa_model import build_model
from mmrlhf_engine.demo.vqa_questions import COLOURS, critique, questions_of, words
from mmrlhf_engine.demo.vqa_run import pack_rows
from mmrlhf_engine.models.judge_turn import judge_turn
from mmrlhf_engine.models.reward_model import load_reward_model
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from record import write_record

QUERIES, ANSWERS, WRITTEN, ROUNDS = 48, 4, 20, 5
JUDGE = "judge the answer"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards, model = prepared(folder)
        rounds = []
        for number in range(ROUNDS):
            ours, rewards = timed(lambda n=number: by_stage(shards, model, folder / f"score{n}"))
            theirs, expected = timed(lambda: by_loop(shards, model))
            difference = float(np.abs(rewards - expected).max())
            assert difference < 1e-3, difference
            rounds.append({"ours": ours, "loop": theirs, "difference": difference})
            print(rounds[-1], flush=True)
    ratios = [one["loop"] / one["ours"] for one in rounds]
    row = {
        "answers": QUERIES * ANSWERS,
        "ratio_median": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "rounds": rounds,
    }
    parameters = {"queries": QUERIES, "answers": ANSWERS, "written": WRITTEN}
    print(write_record("score_throughput", parameters, [row], NOT_MEASURED))


def timed(work: Any) -> tuple[float, Any]:
    """Seconds of the processor, and what the work gives."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def prepared(folder: Path) -> tuple[Path, Path]:
    """Shards with four answers to each question, and a reward model."""
    start = build_model(folder / "start", sorted({*words(), *JUDGE.split()}), seed=0)
    asked = [one for one in questions_of("train") if one.kind == "colour"][:QUERIES]
    rows = [
        {
            "id": one.id,
            "image": str(one.file),
            "question": one.text,
            "models_output": list(COLOURS[:ANSWERS]),
            "rank": list(range(1, ANSWERS + 1)),
            "reason": [critique(one, colour, one.answer) for colour in COLOURS[:ANSWERS]],
        }
        for one in asked
    ]
    shards = pack_rows(folder / "shards", folder / "rows.jsonl", rows, start)
    # So many steps that it writes critiques, and not the marks of pictures.
    settings = {
        "steps": 60,
        "epochs": 100,
        "threads": 1,
        "data.tokens": 2700,
        "data.packs_per_step": 1,
        "optimizer.learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "instruction": JUDGE,
    }
    run_reward(shards, start, folder / "run", settings)
    model = folder / "run" / "10_reward" / "model"
    return shards, model


def by_stage(shards: Path, model: Path, out: Path) -> np.ndarray:
    settings = {"name": out.name, "sampling.max_new_tokens": WRITTEN, "threads": 1, "batch": 16}
    run_score(shards, model, out, settings)
    return open_dataset(shards).column(f"reward/{out.name}", "reward").to_numpy()


@torch.no_grad()
def by_loop(shards: Path, model: Path) -> np.ndarray:
    """Each answer alone, as one would write it with transformers."""
    loaded = load_reward_model(str(model)).model
    loaded.set_attn_implementation("sdpa")
    tokenizer = load_fast_tokenizer(str(model), needed_for="the loop")
    turn = judge_turn(tokenizer, JUDGE)
    opening, closing = (
        torch.from_numpy(ids.astype(np.int64)) for ids in (turn.opening, turn.closing)
    )
    rewards = np.empty(open_dataset(shards).rows("responses"), np.float32)
    stop = [int(closing[0])]
    for batch in PreferenceDataset(
        shards, 100, unit="response", window=1, threads=1, packs_per_step=1
    ):
        (response,) = batch.sequence_response.tolist()
        pixels = batch.model_inputs()["pixel_values"]
        ids = torch.cat([torch.from_numpy(batch.input_ids).long(), opening])[None]
        given = {"pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
        whole = loaded.generate(
            ids, **given, max_new_tokens=WRITTEN, do_sample=False, eos_token_id=stop, pad_token_id=0
        )
        if int(whole[0, -1]) == stop[0]:
            whole = whole[:, :-1]
        whole = torch.cat([whole, closing[None]], 1)
        states = loaded(
            whole,
            pixel_values=pixels,
            attention_mask=torch.ones_like(whole),
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1]
        rewards[response] = float(loaded.rm_head(states[0, -1:])[0])
    return rewards


NOT_MEASURED = [
    "a GPU, a model of real size, and pictures of many tokens",
    "memory: ours holds keys and values of 64 answers at once",
    "the start of a process, in which both import the same packages",
]


if __name__ == "__main__":
    main()
