"""The models of open_clip and their weights by name, read from its files.

Importing open_clip takes many seconds. Its models are JSON files by their names; its weights stand
in ``pretrained.py`` as literals: ``_VITB32 = dict(openai=_pcfg(..., hf_hub="..."), ...)`` and
``_PRETRAINED = {"ViT-B-32": _VITB32, ...}``, which are parsed and not run.
"""

import ast
import functools
import importlib.util
import sys
from pathlib import Path

__all__ = ["model_names", "weights_of"]

Weights = dict[str, str]
"""Name of the weights -> their repository on the Hugging Face hub, empty where they have none."""


def model_names() -> list[str]:
    """Every model that open_clip can build, in order; with those added to it in this process."""
    if "open_clip" in sys.modules:
        import open_clip

        return list(open_clip.list_models())
    return sorted(file.stem for file in (_folder() / "model_configs").glob("*.json"))


def weights_of(model: str) -> Weights | None:
    """The weights open_clip knows of a model; None where nothing is known of it."""
    everything = _all_weights()
    # open_clip adds these to its table by a loop: some of the same weights, another activation.
    return everything.get(model) or everything.get(model.removesuffix("-quickgelu"))


def _folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def _all_weights() -> dict[str, Weights]:
    """Weights by model; empty where the file is not as expected."""
    try:
        tree = ast.parse((_folder() / "pretrained.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    named: dict[str, Weights] = {}
    models: dict[str, Weights] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            if target.id == "_PRETRAINED":
                models |= {k.value: _weights(v, named) for k, v in pairs if _is_text(k)}  # type: ignore[union-attr]
        elif isinstance(target, ast.Name):
            named[target.id] = _weights(value, named)
        elif isinstance(target, ast.Subscript) and _is_text(target.slice):
            models[target.slice.value] = _weights(value, named)  # type: ignore[attr-defined]
    return models


def _weights(value: ast.expr, named: dict[str, Weights]) -> Weights:
    """``dict(openai=_pcfg(...))``, or the name of one that stands before it."""
    if isinstance(value, ast.Name):
        return named.get(value.id, {})
    if not isinstance(value, ast.Call):
        return {}
    return {entry.arg: _hub(entry.value) for entry in value.keywords if entry.arg is not None}


def _hub(call: ast.expr) -> str:
    if isinstance(call, ast.Call):
        for entry in call.keywords:
            if entry.arg == "hf_hub" and _is_text(entry.value):
                return str(entry.value.value).strip("/")  # type: ignore[attr-defined]
    return ""


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
