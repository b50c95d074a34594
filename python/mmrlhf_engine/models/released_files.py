"""Weights in files, one tensor in memory at a time: read from two formats, written in one.

safetensors' own writer takes all tensors of a file at once; the format is simple enough to be
written as a stream: the length of a header, the header in JSON, and the bytes one after the other.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrlhf_engine.errors import ConfigError, CorruptDataError

__all__ = ["StoredTensor", "stored_tensors", "write_tensors"]

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """Gives its values, on the CPU."""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, by name.

    Args:
        folder: With ``model.safetensors`` or ``pytorch_model.bin``, or parts of either and their
            index; safetensors are preferred.

    Raises:
        ConfigError: there are none, or a part of the index is missing.
        CorruptDataError: a file of weights or the index cannot be read.
    """
    for single in _FILES:
        index = folder / f"{single}.index.json"
        if index.is_file():
            files = [folder / name for name in _parts_of(index)]
        elif (folder / single).is_file():
            files = [folder / single]
        else:
            continue
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ConfigError(f"{folder}: {', '.join(absent)} of {index.name} is not there")
        found: dict[str, StoredTensor] = {}
        for file in files:
            found |= _of_file(file)
        return found
    raise ConfigError(
        f"{folder}: found no weights, expected {' or '.join(_FILES)}, or parts with an index",
        hint="a folder with all files of the checkpoint",
    )


def _parts_of(index: Path) -> list[str]:
    """The names of the files that an index gives to weights, sorted."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptDataError(
            f"{index}: no index of weights: {error}", hint="get the file again"
        ) from None
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise CorruptDataError(
            f"{index}: found no weight_map of names of files, expected one, by weight",
            hint="get the file again",
        )
    return sorted(set(parts.values()))


def _of_file(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError

    try:
        return _of_safetensors(file) if file.suffix == ".safetensors" else _of_pickle(file)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CorruptDataError(
            f"{file}: no file of weights: {error}", hint="get the file again"
        ) from None


def _of_safetensors(file: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    types = {name: dtype for dtype, name in _TYPES.items()}

    def read(name: str) -> Tensor:
        with safe_open(file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    found = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            own = opened.get_slice(name)
            dtype = types.get(own.get_dtype())
            if dtype is None:
                dtype = read(name).dtype
            found[name] = StoredTensor(
                tuple(own.get_shape()),
                dtype,
                lambda name=name: read(name),  # type: ignore[misc]
            )
    return found


def _of_pickle(file: Path) -> dict[str, StoredTensor]:
    # Mapped: values are read from disk when they are used.
    loaded: dict[str, Any] = torch.load(file, "cpu", mmap=True, weights_only=True)
    return {
        name: StoredTensor(
            tuple(tensor.shape),
            tensor.dtype,
            lambda tensor=tensor: tensor.clone(),  # type: ignore[misc]
        )
        for name, tensor in loaded.items()
    }


def write_tensors(
    folder: Path, tensors: dict[str, StoredTensor], *, shard_bytes: int = 5_000_000_000
) -> None:
    """Write tensors as parts of at most so many bytes, and their index; one part has no index.

    Args:
        folder: Is there.
        tensors: By name.
        shard_bytes: Of the tensors of a part; one that is larger has a part of its own.
    """
    parts: list[dict[str, StoredTensor]] = [{}]
    filled = total = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor)
        if parts[-1] and filled + size > shard_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled, total = filled + size, total + size
    if len(parts) == 1:
        _write(folder / "model.safetensors", parts[0])
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        _write(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write(file: Path, tensors: dict[str, StoredTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _bytes(tensor)
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Values begin at a multiple of 8 bytes.
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little"))
        opened.write(text)
        opened.writelines(_content(tensors.values()))


def _content(tensors: Iterable[StoredTensor]) -> Iterable[memoryview]:
    for stored in tensors:
        values = stored.read().to(stored.dtype).contiguous().reshape(-1)
        yield values.view(torch.uint8).numpy().data


def _bytes(tensor: StoredTensor) -> int:
    return int(torch.Size(tensor.shape).numel()) * tensor.dtype.itemsize
