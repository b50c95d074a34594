"""A hash of the code behind a stage, so that an edited stage does not count as finished.

It covers the source of the stage's module and of every module of this project that it imports,
directly or through others, at module level or inside a function. The compiled core counts by the
hash of its Rust sources, taken when it was built: two builds of the same sources are equal.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

__all__ = ["code_hash", "project_imports"]

_PACKAGES = ("mmrlhf_engine", "mmrlhf_kernels")
_CORE = "mmrlhf_engine._core"


@functools.cache
def code_hash(module: str) -> str:
    """SHA-256 in hex over the sources that ``module`` is made of."""
    digest = hashlib.sha256()
    for name in project_imports(module):
        digest.update(f"{name} {_source_hash(name)}\n".encode())
    return digest.hexdigest()


def project_imports(module: str) -> list[str]:
    """``module`` and every module of the project that it imports, transitively, in sorted order.

    The package's own ``__init__`` is left out: it only names the public API.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in _PACKAGES:
            continue
        found.add(name)
        file = _file_of(name)
        if file is not None:
            waiting += _imports_of(file)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
    return sorted(found)


def _imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # `from package import name` may name a module or something in one.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name == _CORE or _file_of(name) is not None)


def _source_hash(name: str) -> str:
    if name == _CORE:
        from mmrlhf_engine import _core

        return _core.SOURCE_HASH
    file = _file_of(name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else ""


@functools.cache
def _file_of(name: str) -> Path | None:
    """The source file of a module of the project, without importing it; None for all others."""
    package, *rest = name.split(".")
    folder = _folder_of(package) if package in _PACKAGES else None
    if folder is None:
        return None
    module = folder.joinpath(*rest)
    candidates = (module / "__init__.py", module.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


def _folder_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None
