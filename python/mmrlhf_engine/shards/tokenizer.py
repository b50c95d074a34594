"""The tokenizer of a dataset: loaded by name or folder, and token ids back to text.

Needs transformers, and no torch.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_engine.errors import ConfigError, MissingExtraError
from mmrlhf_engine.models.families.placeholders import (
    FRAME,
    IMAGE,
    PLACEHOLDER_IDS,
    RUN,
    VIDEO,
)

__all__ = ["TokenDecoder", "load_fast_tokenizer", "sha256_of_tokenizer"]


class TokenDecoder:
    """Token ids as the text that the tokenizer would make the same ids of.

    Args:
        recorded: The ``tokenizer`` of the dataset.
        name: Name or folder of the tokenizer; None is the recorded name.
        image_token: Text to write for an image. None is what the processor that the dataset records
            replaces by an image, else the tokenizer's own image token, else ``<image>``.
        offline: Take only what is on this machine.

    Raises:
        ConfigError: the tokenizer cannot be loaded, or is another one than recorded.
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self,
        recorded: Mapping[str, Any],
        name: str | None = None,
        image_token: str | None = None,
        *,
        offline: bool = False,
    ) -> None:
        where = name or str(recorded.get("name", ""))
        if not where:
            raise ConfigError("the dataset records no tokenizer", hint="--tokenizer NAME_OR_FOLDER")
        try:
            tokenizer = load_fast_tokenizer(where, needed_for="text of token ids", offline=offline)
        except ConfigError as error:
            if name is not None:
                raise
            raise ConfigError(
                f"the tokenizer {where!r}, which made the token ids, cannot be loaded by that name",
                hint="--tokenizer NAME_OR_FOLDER",
            ) from error
        found = sha256_of_tokenizer(tokenizer, where, offline=offline)
        if recorded.get("sha256") not in (None, found):
            raise ConfigError(
                f"tokenizer {where}: another one than made the token ids "
                f"(SHA-256 {found[:12]}, expected {str(recorded['sha256'])[:12]})",
                hint="--tokenizer NAME_OR_FOLDER of the one that was given to pack",
            )
        processor = recorded.get("processor") or {}
        self.image_token = image_token or processor.get("image_mark") or _image_token(tokenizer)
        # The text of an image as the packer wrote it comes first: the placeholder is a part of it.
        self._shown = {
            processor.get("image_text") or IMAGE: self.image_token,
            IMAGE: self.image_token,
            VIDEO: processor.get("video_mark") or "<video>",
            RUN: "<frames>",
            FRAME: "",
        }
        self._backend = tokenizer.backend_tokenizer
        self._backend.add_special_tokens([*PLACEHOLDER_IDS])  # in memory
        self._ids = {
            number: self._backend.token_to_id(mark) for mark, number in PLACEHOLDER_IDS.items()
        }

    def decode(self, sequences: Sequence[np.ndarray]) -> list[str]:
        """Texts of uint32 ids, special tokens included, each image as ``image_token``.

        A video is its own mark, and ``<frames>`` where text stands between its frames.
        """
        ids = [[self._ids.get(number, number) for number in ids.tolist()] for ids in sequences]
        texts: list[str] = self._backend.decode_batch(ids, skip_special_tokens=False)
        for text, shown in self._shown.items():
            texts = [decoded.replace(text, shown) for decoded in texts]
        return texts


def load_fast_tokenizer(name: str, *, needed_for: str, offline: bool = False) -> Any:
    """A fast tokenizer of transformers, by a name on the hub or a folder.

    Raises:
        ConfigError: there is no such tokenizer, or it is not a fast one.
        MissingExtraError: transformers is not installed.
    """
    # The hub would be asked for a name like a path, for a minute where there is no network.
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ConfigError(f"--tokenizer {name}: no such folder")
    try:
        auto = _auto_tokenizer(needed_for)
        _register_towers(name)
        tokenizer = auto.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"--tokenizer {name}: cannot be loaded: {first}", hint="a folder or a name on the hub"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"--tokenizer {name}: it has no tokenizer.json", hint="save it as a fast tokenizer"
        )
    return tokenizer


def _register_towers(name: str) -> None:
    # Needs transformers, whose absence has been said by now.
    from mmrlhf_engine.models.tower_configs import register_towers

    register_towers(name, weights=False)


def _auto_tokenizer(needed_for: str) -> Any:
    # Without torch, importing transformers writes advice to stderr, where progress may be JSON.
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("transformers", extra="pack", needed_for=needed_for) from None
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
    return AutoTokenizer


def sha256_of_tokenizer(tokenizer: Any, name: str, *, offline: bool = False) -> str:
    """Of the file tokenizer.json; of what it would hold, where there is no such file."""
    file: str | Path | None = Path(name) / "tokenizer.json"
    if not Path(str(file)).is_file():
        from transformers.utils import cached_file

        file = None
        if not Path(name).is_dir():
            file = cached_file(
                name,
                "tokenizer.json",
                _raise_exceptions_for_missing_entries=False,
                local_files_only=offline,
            )
    if file is None:
        return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _image_token(tokenizer: Any) -> str:
    """What the model's processor replaces by the features of an image."""
    own = getattr(tokenizer, "image_token", None)
    if own:
        return str(own)
    # Tokenizers of Qwen2.5 have the token of Qwen2-VL, whichever model they serve: it comes last.
    vocabulary = tokenizer.get_vocab()
    known = ("<IMG_CONTEXT>", "<image>", "<|image_pad|>")
    return next((token for token in known if token in vocabulary), "<image>")
