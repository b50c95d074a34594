"""From curated questions to a better model, by the stages that anybody else would use.

    supervised pairs -> pack -> sft -> the base model, imperfect on purpose
    questions        -> pack -> sample -> four answers to each
    answers          -> a simulated annotator -> pair -> pack
    reward pairs     -> reward -> score -> margins beside the policy's pairs
    policy pairs     -> reference -> mm-dpo, and plain DPO beside it -> evaluate

:func:`prepare` does all that comes before the policies, :func:`train_variant` one policy, and
:func:`evaluate_model` its answers to pictures that no stage has seen. A stage that is finished and
unchanged is skipped; one that was interrupted goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf_engine.demo.vqa_model import JUDGE, build_model
from mmrlhf_engine.demo.vqa_questions import Question, questions_of, words
from mmrlhf_engine.demo.vqa_rows import (
    Annotation,
    Parts,
    Sizes,
    annotated,
    asked,
    divide,
    examined,
    supervised,
    write_rows,
)
from mmrlhf_engine.demo.vqa_run import answers_of, evaluate_in, pack_rows, run_stage_in

__all__ = [
    "BETA",
    "VARIANTS",
    "Prepared",
    "Recipe",
    "evaluate_model",
    "prepare",
    "train_variant",
]

BETA = 0.1
"""The least beta of a pair."""
VARIANTS: dict[str, dict[str, Any]] = {
    "mm_dpo": {"beta_rule": "paper", "margin": "margin/demo/margin"},
    "dpo": {"beta_rule": "constant"},
}
"""What tells the policies of the demo apart; all else is equal, the order of pairs too."""


@dataclass(frozen=True)
class Recipe:
    """What the demo does, in numbers; they were chosen on seeds 0 to 2 (``docs/log.md``)."""

    sizes: Sizes = field(default_factory=Sizes)
    wrong: float = 0.3
    """Share of wrong answers that the base model learns from."""
    flip: float = 0.2
    """Share of questions at which the annotator takes right for wrong."""
    samples: int = 4
    """Answers of the base model to each question."""
    supervised_steps: int = 80
    reward_steps: int = 400
    policy_steps: int = 150

    def training(self, place: "Place", steps: int, rate: float) -> dict[str, Any]:
        """The settings that all training stages share."""
        return {
            "seed": place.seed,
            "steps": steps,
            "epochs": 1_000,
            "threads": 1,
            "data.packs_per_step": 1,
            "gradient_checkpointing": False,
            "cache_features": str(place.features),
            "schedule.name": "linear",
            "optimizer.learning_rate": rate,
            "checkpoint.every": 200,
            "checkpoint.keep": 1,
        }


@dataclass(frozen=True)
class Place:
    """Where a run of the demo is, and what it depends on."""

    folder: Path
    seed: int
    progress: str = "silent"

    @property
    def features(self) -> Path:
        """Outputs of the tower, which all stages share."""
        return self.folder / "features"

    def shards(self, name: str) -> Path:
        """A dataset of preference shards."""
        return self.folder / "shards" / name

    def rows(self, name: str) -> Path:
        """Rows from which one is packed."""
        return self.folder / "rows" / f"{name}.jsonl"


@dataclass(frozen=True)
class Prepared:
    """Everything that policies are trained and measured with."""

    place: Place
    recipe: Recipe
    parts: Parts
    start: Path
    """The model with random weights, whose tokenizer and processor all shards are packed for."""
    base: Path
    """The model that the policies begin with, their reference, and the reward model's beginning."""
    sampled: dict[str, list[str]]
    """Answers of the base model, by the id of the question."""
    annotations: dict[str, list[Annotation]]
    """Of the parts ``reward`` and ``policy``."""
    reward: Path | None
    """The folder of the stage ``reward``; None where none was trained."""
    reports: dict[str, dict[str, Any]]
    """Of the stages, by name."""

    @property
    def policy_shards(self) -> Path:
        """The pairs of the policy, with their reference and margins."""
        return self.place.shards("policy")


def prepare(
    folder: Path,
    policy: Iterable[Question],
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    margins: bool = True,
    progress: str = "silent",
) -> Prepared:
    """Make a base model, pairs, a reward model, and a reference.

    Args:
        folder: Of this seed and recipe; what other ones have left there is replaced.
        policy: Questions of which the policy's part is taken.
        seed: Of everything random.
        recipe: Sizes, shares and steps.
        margins: Whether a reward model is trained and the policy's pairs are scored.
        progress: What is written to stderr: human, jsonl or silent.
    """
    recipe = recipe or Recipe()
    place = Place(folder, seed, progress)
    parts = divide(questions_of("train"), questions_of("test"), policy, recipe.sizes, seed)
    start = build_model(folder / "start", words(), seed)
    reports: dict[str, dict[str, Any]] = {}
    base = _base_model(place, recipe, parts, start, reports)
    questions = [*parts.reward, *parts.policy]
    pack_rows(place.shards("asked"), place.rows("asked"), asked(questions), start)
    settings = {
        "samples": recipe.samples,
        "seed": seed,
        "cache_features": str(place.features),
    }
    sampled, reports["sample"] = answers_of(
        place.shards("asked"), base, folder / "sample", questions, settings, progress
    )
    annotations = {
        "reward": annotated(parts.reward, sampled, recipe.flip, seed + 1),
        "policy": annotated(parts.policy, sampled, recipe.flip, seed + 2),
    }
    for part, judged in annotations.items():
        reports[f"pair_{part}"] = _pairs(place, part, judged, start)
    reward = _margins(place, recipe, base, reports) if margins else None
    _reference(place, base, reports)
    return Prepared(place, recipe, parts, start, base, sampled, annotations, reward, reports)


def _base_model(
    place: Place, recipe: Recipe, parts: Parts, start: Path, reports: dict[str, Any]
) -> Path:
    """Supervised training on answers of which some are wrong, with few steps."""
    rows = supervised(parts.supervised, recipe.wrong, place.seed)
    shards = pack_rows(place.shards("supervised"), place.rows("supervised"), rows, start)
    settings = recipe.training(place, recipe.supervised_steps, 2e-3) | {
        "shards": str(shards),
        "model": str(start),
        "data.tokens": 1_100,
        "optimizer.weight_decay": 0.01,
        "schedule.warmup": 0.15,
    }
    reports["sft"] = run_stage_in("sft", settings, place.folder / "base", place.progress)
    return Path(reports["sft"]["folder"]) / "model"


def _pairs(place: Place, part: str, judged: list[Annotation], start: Path) -> dict[str, Any]:
    """Annotations to pairs, and pairs to shards."""
    annotations = write_rows(place.rows(f"annotated_{part}"), [one.row() for one in judged])
    settings = {"sources": [str(annotations)], "root": "/"}
    report = run_stage_in("pair", settings, place.folder / part, place.progress)
    pack_rows(place.shards(part), Path(report["folder"]) / "pairs.jsonl", None, start)
    return report


def reward_settings(place: Place, recipe: Recipe, base: Path) -> dict[str, Any]:
    """Of the stage ``reward``."""
    return recipe.training(place, recipe.reward_steps, 1e-3) | {
        "shards": str(place.shards("reward")),
        "model": str(base),
        "instruction": JUDGE,
        "data.tokens": 2_700,
        "optimizer.weight_decay": 0.01,
        "schedule.warmup": 0.07,
    }


def _margins(place: Place, recipe: Recipe, base: Path, reports: dict[str, Any]) -> Path:
    """A reward model that writes critiques, and the margins of the policy's pairs by it."""
    settings = reward_settings(place, recipe, base)
    reports["reward"] = run_stage_in("reward", settings, place.folder / "reward", place.progress)
    folder = Path(reports["reward"]["folder"])
    settings = {
        "shards": str(place.shards("policy")),
        "model": str(folder / "model"),
        "name": "demo",
        "batch": 64,
        "threads": 1,
        "cache_features": str(place.features),
        "sampling.max_new_tokens": 20,
    }
    reports["score"] = run_stage_in("score", settings, place.folder / "policy", place.progress)
    return folder


def _reference(place: Place, base: Path, reports: dict[str, Any]) -> None:
    settings = {
        "shards": str(place.shards("policy")),
        "model": str(base),
        "name": "base",
        "threads": 1,
        "cache_features": str(place.features),
    }
    folder = place.folder / "policy"
    reports["reference"] = run_stage_in("reference", settings, folder, place.progress)


def train_variant(
    prepared: Prepared, name: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train a policy; its report, with ``folder``, in which the model is ``model``.

    Args:
        prepared: The pairs, their reference and margins, and the base model.
        name: Of the policy, and of its folder; one of :data:`VARIANTS` where no settings are given.
        settings: Of ``mm-dpo``, over those that all policies of the demo have.
    """
    place, recipe = prepared.place, prepared.recipe
    own = VARIANTS[name] if settings is None else settings
    chosen = recipe.training(place, recipe.policy_steps, 1e-3) | {
        "shards": str(prepared.policy_shards),
        "model": str(prepared.base),
        "reference": "reflogp/base",
        "beta": BETA,
        "sft_weight": 0.5,
        "data.tokens": 1_100,
        "schedule.warmup": 0.13,
        **own,
    }
    return run_stage_in("mm_dpo", chosen, place.folder / name, place.progress)


def evaluate_model(prepared: Prepared, name: str, model: Path) -> dict[str, Any]:
    """The section ``vqa`` of the scorecard: accuracy on test pictures, blind, and against the base.

    Args:
        prepared: The test questions.
        name: Of the folder; the base is ``base``, and is measured before the others.
        model: That answers, greedily.
    """
    place, questions = prepared.place, prepared.parts.test
    folder = place.folder / "test" / name
    seen = _greedy(prepared, "test", questions, model, folder)
    unseen = _greedy(prepared, "blind", questions, model, folder / "blind")
    lines = [
        {
            "id": question.id,
            "kind": question.kind,
            "image": question.file.name,
            "question": question.text,
            "answer": question.answer,
            "prediction": seen[question.id],
            "blind": unseen[question.text],
        }
        for question in questions
    ]
    file = write_rows(folder / "predictions.jsonl", lines)
    settings: dict[str, Any] = {"file": str(file)}
    if name != "base":
        settings["before"] = str(place.folder / "test" / "base" / "predictions.jsonl")
    return evaluate_in("vqa", settings, folder)


def _greedy(
    prepared: Prepared, name: str, questions: list[Question], model: Path, folder: Path
) -> dict[str, str]:
    """The likeliest answer to each question, by its id; blind, to each text on a grey picture."""
    place = prepared.place
    blind = name == "blind"
    rows = examined(questions)
    if blind:
        # What is asked without a picture does not depend on which it was: each text once.
        rows = [
            row | {"image": str(_grey(place.folder)), "id": row["question"]}
            for row in {row["question"]: row for row in rows}.values()
        ]
    shards = pack_rows(place.shards(name), place.rows(name), rows, prepared.start)
    settings = {"samples": 1, "temperature": 0, "cache_features": str(place.features)}
    found, _ = answers_of(shards, model, folder, [row["id"] for row in rows], settings)
    return {key: answer for key, (answer,) in found.items()}


def _grey(folder: Path) -> Path:
    """A picture on which there is nothing to see."""
    from PIL import Image

    file = folder / "rows" / "grey.png"
    if not file.is_file():
        Image.new("RGB", (64, 64), (127, 127, 127)).save(file)
    return file


def facts_of(prepared: Prepared) -> dict[str, Any]:
    """How many questions and pictures each part has, as JSON."""
    parts = vars(prepared.parts)
    return {
        name: {"questions": len(own), "pictures": len({one.picture for one in own})}
        for name, own in parts.items()
    }
