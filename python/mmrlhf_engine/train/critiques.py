"""Critiques as the tokens that follow an answer: a request to judge it, the critique, its end.

    prompt | answer | opening of the judge's turn | critique | closing

Prompt and answer are the policy's own conversation, as it was packed. The paper puts the answer
into the judge's user turn instead (MM-RLHF, arXiv 2502.10391, section 3); in a turn after it,
prompt and pictures are computed once for all answers of a query, as in training the policy.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models.judge_turn import INSTRUCTION, JudgeTurn, critique_tokens, judge_turn
from mmrlhf_engine.models.tails import Tail
from mmrlhf_engine.shards.dataset import ShardDataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer

__all__ = ["Critiques"]

_NOTHING = Tail(np.empty(0, np.uint32), 0)


class Critiques:
    """The critiques of a dataset's responses, by row.

    A query has critiques for all of its responses or counts as having none: a critique of one of
    two answers alone would tell them apart.

    Args:
        dataset: The shards.
        source: ``packed``, those that were packed; ``none``; or ``SET/FIELD``, a sidecar column of
            responses with text.
        model: Name or folder of the model whose tokenizer and chat template are used.
        instruction: What the judge is asked; None is the default of
            :func:`mmrlhf_engine.models.judge_turn.judge_turn`.

    Raises:
        ConfigError: the source is of no known form, or the template does not render such turns.
        InputError: there is no such column, or no query has critiques.
    """

    def __init__(
        self, dataset: ShardDataset, source: str, model: str, instruction: str | None = None
    ) -> None:
        responses = dataset.rows("responses")
        self.turn = JudgeTurn(np.empty(0, np.uint32), np.empty(0, np.uint32))
        self.instruction: str | None = None
        """What the judge is asked; None where there are no critiques."""
        self.count = self.unused = 0
        self._tokens: list[npt.NDArray[np.uint32]] = []
        self._texts: list[str] = []
        self._place = np.full(responses, -1, np.int64)
        if source == "none":
            return
        tokenizer = load_fast_tokenizer(model, needed_for="critiques")
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.turn = judge_turn(tokenizer, self.instruction)
        texts = _texts(dataset, source)
        used = _used(dataset, texts)
        self.count = int(used.sum())
        """Responses whose critique is used."""
        self.unused = int(texts.is_not_null().sum()) - self.count
        """Critiques of queries in which another response has none."""
        if not self.count:
            raise InputError(
                f"{dataset.path}: critiques {source!r}: {len(texts):,} responses, and no query has "
                "a critique of each of its responses",
                hint="pack rows with chosen_reason and rejected_reason; or critiques=none trains "
                "scores alone",
            )
        self._place[used] = np.arange(self.count)
        self._texts = texts.filter(pl.Series(used)).to_list()
        self._tokens = critique_tokens(tokenizer, self._texts)

    @property
    def lengths(self) -> npt.NDArray[np.uint32] | None:
        """uint32 [responses], the tokens that follow each; None where nothing follows any."""
        if not self.count:
            return None
        found = np.zeros(len(self._place), np.uint32)
        around = len(self.turn.opening) + len(self.turn.closing)
        found[self._place >= 0] = [len(tokens) + around for tokens in self._tokens]
        return found

    def tail(self, response: int) -> Tail:
        """What follows a response; nothing without a critique, and for -1."""
        place = self._place[response] if response >= 0 else -1
        if place < 0:
            return _NOTHING
        parts = self.turn.opening, self._tokens[place], self.turn.closing
        return Tail(np.concatenate(parts), len(self.turn.opening))

    def text(self, response: int) -> str | None:
        """The critique of a response, as text; None without."""
        place = self._place[response]
        return None if place < 0 else self._texts[place]

    def version(self) -> str:
        """A hash of all that follows responses."""
        digest = hashlib.sha256(self._place.tobytes())
        for tokens in (self.turn.opening, self.turn.closing, *self._tokens):
            digest.update(np.uint32(len(tokens)).tobytes() + tokens.astype(np.uint32).tobytes())
        return digest.hexdigest()


def _texts(dataset: ShardDataset, source: str) -> pl.Series:
    """Text of each response's critique, null where there is none."""
    if source == "packed":
        texts = dataset.responses.select("critique").collect()["critique"]
    else:
        column_set, _, field = source.rpartition("/")
        if not column_set:
            raise ConfigError(
                f"critiques: found {source!r}, expected packed, none or SET/FIELD, a sidecar "
                "column of responses"
            )
        texts = dataset.column(column_set, field)
        if texts.dtype != pl.String or len(texts) != dataset.rows("responses"):
            raise InputError(
                f"{dataset.path}: {source}: a column of {texts.dtype} with {len(texts):,} rows, "
                f"expected text of the {dataset.rows('responses'):,} responses"
            )
    stripped = texts.str.strip_chars()
    return stripped.set(stripped == "", None)


def _used(dataset: ShardDataset, texts: pl.Series) -> Any:
    """Bool [responses]: those of queries all of whose responses in pairs have a critique."""
    pairs = dataset.pairs.select("chosen", "rejected").collect()
    in_pairs = np.zeros(len(texts), bool)
    for name in pairs.columns:
        in_pairs[pairs[name].to_numpy()] = True
    query = dataset.responses.select("q").collect()["q"]
    table = pl.DataFrame({"q": query, "has": texts.is_not_null(), "in_pairs": in_pairs})
    complete = (pl.col("has") | ~pl.col("in_pairs")).all().over("q")
    found = table.select(complete & pl.col("has") & pl.col("in_pairs")).to_series()
    return found.to_numpy()
