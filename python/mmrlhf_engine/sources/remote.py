"""Sources at addresses (``s3://``, ``gs://``, ``hf://``, ``https://``): fetched once, then local.

A file is copied into the cache of the user (``$XDG_CACHE_HOME/mmrlhf-engine/sources``, or
``MMRLHF_CACHE``) under a name made of its address and of what the store says of its content, so
that a changed file is fetched again. Everything that reads pictures later reads the copy.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import InputError, MissingExtraError

__all__ = ["fetch", "is_address"]

_CHUNK = 16 << 20


def is_address(path: str) -> bool:
    """Whether a source is given by an address, and not by a path of this machine."""
    scheme, mark, _ = path.partition("://")
    return bool(mark) and scheme.replace("+", "").isalnum()


def fetch(address: str) -> list[tuple[str, Path]]:
    """The addresses that one address means (a pattern, a folder), each with its local copy.

    Raises:
        InputError: nothing is there, or it cannot be read.
        MissingExtraError: the package that knows this kind of address is not installed.
    """
    system, names = _find(address)
    scheme = address.partition("://")[0]
    copies = []
    for name in names:
        shown = name if is_address(name) else f"{scheme}://{name.lstrip('/')}"
        copies.append((shown, _copy(system, name, shown)))
    return copies


def _find(address: str) -> tuple[Any, list[str]]:
    scheme = address.partition("://")[0]
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError("fsspec", extra="remote", needed_for=address) from None
    try:
        system, path = fsspec.core.url_to_fs(address)
        if any(mark in path for mark in "*?["):
            names = [name for name in system.glob(path) if not system.isdir(name)]
        elif system.isdir(path):
            names = [name for name in system.find(path) if not _is_hidden(name, path)]
        else:
            names = [path]
            system.info(path)
    except ImportError as error:
        package = _package_of(error, scheme)
        raise MissingExtraError(package, extra="remote", needed_for=address) from None
    except ValueError as error:
        raise InputError(
            f"{address}: {error}", hint="known are s3://, gs://, hf://, https://, and paths"
        ) from None
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{address}: cannot be found: {_reason(error)}") from None
    if not names:
        raise InputError(f"{address}: no file there")
    return system, sorted(str(name) for name in names)


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder).split("/"))


def _package_of(error: ImportError, scheme: str) -> str:
    packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
    packages |= {"http": "aiohttp", "https": "aiohttp"}
    return packages.get(scheme, error.name or scheme)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _copy(system: Any, name: str, shown: str) -> Path:
    """The local copy of a file, made if there is none of this content."""
    try:
        version = f"{shown}\n{system.ukey(name)}"
        folder = _cache() / hashlib.sha256(version.encode()).hexdigest()[:16]
        copy = folder / name.rstrip("/").rpartition("/")[2].partition("?")[0]
        if copy.is_file():
            return copy
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{os.getpid()}.partial"
        with system.open(name, "rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        partial.replace(copy)
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{shown}: cannot be fetched: {_reason(error)}") from None
    return copy


def _cache() -> Path:
    chosen = os.environ.get("MMRLHF_CACHE")
    if chosen:
        return Path(chosen) / "sources"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmrlhf-engine" / "sources"
