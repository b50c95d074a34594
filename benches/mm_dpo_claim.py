"""MM-DPO's claim in small: do margins of a reward model help a policy, beside other rules of beta?

The demo's pipeline on easy-vqa (a small vision-language model, four sampled answers a question, a
simulated annotator who takes right for wrong in a share of the questions), then one policy for each
rule, all with the same pairs in the same order:

    dpo        beta for all pairs
    paper      beta by the margin of the reward model, as MM-RLHF prints it
    constant   the mean of the betas of ``paper`` for all pairs
    released   the rule of the code released with the paper
    truth      ``paper`` with margins that know which pairs were flipped
    drop       dpo without the fifth of the pairs that has the lowest margins

What is compared is held-out accuracy, the mean over the kinds of questions, on the same questions
for all. Differences to ``dpo`` are paired by seed; intervals are Student's t over the seeds.

    python benches/mm_dpo_claim.py --work FOLDER [--only-record]

Results are kept in FOLDER/results.jsonl, and what is there is not run again.
"""

import argparse
import json
import math
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import polars as pl
import torch

from mmrlhf_engine import demo
from mmrlhf_engine.demo import curate_demo, vqa_curated, vqa_margins, vqa_pipeline
from mmrlhf_engine.demo.vqa_pipeline import Prepared, Recipe, evaluate_model, train_variant
from mmrlhf_engine.demo.vqa_questions import Question
from mmrlhf_engine.demo.vqa_run import run_stage_in
from mmrlhf_engine.shards.dataset import open_dataset
from mmrlhf_kernels import dynamic_beta
from record import write_record

PLAN = [(0.2, seed) for seed in range(5)] + [
    (flip, seed) for flip in (0.0, 0.4) for seed in range(3)
]
MARGIN = "margin/demo/margin"
RULES: dict[str, dict[str, Any]] = {
    "dpo": {"beta_rule": "constant"},
    "paper": {"beta_rule": "paper", "margin": MARGIN},
    "constant": {"beta_rule": "constant"},
    "released": {"beta_rule": "released"},
    "truth": {"beta_rule": "paper", "margin": "margin/truth/margin"},
    "drop": {"beta_rule": "constant"},
}
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--only-record", action="store_true")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    results = given.work / "results.jsonl"
    for flip, seed in [] if given.only_record else PLAN:
        run_seed(given.work, results, flip, seed)
    rows = known(results)
    print(write_record("mm_dpo_claim", parameters(rows), summary(rows), NOT_MEASURED))


def run_seed(work: Path, results: Path, flip: float, seed: int) -> None:
    """Everything of one seed and share of flipped questions that is not there yet."""
    done = {row["rule"] for row in known(results) if (row["flip"], row["seed"]) == (flip, seed)}
    wanted = [name for name in ("judges", "base", *RULES) if name not in done]
    if not wanted:
        return
    folder = work / f"flip{flip:g}_seed{seed}"
    share_features(work, folder)
    prepared = vqa_pipeline.prepare(folder, questions(work), seed=seed, recipe=Recipe(flip=flip))
    for name in wanted:
        row = {"flip": flip, "seed": seed, "rule": name}
        if name == "judges":
            row |= judges(prepared, flip, seed)
        else:
            row |= policy_of(prepared, name)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def questions(work: Path) -> list[Question]:
    """The curated questions of the demo's corpus, as the demo has them."""
    settings = {"select.count": demo._SELECTED, "select.question_types": demo._MOST_SHORT}
    curated, _ = curate_demo.curate_corpus(
        work / "curated", settings, demo._CONVERSATIONS, progress="silent"
    )
    return vqa_curated.curated_questions(curated)


def share_features(work: Path, folder: Path) -> None:
    """The tower's outputs are the same for all seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    (work / "features").mkdir(exist_ok=True)
    if not (folder / "features").exists():
        (folder / "features").symlink_to((work / "features").resolve())


def judges(prepared: Prepared, flip: float, seed: int) -> dict[str, Any]:
    """Accuracy against the truth of the reward model, and of one without critiques."""
    found = {"with_critiques": facts(prepared)}
    if flip == 0.2 and seed < 3:
        place, recipe = prepared.place, prepared.recipe
        settings = vqa_pipeline.reward_settings(place, recipe, prepared.base)
        report = run_stage_in(
            "reward", {**settings, "critiques": "none"}, place.folder / "reward_plain"
        )
        shards = copied(prepared, "plain")
        settings = {"shards": str(shards), "name": "demo", "threads": 1}
        settings["model"] = str(Path(report["folder"]) / "model")
        run_stage_in("score", settings, place.folder / "score_plain")
        column = open_dataset(shards).column("margin/demo", "margin")
        found["without_critiques"] = facts(prepared, column)
    return found


def facts(prepared: Prepared, margins: pl.Series | None = None) -> dict[str, Any]:
    known_margins = vqa_margins.read_margins(prepared)
    if margins is not None:
        values = margins.to_numpy().astype(np.float64)
        known_margins = vqa_margins.Margins(values, known_margins.flipped)
    return known_margins.facts()


def policy_of(prepared: Prepared, name: str) -> dict[str, Any]:
    """Train one policy, and its held-out accuracy."""
    settings = dict(RULES.get(name, {}))
    if name == "base":
        section = evaluate_model(prepared, name, prepared.base)
    else:
        margins = vqa_margins.read_margins(prepared)
        beta = dynamic_beta(torch.from_numpy(margins.margin), 0.1).mean()
        if name == "constant":
            settings["beta"] = float(beta)
        if name == "truth":
            add_truth(prepared, margins)
        if name == "drop":
            settings["shards"] = str(without_lowest(prepared, margins))
        report = train_variant(prepared, name, settings)
        section = evaluate_model(prepared, name, Path(report["folder"]) / "model")
    kinds = {kind: own["acc"] for kind, own in section["by_kind"].items()}
    return {"accuracy": section["balanced"]["acc"], "kinds": kinds, "settings": settings}


def add_truth(prepared: Prepared, margins: vqa_margins.Margins) -> None:
    """A column of margins of one size, by the truth."""
    dataset = open_dataset(prepared.policy_shards)
    if any(entry.name == "margin/truth" for entry in dataset.column_sets):
        return
    size = float(np.abs(margins.margin).mean())
    values = pl.Series("margin", np.where(margins.flipped, -size, size)).cast(pl.Float32)
    dataset.add_column(
        values.to_frame(), table="pairs", column_set="margin/truth", provenance={"size": size}
    )


def copied(prepared: Prepared, name: str) -> Path:
    """A copy of the policy's shards, whose columns can be others."""
    target = prepared.place.shards(f"policy_{name}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(prepared.policy_shards, target)
    return target


def without_lowest(prepared: Prepared, margins: vqa_margins.Margins) -> Path:
    """The policy's shards with the fifth of lowest margins marked as deleted."""
    shards = copied(prepared, "drop")
    lowest = np.zeros(len(margins.margin), bool)
    lowest[np.argsort(margins.margin, kind="stable")[: len(lowest) // 5]] = True
    open_dataset(shards).add_column(
        pl.DataFrame({"deleted": lowest}), table="pairs", column_set="deleted", provenance={}
    )
    return shards


def known(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    # Where nothing is flipped there is no area under the curve, which is NaN.
    return [json.loads(line, parse_constant=lambda _: None) for line in lines]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By share of flipped questions and rule: accuracies, and differences to ``dpo``."""
    found = []
    for flip in sorted({row["flip"] for row in rows}):
        own = [row for row in rows if row["flip"] == flip]
        of_rule = {
            name: {row["seed"]: row["accuracy"] for row in own if row["rule"] == name}
            for name in ("base", *RULES)
        }
        for name, values in of_rule.items():
            pairs = [
                values[seed] - of_rule["dpo"][seed] for seed in values if seed in of_rule["dpo"]
            ]
            line = {
                "flip": flip,
                "rule": name,
                "seeds": sorted(values),
                "accuracy": list(values.values()),
            }
            if values:
                line["mean"] = statistics.fmean(values.values())
            if name != "dpo" and pairs:
                line |= {"to_dpo": statistics.fmean(pairs), "interval": interval(pairs)}
            found.append(line)
        found += [row for row in own if row["rule"] == "judges"]
    return found


def interval(values: list[float]) -> list[float] | None:
    """Of the mean, 95 %."""
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = T95[len(values) - 1] * deviation / math.sqrt(len(values))
    return [mean - half, mean + half]


def parameters(rows: list[dict[str, Any]]) -> dict[str, Any]:
    recipe = Recipe()
    return {
        "planned": PLAN,
        "run": sorted({(row["flip"], row["seed"]) for row in rows}),
        "beta": 0.1,
        "beta_w": 0.5,
        "beta_k": 0.5,
        "wrong": recipe.wrong,
        "samples": recipe.samples,
        "steps": [recipe.supervised_steps, recipe.reward_steps, recipe.policy_steps],
    }


NOT_MEASURED = [
    "models and data of the paper's size: this is a text model of two layers on synthetic shapes",
    "human annotators: errors are independent of how hard a question is",
    "the learning rate and the weight of the supervised loss of each rule apart: all have the same",
    "time: policies ran beside other work",
]


if __name__ == "__main__":
    main()
