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
    """The files that an address or a pattern means, each with its address and its local copy.

    A folder is copied as a whole, and is one local folder.

    Raises:
        InputError: nothing is there, or it cannot be read.
        MissingExtraError: the package that knows this kind of address is not installed.
    """
    system, path = _open(address)
    scheme = address.partition("://")[0]
    try:
        if any(mark in path for mark in "*?["):
            found = (str(name) for name in system.glob(path) if not system.isdir(name))
            names = sorted(name for name in found if "/." in path or "/." not in name)
        elif system.isdir(path):
            return [(address, _copy_folder(system, path, address))]
        else:
            system.info(path)
            names = [path]
        if not names:
            raise InputError(f"{address}: no file there")
        copies = []
        for name in names:
            shown = name if is_address(name) else f"{scheme}://{name.lstrip('/')}"
            target = _cache() / _key(shown, system.ukey(name)) / _name_of(name)
            copies.append((shown, _copy(system, name, target)))
    except Exception as error:  # each store has errors of its own
        raise _as_input_error(error, address) from None
    return copies


def _open(address: str) -> tuple[Any, str]:
    """The store of an address, and the path in it."""
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = _package_of(error, address.partition("://")[0])
        raise MissingExtraError(package, extra="remote", needed_for=address) from None
    except ValueError as error:
        raise InputError(
            f"{address}: {error}", hint="known are s3://, gs://, hf://, https://, and paths"
        ) from None
    return system, str(path)


def _as_input_error(error: Exception, address: str) -> InputError:
    if isinstance(error, InputError):
        return error
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    verb = "found" if isinstance(error, FileNotFoundError) else "read"
    return InputError(f"{address}: cannot be {verb}: {what}")


def _package_of(error: ImportError, scheme: str) -> str:
    packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
    packages |= {"http": "aiohttp", "https": "aiohttp"}
    return packages.get(scheme, error.name or scheme)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _name_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].partition("?")[0]


def _copy(system: Any, name: str, target: Path) -> Path:
    """The copy of a file; one that is there already has this content."""
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{os.getpid()}.partial"
    with system.open(name, "rb") as source, partial.open("wb") as made:
        shutil.copyfileobj(source, made, _CHUNK)
    partial.replace(target)
    return target


def _copy_folder(system: Any, folder: str, address: str) -> Path:
    """The copy of a folder without its hidden files; an interrupted one is gone on with."""
    start = folder.rstrip("/") + "/"
    names = sorted(str(name) for name in system.find(folder))
    below = {name: name.removeprefix(start) for name in names}
    wanted = {name: rest for name, rest in below.items() if "/." not in f"/{rest}"}
    if not wanted:
        raise InputError(f"{address}: no file there")
    versions = [f"{rest} {system.ukey(name)}" for name, rest in wanted.items()]
    whole = _cache() / _key(address, *versions) / _name_of(folder)
    if whole.is_dir():
        return whole
    partial = whole.parent / ".partial"
    for name, rest in wanted.items():
        _copy(system, name, partial / rest)
    partial.replace(whole)
    return whole


def _cache() -> Path:
    chosen = os.environ.get("MMRLHF_CACHE")
    if chosen:
        return Path(chosen) / "sources"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmrlhf-engine" / "sources"
