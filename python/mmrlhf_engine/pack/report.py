"""The report of a run of pack: what came in, what became of it, checked to add up."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrlhf_engine import __version__
from mmrlhf_engine.errors import StageError
from mmrlhf_engine.pack.prepare import Packer

__all__ = ["accounts", "describe"]


def accounts(packer: Packer) -> dict[str, Any]:
    """What came in, what went out and what was dropped, as the report has it.

    Raises:
        StageError: rows or pairs disappeared unnamed.
    """
    accounting, counts = packer.accounting, asdict(packer.counts)
    dropped, pairs_dropped = accounting.rows_dropped, accounting.pairs_dropped
    pairs = counts.pop("pairs")
    rows_out = accounting.rows_in - dropped.total()
    if accounting.pairs_in != pairs + pairs_dropped.total() or rows_out > pairs:
        raise StageError(
            f"pack: {accounting.pairs_in} pairs in {accounting.rows_in} rows were read, {pairs} "
            f"were packed and {pairs_dropped.total()} dropped"
        )
    if dropped.total() != accounting.rejected.rows:
        raise StageError(
            f"pack: {dropped.total()} rows were dropped, "
            f"{accounting.rejected.rows} are in `rejected`"
        )
    return {
        "rows_in": accounting.rows_in,
        "rows_out": rows_out,
        "dropped": dict(dropped),
        "pairs_in": accounting.pairs_in,
        "pairs_out": pairs,
        "pairs_dropped": dict(sorted(pairs_dropped.items())),
        **counts,
        "changed": dict(sorted(accounting.changes.items())),
        "tokenised_apart": packer.tokenizer.tokenised_apart,
        "opens_as_conversation": packer.tokenizer.opens_as_conversation,
        "tokenizer": packer.tokenizer.identity,
        "code": __version__,
    }


def _notes(report: dict[str, Any]) -> list[str]:
    """What a reader should know about how the rows were read."""
    notes = [
        f"split     {source['split']} of {name}; not read: {', '.join(source['not_read'])}"
        for name, source in report["sources"].items()
        if source.get("not_read")
    ]
    ignored = ", ".join(f"{name} ({count:,})" for name, count in report["fields_ignored"].items())
    if ignored:
        notes.append(f"ignored   fields that say nothing about the prompt: {ignored}")
    if report["pictures"] and "processor" not in report["tokenizer"]:
        notes.append(
            f"pictures  {report['pictures']:,} are packed without --model: the dataset does not "
            "say what a model sees of them, and batches have no model_inputs"
        )
    if report["tokenised_apart"]:
        notes.append(
            f"seam      {report['tokenised_apart']:,} answers are tokenised apart from their prompt"
        )
    if report["opens_as_conversation"]:
        notes.append(
            "template  the generation prompt opens an answer with other white space than a "
            "conversation does; answers are opened as in a conversation"
        )
    return notes


def describe(report: dict[str, Any], out: Path) -> str:
    """The report in a few lines, for people."""
    lines = [
        f"rows in = out + dropped: {report['rows_in']:,} = {report['rows_out']:,} + "
        f"{report['rows_in'] - report['rows_out']:,}",
        *(f"  {count:>10,}  {reason}" for reason, count in report["dropped"].items()),
        f"pairs     {report['pairs_out']:,} ({report['ties']:,} ties)",
        f"queries   {report['queries']:,} with {report['responses']:,} responses",
        f"tokens    {report['text_tokens']:,} of text, {report['image_tokens']:,} of images",
        *(f"changed   {count:,} {change}" for change, count in report["changed"].items()),
        *_notes(report),
        f"dataset   {out}, version {report['version']}",
    ]
    return "\n".join(lines)
