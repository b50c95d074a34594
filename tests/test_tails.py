"""Tokens that follow answers in a pack: as if each answer with its tail had been packed alone."""

import numpy as np
import pytest
import torch

from mmrlhf_engine.models.generation import Prompts, SamplingSettings, sample_answers
from mmrlhf_engine.models.pack import ModelPack
from mmrlhf_engine.models.policy import load_policy
from mmrlhf_engine.models.tails import Tail, with_tails
from test_packed_forward import by_response, log_probs
from tiny_models import make_case

NOTHING = Tail(np.empty(0, np.uint32), 0)


def tail_of(response):
    """A tail of its own for each response, none for some; part of it is given."""
    if response < 0 or response % 4 == 3:
        return NOTHING
    random = np.random.default_rng(response)
    tokens = random.integers(20, 90, 3 + response % 5).astype(np.uint32)
    return Tail(tokens, response % 3)


def extended(inputs, tail):
    """Arguments of ``forward`` of one answer, with more text after it."""
    length = inputs["input_ids"].shape[1]
    more = torch.from_numpy(tail.tokens.astype(np.int64))[None]
    found = dict(inputs)
    for name, value in inputs.items():
        if torch.is_tensor(value) and value.shape == (1, length):
            added = more if name == "input_ids" else torch.zeros_like(more)
            if name == "attention_mask":
                added = torch.ones_like(more)
            found[name] = torch.cat([value, added.to(value.dtype)], 1)
    return found


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_onevision", "llava"])
@torch.no_grad()
def test_a_tail_scores_as_after_its_answer_alone(name, tmp_path):
    case = make_case(name, tmp_path, count=6, frames=3)
    policy = load_policy(str(case.folder))
    found = {}
    for batch in case.batches():
        tails = [tail_of(int(response)) for response in batch.sequence_response]
        pack = ModelPack.of(batch, tails=tails)
        found |= by_response(policy(pack, log_probs), pack, batch)
    assert len(found) == 12
    for kind in ("chosen", "rejected"):
        for response, inputs in case.alone(kind):
            tail = tail_of(response)
            scored = len(tail.tokens) - tail.given
            assert len(found[response]) == scored
            if not scored:
                continue
            longer = extended(inputs, tail)
            logits = case.model(**longer, use_cache=False).logits[0, :-1].log_softmax(-1)
            every = logits.gather(1, longer["input_ids"][0, 1:, None])[:, 0]
            assert torch.allclose(found[response], every[-scored:], atol=1e-5)


def test_a_batch_without_sequences_stays_as_it_is(tmp_path):
    case = make_case("llava", tmp_path, count=2)
    (batch, *_) = case.batches()
    tensors = batch.to_torch(pin=False)
    same = with_tails(tensors, [NOTHING] * len(batch.prefix_sequence))
    assert torch.equal(same.input_ids, tensors.input_ids)
    assert torch.equal(same.placeholder_start, tensors.placeholder_start)
    assert same.prompt_lengths.tolist() == np.diff(batch.cu_seqlens).tolist()
    assert with_tails(tensors, []) is tensors


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
@torch.no_grad()
def test_what_follows_an_answer_is_written_as_after_it_alone(name, tmp_path):
    """Greedily, with keys and values of the prompt shared, against one forward for each token."""
    case = make_case(name, tmp_path, count=4, frames=3)
    policy = load_policy(str(case.folder))
    request = np.array([31, 32, 33], np.uint32)
    settings = SamplingSettings(samples=1, temperature=0, max_new_tokens=4)
    found = {}
    for batch in case.batches():
        responses = batch.sequence_response.tolist()
        keys = {place: bytes(16) for place, row in enumerate(responses) if row >= 0}
        prompts = Prompts.after_answers(batch, keys, request)
        answers = sample_answers(policy, [prompts], settings, [])
        for place, (answer,) in zip(keys, answers, strict=True):
            found[responses[place]] = answer.tokens.tolist()
    assert len(found) == 8
    for kind in ("chosen", "rejected"):
        for response, inputs in case.alone(kind):
            for number, token in enumerate(found[response]):
                known = np.array([*request, *found[response][:number]], np.uint32)
                logits = case.model(**extended(inputs, Tail(known, 0)), use_cache=False).logits
                assert int(logits[0, -1].argmax()) == token
                if token in (case.model.config.image_token_id, case.model.config.video_token_id):
                    break  # A random model may write a picture's id, which text cannot hold.
