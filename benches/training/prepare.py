"""What a case needs on disk: model, raw pairs, shards with reference; rows of its steps."""

from pathlib import Path
from typing import Any

from training import ours
from training.content import write_pairs
from training.models import save_model


def prepare(request: dict[str, Any]) -> list[list[int]]:
    """Rows of the pairs of each step, in our order of training."""
    from transformers import AutoProcessor

    folder, tokens = Path(request["folder"]), request["tokens"]
    model, raw, shards = folder / "model", folder / "pairs.parquet", folder / "shards"
    if not shards.exists():
        folder.mkdir(parents=True)
        save_model(request["family"], model)
        shape = {"answers": request["answers"], "answer": request["answer"]}
        of = AutoProcessor.from_pretrained(model), request["family"]
        write_pairs(*of, raw, queries=request["queries"], **shape)
        write_pairs(*of, folder / "many.parquet", queries=request["many"], **shape)
        ours.make_shards(raw, model, shards)
        ours.add_reference(shards, model, folder / "reference", tokens)
    rows = ours.rows_of_steps(shards, tokens, request["steps"])
    assert {len(step) for step in rows} == {request["pairs_of_step"]}, rows
    return rows
