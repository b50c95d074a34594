"""Names of sources: as given, else from their path, and long enough to tell them apart."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmrlhf_engine.errors import ConfigError

__all__ = ["choose_names"]

_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".tar")


def choose_names(given: Sequence[tuple[Path, str | None]]) -> list[str]:
    """A name for each path: the one that was given, else as little of the path as tells it apart.

    ``train`` for ``/data/train.jsonl``; ``rows.csv`` and ``rows.jsonl`` where the suffix alone
    differs; ``a/00000`` and ``b/00000`` for shards of two folders.

    Raises:
        ConfigError: two were given the same name, or a path is given twice.
    """
    named = [name for _, name in given if name is not None]
    paths = [path for path, name in given if name is None]
    for what, times in [*Counter(named).items(), *Counter(paths).items()]:
        if times > 1:
            shown = f"two sources are named {what!r}" if what in named else f"{what} is given twice"
            hint = "give each a name: ingest: {sources: [{path: ..., name: ...}]}"
            raise ConfigError(shown, hint=hint)
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_stem(path), []).append(path)
    taken = set(named)
    chosen: dict[Path, str] = {}
    for group in sorted(groups.values(), key=len):
        names = next(names for names in _candidates(group) if not taken & set(names))
        taken |= set(names)
        chosen |= dict(zip(group, names, strict=True))
    return [name or chosen[path] for path, name in given]


def _candidates(group: list[Path]) -> Iterator[list[str]]:
    """Names for paths of one stem that differ from each other, the shortest first."""
    for above in range(max(len(path.parts) for path in group)):
        for last in (_stem, _name):
            names = ["/".join([*path.parts[-1 - above : -1], last(path)]) for path in group]
            if len(set(names)) == len(group):
                yield names
    yield [str(path) for path in group]


def _name(path: Path) -> str:
    return path.name or str(path)


def _stem(path: Path) -> str:
    name = path.name
    while name.lower().endswith(_SUFFIXES) and not path.is_dir():
        name = name[: name.rindex(".")]
    return name or _name(path)
