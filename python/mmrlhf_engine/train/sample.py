"""Answers of a local model to the queries of preference shards, several to each.

A judge or people may rank them, and what is ranked can be packed again: that is how MM-RLHF lets a
model improve by its own answers (8 a query; arXiv 2502.10391, section 5).

Queries come one by one in a random order of the seed, so that the first ``queries`` of them are a
random subset. Finished answers lie in the scratch folder with the position in that order; a run
that was killed goes on there, with the same groups of queries, and ends with the same table.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import polars as pl
import torch
from pydantic import PositiveInt

from mmrlhf_engine.models.endpoint import EndpointSettings, complete
from mmrlhf_engine.models.generation import Answer, Prompts, SamplingSettings, sample_answers
from mmrlhf_engine.models.policy import FeatureCache, load_policy, weights_hash
from mmrlhf_engine.run.stage import Stage, StageContext
from mmrlhf_engine.run.tables import TableSchema
from mmrlhf_engine.shards.dataset import ShardDataset, open_dataset
from mmrlhf_engine.shards.tokenizer import load_fast_tokenizer
from mmrlhf_engine.shards.torch_dataset import PreferenceDataset
from mmrlhf_engine.train.compatible import check_model_fits
from mmrlhf_engine.train.device import accelerator_for, with_precision
from mmrlhf_engine.train.endpoint_prompts import EndpointPrompts
from mmrlhf_engine.train.finished_parts import FinishedParts, groups_of
from mmrlhf_engine.train.settings import ModelSettings

__all__ = ["RESPONSES", "STAGE", "SampleConfig", "closing_of", "end_tokens"]

RESPONSES: TableSchema = {
    "query": pl.UInt64(),  # row of the shards' queries
    "key": pl.String(),  # of the query, 32 hexadecimal digits
    "source": pl.UInt16(),  # as in the shards
    "prompt": pl.String(),  # the shards' prompt_text, as the chat template rendered it
    "sample": pl.UInt32(),  # 0 to samples - 1
    "text": pl.String(),  # without the token that ended it; special tokens within are left as text
    "tokens": pl.List(pl.UInt32()),  # ids, the token that ended it included
    "n_tok": pl.UInt32(),
    "logp": pl.Float64(),  # sum over tokens, under the model without temperature, top_p and top_k;
    # of an endpoint what it gives, null where that is nothing
    "finish": pl.String(),  # stop, or length
}
"""The table ``responses``, by query and sample."""

_GROUPS_PER_PART = 8
"""Groups of queries between two records of what is done."""
_LOOKED_AT = 1000
"""Responses from which it is learned how an answer ends."""


class SampleConfig(ModelSettings, SamplingSettings):
    """Settings of ``sample``."""

    queries: PositiveInt | None = None
    """Answer a random subset of so many, of the seed; null is all."""
    batch: PositiveInt = 4
    """Queries that are answered together: they share each reading of the weights, for which a GPU
    waits, and all of their keys and values are in memory at once."""
    tokens: PositiveInt = 16_384
    """The most that a query may hold with the answers in the shards, text and images together."""
    too_large: Literal["error", "alone", "drop"] = "error"
    """What becomes of a query with more tokens; ``alone`` answers it like any other."""
    endpoint: EndpointSettings | None = None
    """A server that answers, such as vLLM's; ``model`` is then that whose tokenizer the shards were
    packed with. Null answers by the model itself."""


def run(config: SampleConfig, context: StageContext) -> None:
    """Answer every query, then write the table; what was answered is kept on the way."""
    config = with_precision(config)
    dataset = open_dataset(config.shards)
    check_model_fits(dataset, config.model, other_template=config.other_template)
    parts = FinishedParts(context.scratch, _ANSWERS, ("unreadable", "too_large"))
    sampler: _Sampler | _EndpointSampler
    if config.endpoint is not None:
        sampler = _EndpointSampler(config, dataset, config.endpoint)
        counts = _answer(config, context, dataset, sampler, parts)
    else:
        with accelerator_for(str(config.precision)) as accelerator:
            sampler = _Sampler(config, dataset, accelerator.device)
            counts = _answer(config, context, dataset, sampler, parts)
    rows = _with_queries(parts.rows().sort("query", "sample"), dataset)
    with context.table("responses", RESPONSES) as table:
        table.write(rows)
    context.finish(
        **counts,
        responses=rows.height,
        finish=dict(sorted(Counter(rows["finish"]).items())),
        tokens=int(rows["n_tok"].sum()),
        model=config.model,
        precision=config.precision,
        stop_tokens=sampler.stop,
        closing=sampler.closing,
        **config.model_dump(include=set(SamplingSettings.model_fields)),
    )


def _answer(
    config: SampleConfig,
    context: StageContext,
    dataset: ShardDataset,
    sampler: "_Sampler | _EndpointSampler",
    parts: FinishedParts,
) -> dict[str, Any]:
    """Answer the queries that are left; rows in and out, and dropped by reason."""
    data = PreferenceDataset(
        config.shards,
        config.tokens,
        packs_per_step=1,
        unit="query",
        window=1,
        seed=config.seed,
        too_large=config.too_large,
        threads=config.threads,
        rank=0,
        world_size=1,
        version=dataset.version,
        pixels=config.endpoint is None,
        state=parts.cursor,
    )
    if parts.cursor is None and config.too_large == "drop":
        parts.counts["too_large"] = data.units_above_budget or 0
    given = len(data)
    chosen = min(given, config.queries or given)
    batches = itertools.islice(data, chosen - parts.taken)
    waiting: list[dict[str, Any]] = []
    for number, group in enumerate(groups_of(batches, config.batch), 1):
        waiting += sampler.rows(group, parts)
        parts.taken += len(group)
        context.progress("queries", parts.taken, chosen)
        if number % _GROUPS_PER_PART == 0 or parts.taken == chosen:
            parts.keep(waiting, group[-1].cursor)
            waiting = []
    rows_in = dataset.rows("queries")
    dropped = {
        "too_large": parts.counts["too_large"],
        "without_pairs": rows_in - given - parts.counts["too_large"],
        "not_chosen": given - chosen,
        "unreadable": parts.counts["unreadable"],
    }
    return {"rows_in": rows_in, "rows_out": chosen - parts.counts["unreadable"], "dropped": dropped}


class _Sampler:
    """The model, and how its answers become rows.

    Args:
        config: The settings, resolved.
        dataset: The shards.
        device: Where the model is put.
    """

    def __init__(self, config: SampleConfig, dataset: ShardDataset, device: torch.device) -> None:
        self._settings = config
        self._dtype = getattr(torch, str(config.precision))
        self._keys = dataset.queries.select("qid").collect()["qid"]
        self._tokenizer = load_fast_tokenizer(config.model, needed_for="sample")
        kept = config.cache_features
        self._policy = load_policy(
            config.model,
            dtype=self._dtype,
            device=device,
            features=None if kept is None else FeatureCache(kept),
        ).requires_grad_(False)
        responses = dataset.responses.select("tokens").head(_LOOKED_AT).collect()
        special = {
            number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }
        closing = closing_of(responses["tokens"].to_list(), special)
        self.closing = self._text(closing)
        """How an answer in the shards ends, as text."""
        self.stop = sorted({*end_tokens(self._policy.model), *closing[:1]})
        """Ids of tokens that end an answer."""

    def rows(self, batches: Sequence[Any], parts: FinishedParts) -> list[dict[str, Any]]:
        """Rows of all samples of the queries of some batches, each of one query."""
        prompts: dict[int, Prompts] = {}
        for batch in batches:
            query = int(batch.sequence_query[0])
            prompt = Prompts.of(batch, 0, self._keys[query])
            if prompt.unreadable:
                parts.counts["unreadable"] += 1
            else:
                prompts[query] = prompt
        answers = sample_answers(self._policy, [*prompts.values()], self._settings, self.stop)
        return [
            self._row(query, number, answer)
            for query, samples in zip(prompts, answers, strict=True)
            for number, answer in enumerate(samples)
        ]

    def _row(self, query: int, sample: int, answer: Answer) -> dict[str, Any]:
        tokens = answer.tokens.tolist()
        return {
            "query": query,
            "sample": sample,
            "text": self._text(tokens[:-1] if answer.finish == "stop" else tokens),
            "tokens": tokens,
            "n_tok": len(tokens),
            "logp": answer.logp,
            "finish": answer.finish,
        }

    def _text(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)


class _EndpointSampler:
    """A server that answers, and how its answers become rows.

    Args:
        config: The settings, resolved.
        dataset: The shards.
        endpoint: The server.
    """

    def __init__(
        self, config: SampleConfig, dataset: ShardDataset, endpoint: EndpointSettings
    ) -> None:
        self._config, self._endpoint = config, endpoint
        self._keys = dataset.queries.select("qid").collect()["qid"]
        self._tokenizer = load_fast_tokenizer(config.model, needed_for="sample")
        self._prompts = EndpointPrompts(dataset, self._tokenizer)
        self.stop: list[int] = []
        """The server knows them."""
        self.closing = ""

    def rows(self, batches: Sequence[Any], _parts: FinishedParts) -> list[dict[str, Any]]:
        """Rows of all samples of the queries of some batches; tokens are those of the text."""
        queries = [int(batch.sequence_query[0]) for batch in batches]
        prompts = [self._prompts.of(query) for query in queries]
        seeds = [
            int.from_bytes(self._keys[query][:8], "little") ^ self._config.seed for query in queries
        ]
        rows = []
        answers = complete(prompts, self._endpoint, self._config, seeds)
        for query, samples in zip(queries, answers, strict=True):
            for number, answer in enumerate(samples):
                tokens = self._tokenizer(answer.text, add_special_tokens=False)["input_ids"]
                row = {"query": query, "sample": number, "text": answer.text, "tokens": tokens}
                rows.append(
                    {**row, "n_tok": len(tokens), "logp": answer.logp, "finish": answer.finish}
                )
        return rows


def closing_of(responses: Iterable[Sequence[int]], special: set[int]) -> list[int]:
    """The ids that end most responses: the last special token of each, and what follows it.

    The chat template closes an answer by them, such as ``<|im_end|>`` and a line break; a model
    that was trained on such answers writes the first of them when it has done.

    Args:
        responses: Token ids of responses; some may have been cut short.
        special: Ids of special tokens.

    Returns:
        The ids; none where no more than half of the responses end alike.
    """
    endings: Counter[tuple[int, ...]] = Counter()
    count = 0
    for tokens in responses:
        count += 1
        places = [place for place, token in enumerate(tokens) if token in special]
        if places:
            endings[tuple(tokens[places[-1] :])] += 1
    (ending, times), *_ = endings.most_common(1) or [((), 0)]
    return list(ending) if 2 * times > count else []


def end_tokens(model: Any) -> list[int]:
    """The ends of text that the model's own settings of generation name."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        return []
    return [int(one) for one in ids] if isinstance(ids, list) else [int(ids)]


_OF_QUERIES = ("key", "source", "prompt")
_ANSWERS = {name: kind for name, kind in RESPONSES.items() if name not in _OF_QUERIES}
"""The columns that the shards do not have."""


def _with_queries(rows: pl.DataFrame, dataset: ShardDataset) -> pl.DataFrame:
    """The rows with what the shards say of their queries."""
    key = pl.col("qid").bin.encode("hex")
    queries = dataset.queries.select("source", key=key, prompt="prompt_text")
    known = queries.with_row_index("query").cast({"query": pl.UInt64}).collect()
    return rows.join(known, on="query", how="left", maintain_order="left")


def _external(config: SampleConfig) -> list[object]:
    config = with_precision(config)
    of_model = weights_hash(config.model) if config.endpoint is None else config.endpoint.model
    return [open_dataset(config.shards).fingerprint, of_model, config.precision]


STAGE = Stage(
    name="sample",
    config=SampleConfig,
    run=run,
    writes=("responses",),
    external=_external,
    no_effect_on_output=frozenset({"cache_features", "threads", "shards", "model"}),
)
