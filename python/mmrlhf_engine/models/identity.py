"""Which model it is: the hash of its weights, and what its processor does."""

import hashlib
import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrlhf_engine.errors import ConfigError, CorruptDataError
from mmrlhf_engine.models.adapters import adapter_base, adapter_reward_head
from mmrlhf_engine.models.families import family_of
from mmrlhf_engine.models.families.files import read_processor_files

__all__ = ["processor_record", "weights_hash"]

_HINT = "a folder, or a name on the hub that is on this machine or can be downloaded"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
_WITHOUT_INDEX = ("model.safetensors", "pytorch_model.bin")


def processor_record(name: str) -> dict[str, Any] | None:
    """What the processor of a model does, as datasets that were packed for it record it.

    Args:
        name: A folder or a name on the hub; of an adapter alone, its base is meant.

    Returns:
        As :attr:`mmrlhf_engine.PreferenceBatch.processor`; None for a model of text alone.

    Raises:
        ConfigError: there is no such model, or it sees and has no processor.
        InputError: the processor is of no family that is known.
    """
    from transformers import AutoConfig, AutoTokenizer

    from mmrlhf_engine.models.tower_configs import register_towers

    name = adapter_base(name) or name
    try:
        register_towers(name, weights=False)
        config = AutoConfig.from_pretrained(name)
        if getattr(config, "vision_config", None) is None:
            return None
        files = read_processor_files(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{name}: its processor cannot be read: {first}", hint="a folder or a name on the hub"
        ) from None
    return family_of(files).read(files, tokenizer).record()


def weights_hash(name: str) -> str:
    """A hash of the weights of a model, however they are divided into files.

    Over the names, types, shapes and bytes of all tensors of safetensors files, by name; over the
    bytes of ``pytorch_model.bin`` where there is none. All of it is read, on several threads. Of an
    adapter alone, over its own weights and its base's. Of a reward model, also over which head it
    has, which its weights do not say.

    Args:
        name: A folder or a name on the hub.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.

    Raises:
        ConfigError: there are no weights.
    """
    base = adapter_base(name)
    files = _weight_files(name) if base is None else [Path(name) / _ADAPTER]
    digests: dict[str, Any] = {} if base is None else {"base": weights_hash(base)}
    for file in files:
        state = file.stat()
        digests |= _digests(file, state.st_size, state.st_mtime_ns)
    head = _reward_head(name)
    if head is not None:
        digests["reward_head"] = head
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode())
    return f"sha256:{whole.hexdigest()}"


def _reward_head(name: str) -> Any:
    """What the configuration says of the head of a reward model; None for other models."""
    if adapter_base(name) is not None:
        return adapter_reward_head(name)
    file = _file(name, "config.json")
    try:
        config = {} if file is None else json.loads(file.read_bytes())
    except ValueError:
        return None  # what reads the model says what is wrong with it
    return config.get("reward_head") if isinstance(config, dict) else None


def _weight_files(name: str) -> list[Path]:
    # Asked for first: where there is no network, each file that is asked for is waited for.
    if not Path(name).is_dir() and _file(name, "config.json") is None:
        raise ConfigError(
            f"{name}: found no such folder, and no model of this name on this machine or the hub",
            hint=_HINT,
        )
    index = _file(name, _INDEX)
    if index is not None:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        found = [(shard, _file(name, shard)) for shard in sorted(shards)]
        missing = [shard for shard, path in found if path is None]
        if missing:
            raise ConfigError(f"{name}: {', '.join(missing)} of {_INDEX} is not there")
        return [path for _, path in found if path is not None]
    single = next((path for path in (_file(name, file) for file in _WITHOUT_INDEX) if path), None)
    if single is None:
        raise ConfigError(
            f"{name}: found no weights, expected one of {', '.join((_INDEX, *_WITHOUT_INDEX))}",
            hint=_HINT,
        )
    return [single]


def _file(name: str, file: str) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{name}: cannot be loaded: {first}",
            hint=_HINT,
        ) from None
    return None if found is None else Path(found)


@lru_cache(maxsize=1024)
def _digests(file: Path, size: int, changed: int) -> dict[str, str]:  # noqa: ARG001
    """Of each tensor of a file, with its type and shape; of another file as a whole.

    A process asks several times, and files are large: ``size`` and the time of the last change are
    here to tell one content from the next.
    """
    try:
        return _read_digests(file)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            f"{file}: {size:,} bytes that are no file of weights: {error}",
            hint="get the file again",
        ) from None


def _read_digests(file: Path) -> dict[str, str]:
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
        ThreadPoolExecutor(4) as threads,
    ):
        if file.suffix != ".safetensors":
            return {"": hashlib.sha256(content).hexdigest()}
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(bytes(content[8:begin]))
        header.pop("__metadata__", None)
        ends = [begin + tensor["data_offsets"][1] for tensor in header.values()]
        if max(ends, default=begin) > len(content):
            raise ValueError(f"expected {max(ends):,} bytes by its header")

        def digest(tensor: dict[str, Any]) -> str:
            start, end = tensor["data_offsets"]
            with content[begin + start : begin + end] as own:
                return f"{tensor['dtype']} {tensor['shape']} {hashlib.sha256(own).hexdigest()}"

        return dict(zip(header, threads.map(digest, header.values()), strict=True))
