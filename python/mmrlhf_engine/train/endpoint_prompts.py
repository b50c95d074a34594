"""Queries of shards as what an endpoint is asked: token ids, or a message with its pictures."""

import base64
import re
from typing import Any

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.shards.dataset import ShardDataset

__all__ = ["EndpointPrompts"]

_MARKER = "|question|"
_PICTURE = "<image>"
_TYPES = {1: "jpeg", 2: "png", 3: "webp", 4: "gif", 5: "bmp"}


class EndpointPrompts:
    """The prompts of a dataset by the row of their query.

    Args:
        dataset: The shards.
        tokenizer: With the chat template that they were packed with.
    """

    def __init__(self, dataset: ShardDataset, tokenizer: Any) -> None:
        self._queries = dataset.queries.select("prompt", "media", "prompt_text").collect()
        self._dataset = dataset
        special = [
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ]
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        turn = [{"role": "user", "content": _MARKER}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        self._before, _, self._after = str(text).partition(_MARKER)
        around = self._special.findall(self._before + self._after)
        self._of_turns = re.compile("|".join(map(re.escape, set(around))) or r"(?!)")

    def of(self, row: int) -> list[int] | list[dict[str, Any]]:
        """Token ids of a prompt of text; messages of one with pictures.

        Raises:
            InputError: it has videos, or pictures and several turns, which cannot be told from the
                rendered text.
        """
        query = self._queries.row(row, named=True)
        ids: list[int] = query["prompt"]
        if not query["media"]:
            return ids
        text = str(query["prompt_text"])
        inner = text.removeprefix(self._before).removesuffix(self._after)
        if len(inner) != len(text) - len(self._before) - len(self._after):
            raise InputError(f"query {row}: its prompt is no single question, but {text[:80]!r}")
        parts = self._special.sub("", inner).split(_PICTURE)
        if len(parts) != len(query["media"]) + 1 or self._of_turns.search(inner):
            raise InputError(
                f"query {row}: several turns, or a video, which an endpoint is not asked",
                hint="sample with the model itself",
            )
        content: list[dict[str, Any]] = []
        for place, part in enumerate(parts):
            if part.strip():
                content.append({"type": "text", "text": part.strip("\n")})
            if place < len(query["media"]):
                address = self._address(query["media"][place])
                content.append({"type": "image_url", "image_url": {"url": address}})
        return [{"role": "user", "content": content}]

    def _address(self, blob: int) -> str:
        """A picture within the text of an address."""
        data, kind = self._dataset.picture(blob)
        return f"data:image/{_TYPES[kind]};base64,{base64.b64encode(data).decode()}"
