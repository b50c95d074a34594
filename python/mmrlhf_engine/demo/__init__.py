"""``mmrlhf-engine demo``: from raw rows to a better model, offline, on a CPU, in minutes.

    curate_demo.py    a corpus with planted faults, through ``curate``; was all of it found?
    vqa_curated.py    the curated queries whose answers are known
    vqa_pipeline.py   a base model, sampled answers, annotations, pairs, a reward model, policies
    vqa_report.py     the page at the end

Of the parts that these share: ``corpus.py`` makes the corpus, ``vqa_questions.py`` knows what is
asked and true, ``vqa_rows.py`` divides and writes rows, ``vqa_model.py`` makes the model, and
``vqa_run.py`` runs stages.
"""

import os
from pathlib import Path
from typing import Any

from mmrlhf_engine.demo import curate_demo

__all__ = ["run"]

_CONVERSATIONS = 1_500
"""Pictures of the corpus; the policy wants more than the 420 of ``--curate-only``."""
_MOST_SHORT = {"long": 1, "short": 8, "mcq": 1}
"""Question types of the selection: the small model can answer short questions alone."""
_SELECTED = 12_000


def run(
    folder: Path, count: int | None = None, *, curate_only: bool = False, **options: Any
) -> str:
    """Run the demo in ``folder``; the text to print.

    Args:
        folder: Of everything that the demo makes.
        count: Queries to select; None is 300 for ``curate_only``, else 12,000.
        curate_only: End with the curated queries and their report.
        options: ``threads``, ``memory``, ``seed`` and ``progress`` of the command.

    Raises:
        StageError: something planted was not found.
        MissingExtraError: a package of the ``[demo]`` extra is not installed.
    """
    if curate_only:
        settings = curate_demo.CURATE_ONLY if count is None else {"select.count": count}
        return curate_demo.curate_corpus(folder, settings, **options)[1]
    # Threads of OpenMP wait for each other in a loop: on a busy machine two are slower than one,
    # and the model is small. It must be said before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Rows name their pictures from the root on.
    folder = folder.resolve()
    from mmrlhf_engine.demo import vqa_curated, vqa_pipeline, vqa_report

    chosen = {"select.count": count or _SELECTED, "select.question_types": _MOST_SHORT}
    curated, text = curate_demo.curate_corpus(folder, chosen, _CONVERSATIONS, **options)
    seed, progress = options.get("seed") or 0, options.get("progress", "human")
    questions = vqa_curated.curated_questions(curated)
    prepared = vqa_pipeline.prepare(
        folder / f"training_{seed}", questions, seed=seed, progress=progress
    )
    results = {"base": vqa_pipeline.evaluate_model(prepared, "base", prepared.base)}
    for name in vqa_pipeline.VARIANTS:
        report = vqa_pipeline.train_variant(prepared, name)
        prepared.reports[name] = report
        results[name] = vqa_pipeline.evaluate_model(
            prepared, name, Path(report["folder"]) / "model"
        )
    page = vqa_report.write(folder / "report.html", curated, questions, prepared, results)
    return "\n".join([text, "", vqa_report.summary(prepared, results), "", f"page: {page}"])
