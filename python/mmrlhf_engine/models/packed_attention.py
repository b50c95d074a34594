"""Attention over a pack, where sequences may share a prompt: exact, and without a T x T mask.

Every sequence attends to the whole of its prefix and, causally, to itself. On a CPU that is one
``scaled_dot_product_attention`` for each sequence. On a GPU the keys and values of each sequence,
with those of its prefix before them, are gathered for one call of an attention kernel for sequences
of different lengths.
"""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmrlhf_engine.errors import InputError

__all__ = [
    "PACKED_ATTENTION",
    "Segments",
    "gathered",
    "packed_attention",
    "plain_attention",
    "use_packed_attention",
    "varlen_of_torch",
]

PACKED_ATTENTION = "mmrlhf_packed"
"""The name under which transformers knows :func:`packed_attention`."""

# Arguments that some models give their attention function, and that would change its result.
_NOT_FOLLOWED = ("softcap", "s_aux", "position_bias")

_Varlen = Callable[..., Tensor]


@dataclass(frozen=True)
class Segments:
    """Which rows of a pack attend to which."""

    queries: tuple[tuple[int, int], ...]
    """Of each sequence that is not empty, in order: where its rows begin and end."""
    prefixes: tuple[tuple[int, int], ...]
    """Of each of them, the rows of its prefix; begin and end are equal where it has none."""
    cu_queries: Tensor
    """int32 [S + 1], where the queries of each sequence begin, and the end."""
    cu_keys: Tensor
    """int32 [S + 1], the same of its keys, those of the prefix included. Where no sequence has a
    prefix it is ``cu_queries`` itself, by which kernels know that the lengths are equal."""
    key_rows: Tensor | None
    """int64 [K], the row of the pack of each key; None where no sequence has a prefix."""

    @classmethod
    def of(cls, cu_seqlens: Any, prefix_sequence: Any, device: Any = None) -> "Segments":
        """Segments of the sequences of a batch.

        Args:
            cu_seqlens: Integers [S + 1], where each sequence begins, and the end.
            prefix_sequence: Integers [S], the sequence that this one continues, or -1.
            device: Where the tensors are put; None is the CPU.

        Raises:
            InputError: a prefix has a prefix of its own, which is not followed.
        """
        starts, prefix = np.asarray(cu_seqlens).tolist(), np.asarray(prefix_sequence).tolist()
        rows = list(itertools.pairwise(starts))
        queries, prefixes = [], []
        for own, before in zip(rows, prefix, strict=True):
            if own[0] == own[1]:
                continue
            if before >= 0 and prefix[before] >= 0:
                raise InputError(
                    f"segments: sequence {before} is a prefix and has one, expected one level"
                )
            queries.append(own)
            prefixes.append(rows[before] if before >= 0 else (own[0], own[0]))
        keys = [
            end - start + upto - since
            for (start, end), (since, upto) in zip(queries, prefixes, strict=True)
        ]
        key_rows = None
        if any(end > start for start, end in prefixes):
            parts = itertools.chain.from_iterable(zip(prefixes, queries, strict=True))
            key_rows = torch.cat([torch.arange(*part) for part in parts]).to(device)
        cu_queries = _ends([end - start for start, end in queries], device)
        cu_keys = cu_queries if key_rows is None else _ends(keys, device)
        return cls(tuple(queries), tuple(prefixes), cu_queries, cu_keys, key_rows)

    def to(self, device: Any) -> "Segments":
        """The same with tensors on a device."""
        cu_queries = self.cu_queries.to(device)
        if self.key_rows is None:
            return Segments(self.queries, self.prefixes, cu_queries, cu_queries, None)
        rest = self.cu_keys.to(device), self.key_rows.to(device)
        return Segments(self.queries, self.prefixes, cu_queries, *rest)

    @property
    def longest_query(self) -> int:
        """Rows of the longest sequence, without its prefix."""
        return max((end - start for start, end in self.queries), default=0)

    @property
    def longest(self) -> int:
        """Rows of the longest sequence, with its prefix."""
        return max(
            (
                end - start + upto - since
                for (start, end), (since, upto) in zip(self.queries, self.prefixes, strict=True)
            ),
            default=0,
        )


def _ends(lengths: list[int], device: Any) -> Tensor:
    ends = [0, *itertools.accumulate(lengths)]
    return torch.tensor(ends, dtype=torch.int32, device=device)


def use_packed_attention(model: Any) -> None:
    """Let the text model of a model of transformers attend by :func:`packed_attention`.

    A vision tower goes on with ``sdpa``. The model's ``forward`` then needs ``segments=``, a
    :class:`Segments`.

    Args:
        model: A ``PreTrainedModel``, not yet wrapped by peft.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    parts = model.config.sub_configs
    if not parts:
        model.set_attn_implementation(PACKED_ATTENTION)
        return
    chosen = {part: PACKED_ATTENTION if part == "text_config" else "sdpa" for part in parts}
    model.set_attn_implementation(chosen)


@contextlib.contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Within, a model of :func:`use_packed_attention` attends by ``sdpa``, as for decoding."""
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        use_packed_attention(model)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface, for packs.

    Args:
        _: The attention module.
        query: [1, heads, T, width].
        key: [1, key heads, T, width], key heads dividing heads.
        value: Likewise.
        attention_mask: Must be None, as ``segments`` says who attends to whom.
        segments: Of the pack.
        scaling: Factor of the scores; None is ``width ** -0.5``.
        dropout: Must be 0.
        sliding_window: Tokens that a token sees, itself included; None is all before it.
        others: What models pass besides; refused where it would change the result.

    Returns:
        [1, T, heads, width], and None for the weights.

    Raises:
        InputError: one of these conditions does not hold.
    """
    if segments is None or attention_mask is not None:
        raise InputError(
            "packed attention: found no segments, or a mask besides",
            hint="PackedPolicy gives them; for a forward of one's own, another attn_implementation",
        )
    _check(dropout, others)
    if query.dtype != value.dtype:  # by rotary embeddings in float32 under autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    if sliding_window is not None and sliding_window >= segments.longest:
        sliding_window = None
    varlen = _varlen_kernel() if query.is_cuda and query.element_size() == 2 else None
    if varlen is not None and sliding_window is None:
        return gathered(query, key, value, segments, scaling, varlen), None
    return _by_sequence(query, key, value, segments, scaling, sliding_window), None


def _check(dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise InputError(
            f"packed attention: dropout {dropout}, expected 0", hint="load_policy turns it off"
        )
    found = [name for name in _NOT_FOLLOWED if others.get(name) is not None]
    if found:
        raise InputError(
            f"packed attention: the model's attention has {', '.join(found)}, which is not "
            "followed here",
            hint="take a model whose attention is plain softmax attention",
        )


def _by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One attention for each sequence; of a mask only its own rows over its own keys."""
    lengths = [end - start for start, end in segments.queries]
    number_of = {start: number for number, (start, _) in enumerate(segments.queries)}
    # Split at once: in the backward pass, each slice of its own would fill a tensor of all tokens.
    queries, every_key, every_value = (
        torch.split(part, lengths, 2) for part in (query, key, value)
    )
    outputs = []
    for number, (since, upto) in enumerate(segments.prefixes):
        keys, values, mask = every_key[number], every_value[number], None
        if upto > since:
            prefix = number_of[since]
            keys = torch.cat([every_key[prefix], keys], 2)
            values = torch.cat([every_value[prefix], values], 2)
        rows, columns = lengths[number], keys.shape[2]
        if columns > rows or (window is not None and window < columns):
            mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
            mask = mask.tril(columns - rows)
            if window is not None:
                mask = mask.triu(columns - rows - window + 1)
        outputs.append(
            scaled_dot_product_attention(
                queries[number],
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    varlen: _Varlen,
) -> Tensor:
    """One call of a kernel for sequences of different lengths, as on a GPU.

    Args:
        query: [1, heads, T, width].
        key: [1, key heads, T, width].
        value: Likewise.
        segments: Of the pack.
        scaling: Factor of the scores; None is ``width ** -0.5``.
        varlen: ``(query [T, heads, width], key [K, key heads, width], value, cu_queries, cu_keys,
            longest query, longest, scaling) -> [T, heads, width]``, causal from the last query and
            key of each sequence backwards.

    Returns:
        [1, T, heads, width].
    """
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if segments.key_rows is not None:
        rows[1:] = [tensor.index_select(0, segments.key_rows) for tensor in rows[1:]]
    output = varlen(
        *(tensor.contiguous() for tensor in rows),
        segments.cu_queries,
        segments.cu_keys,
        segments.longest_query,
        segments.longest,
        scaling,
    )
    return output[None]


@cache
def _varlen_kernel() -> _Varlen | None:
    """The attention kernel for sequences of different lengths that is installed."""
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError:
        return varlen_of_torch()

    def call(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        *lengths, scaling = rest
        output: Tensor = flash_attn_varlen_func(
            query, key, value, *lengths, softmax_scale=scaling, causal=True
        )
        return output

    return call


def varlen_of_torch() -> _Varlen | None:
    """The kernel that comes with torch, as :func:`gathered` calls it; None where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return None

    def call(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        *lengths, scaling = rest
        output = varlen_attn(
            query,
            key,
            value,
            *lengths,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        assert isinstance(output, Tensor)
        return output

    return call
