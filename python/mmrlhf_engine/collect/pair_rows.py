"""Pairs as rows of MM-RLHF's ``dpo_pairs.jsonl``, which ``mmrlhf-engine pack`` reads."""

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmrlhf_engine.collect.items import Item
from mmrlhf_engine.sources.preferences.record import Media, Pair

__all__ = ["common_root", "rows_of"]


def common_root(roots: Iterable[Path]) -> Path:
    """The folder that the names of media in pairs start from: the lowest one above all roots."""
    return Path(os.path.commonpath(sorted({*roots})))


def rows_of(
    item: Item, pairs: Iterable[Pair], root: Path, *, margins: bool
) -> Iterator[dict[str, Any]]:
    """A row a pair.

    Args:
        item: The query.
        pairs: Of its answers, by their numbers.
        root: The folder that media are named from.
        margins: Whether the difference of mean scores is written, where both are known and the
            pair is no tie.
    """
    media = _media_fields(item, root)
    reasons, scores = item.reasons(), item.scores()
    for pair in pairs:
        row: dict[str, Any] = {
            "id": item.id,
            **media,
            "prompt": item.prompt,
            "chosen": item.answers[pair.chosen],
            "rejected": item.answers[pair.rejected],
            "chosen_reason": reasons[pair.chosen],
            "rejected_reason": reasons[pair.rejected],
            "is_tie": pair.tie,
        }
        better, worse = scores[pair.chosen], scores[pair.rejected]
        if margins and not pair.tie and better is not None and worse is not None:
            row["margin"] = better - worse
        yield row


def _media_fields(item: Item, root: Path) -> dict[str, Any]:
    """``image`` and ``video``: one name, or a list of them; a video of frames is a list in it."""
    fields: dict[str, list[Any]] = {}
    for media in item.media:
        fields.setdefault(media.kind, []).append(_named(media, item.root, root))
    return {
        kind: several[0] if len(several) == 1 and isinstance(several[0], str) else several
        for kind, several in fields.items()
    }


def _named(media: Media, own: Path, root: Path) -> str | list[str]:
    if media.content is not None:
        text = base64.b64encode(media.content).decode()
        return f"data:application/octet-stream;base64,{text}"
    names = [_below(name, own, root) for name in media.names]
    return names[0] if len(names) == 1 else names


def _below(name: str, own: Path, root: Path) -> str:
    """A name from ``root`` on; addresses and absolute names stay."""
    if own == root or Path(name).is_absolute() or "://" in name:
        return name
    return (own.relative_to(root) / name).as_posix()
