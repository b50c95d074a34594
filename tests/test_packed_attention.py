"""Packed attention against a dense mask, and the call of a GPU's kernel against it."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmrlhf_engine import attention_mask
from mmrlhf_engine.errors import InputError
from mmrlhf_engine.models.packed_attention import (
    Segments,
    gathered,
    packed_attention,
    varlen_of_torch,
)

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
# Lengths of sequences, and which one each of them continues: a prompt of three answers, a sequence
# alone, an empty one, a prompt that is another's second, and an answer without tokens.
LENGTHS = [7, 3, 1, 5, 4, 0, 6, 2, 0]
PREFIXES = [-1, 0, 0, 0, -1, -1, -1, 6, 6]


def segments():
    return Segments.of(np.cumsum([0, *LENGTHS]), np.array(PREFIXES))


def states(dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, sum(LENGTHS), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    made = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.to(device, dtype).requires_grad_() for tensor in made]


def by_mask(query, key, value):
    """[1, T, heads, width], by a mask over all tokens."""
    batch = SimpleNamespace(cu_seqlens=np.cumsum([0, *LENGTHS]), prefix_sequence=np.array(PREFIXES))
    mask = torch.from_numpy(attention_mask(batch)).to(query.device)
    out = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    return out.transpose(1, 2)


def gradients(output, tensors):
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return torch.autograd.grad((output * weights.to(output)).sum(), tensors)


def one_by_one(query, key, value, cu_queries, cu_keys, longest_query, longest, scaling):
    """What a kernel for sequences of different lengths computes, by plain arithmetic."""
    lengths = cu_queries.diff(), cu_keys.diff()
    assert [int(one.max()) for one in lengths] == [longest_query, longest]
    key, value = (
        part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value)
    )
    outputs = []
    for number in range(len(cu_queries) - 1):
        own = slice(*cu_queries[number : number + 2].tolist())
        seen = slice(*cu_keys[number : number + 2].tolist())
        scores = torch.einsum("qhw,khw->hqk", query[own], key[seen]) * scaling
        after = torch.ones(scores.shape[1:], dtype=torch.bool)
        after = after.triu(scores.shape[2] - scores.shape[1] + 1)
        shares = scores.masked_fill(after, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khw->qhw", shares, value[seen]))
    return torch.cat(outputs)


def test_each_sequence_attends_to_its_prefix_and_itself():
    tensors = states()
    expected = by_mask(*tensors)
    found, _ = packed_attention(None, *tensors, None, segments=segments(), scaling=0.3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_the_gathered_call_is_the_same():
    tensors = states()
    found = gathered(*tensors, segments(), 0.3, one_by_one)
    expected = by_mask(*tensors)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_the_kernel_of_torch_takes_what_it_is_given():
    tensors = states(torch.bfloat16, "meta")
    output = gathered(*tensors, segments().to("meta"), 0.3, varlen_of_torch())
    assert output.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), tensors), tensors, strict=True):
        assert gradient.shape == tensor.shape


def test_without_prefixes_nothing_is_gathered():
    plain = Segments.of([0, 4, 4, 9], [-1, -1, -1])
    assert plain.key_rows is None
    assert plain.cu_keys is plain.cu_queries
    assert plain.cu_queries.tolist() == [0, 4, 9]
    assert plain.to("cpu").cu_keys is plain.to("cpu").cu_queries
    assert (plain.longest_query, plain.longest) == (5, 5)


def test_segments_travel_between_processes():
    one = segments()
    other = pickle.loads(pickle.dumps(one))
    assert other.queries == one.queries
    assert torch.equal(other.key_rows, one.key_rows)
    assert torch.equal(other.to("cpu").cu_keys, one.cu_keys)
    assert one.longest == 12


def test_states_of_other_types_than_the_values_are_brought_to_them():
    query, key, value = (tensor.detach() for tensor in states(torch.float32))
    found, _ = packed_attention(
        None, query, key, value.bfloat16(), None, segments=segments(), scaling=0.3
    )
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"segments": None}, "found no segments"),
        ({"dropout": 0.1}, "dropout 0.1, expected 0"),
        ({"softcap": 50.0}, "the model's attention has softcap"),
        ({"s_aux": torch.zeros(4)}, "the model's attention has s_aux"),
    ],
)
def test_what_would_change_the_result_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        packed_attention(None, *states(), None, **{"segments": segments(), **given})


def test_a_window_as_long_as_every_sequence_is_no_window():
    plain, _ = packed_attention(None, *states(), None, segments=segments())
    windowed, _ = packed_attention(None, *states(), None, segments=segments(), sliding_window=12)
    assert torch.equal(plain, windowed)


@pytest.mark.parametrize("window", [1, 2, 5, 9, 11])
def test_a_window_counts_tokens_of_the_prefix_too(window):
    tensors = states()
    ends = np.cumsum([0, *LENGTHS])
    seen = torch.zeros(sum(LENGTHS), sum(LENGTHS), dtype=torch.bool)
    for number, prefix in enumerate(PREFIXES):
        own = list(range(ends[number], ends[number + 1]))
        line = [*(range(ends[prefix], ends[prefix + 1]) if prefix >= 0 else ()), *own]
        for token in own:
            place = line.index(token)
            seen[token, line[max(0, place - window + 1) : place + 1]] = True
    query, key, value = tensors
    expected = scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)
    found, _ = packed_attention(
        None, *tensors, None, segments=segments(), scaling=0.3, sliding_window=window
    )
    assert torch.allclose(found, expected.transpose(1, 2), rtol=0, atol=1e-12)


def test_a_prefix_of_a_prefix_is_refused():
    with pytest.raises(InputError, match="expected one level"):
        Segments.of([0, 1, 2, 3], [-1, 0, 1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu(dtype):
    exact = states()
    expected = by_mask(*exact)
    tensors = states(dtype, "cuda")
    found, _ = packed_attention(None, *tensors, None, segments=segments().to("cuda"), scaling=0.3)
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 2e-2}
    assert torch.allclose(found.double().cpu(), expected, **close)
    for mine, theirs in zip(gradients(found, tensors), gradients(expected, exact), strict=True):
        assert torch.allclose(mine.double().cpu(), theirs, **close)
