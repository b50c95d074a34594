"""Sampled answers: those of transformers without randomness, and of the model's distribution."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from mmrlhf_engine import Budget, PlanSettings, PreferenceLoader, open_dataset, plan_json
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.generation import Prompts, SamplingSettings, sample_answers
from mmrlhf_engine.models.policy import load_policy
from mmrlhf_engine.run.config import load_config
from model_families import WITH_VIDEOS, processor_folder, prompts
from test_families import by_processor, packed
from tiny_models import SIDES, TEXT, tiny_model
from train_data import text_shards

GREEDY = SamplingSettings(samples=1, temperature=0, max_new_tokens=12)
DRAWN = SamplingSettings(samples=3, max_new_tokens=8, seed=5)


def prompts_of(shards, unit="query"):
    """The prompts of a dataset in the order of its queries, cut out of packs of several."""
    dataset = open_dataset(shards)
    rule = dataset.processor and dataset.processor["image_rule"]
    settings = PlanSettings(budget=Budget(tokens=2500), packs_per_step=1, unit=unit)
    found = {}
    for batch in PreferenceLoader(shards, plan_json(settings, rule), threads=1):
        for sequence, query in enumerate(batch.sequence_query.tolist()):
            found[query] = Prompts.of(batch, sequence, query.to_bytes(16))
    return [found[query] for query in sorted(found)]


def generated(model, inputs, **settings):
    """The answer by ``generate`` of transformers, and its log-probability."""
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, **settings}
    found = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    answer = found.sequences[0, inputs["input_ids"].shape[1] :]
    logp = torch.cat(found.logits).log_softmax(-1).gather(1, answer[:, None])
    return answer.tolist(), float(logp.sum())


def cut_to(inputs, length):
    """What the processor makes of the first tokens, which show all pictures."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    return {key: value[:, :length] if key in names else value for key, value in inputs.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", [*WITH_VIDEOS, "llava_next"])
def test_greedy_answers_are_those_of_transformers(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor = processor_folder(name, folder)
    model = tiny_model(name, processor)
    model.save_pretrained(folder)
    videos = {"videos": name in WITH_VIDEOS, "frames": 3, "side": SIDES.get(name, 28)}
    rows = prompts(8, tmp_path / "frames", seed=3, **videos)
    assert {len(row.images) for row in rows} >= {0, 1, 2}
    packed(folder, [row.row for row in rows], tmp_path / "ds")
    mine = prompts_of(tmp_path / "ds")
    policy = load_policy(str(folder))
    together = sample_answers(policy, mine, GREEDY, ())
    for row, prompt, (answer,) in zip(rows, mine, together, strict=True):
        inputs = cut_to(by_processor(processor, row, name), len(prompt.batch.input_ids))
        assert torch.equal(inputs["input_ids"], ids_of(prompt))
        tokens, logp = generated(model, inputs)
        assert answer.tokens.tolist() == tokens
        assert answer.finish == "length"
        assert answer.logp == pytest.approx(logp, abs=1e-4)
        stop = tokens[3]
        ((ended,),) = sample_answers(policy, [prompt], GREEDY, {stop})
        assert ended.tokens.tolist() == generated(model, inputs, eos_token_id=stop)[0]
        assert ended.finish == "stop"
    of_pairs = sample_answers(policy, prompts_of(tmp_path / "ds", unit="pair"), GREEDY, ())
    assert tokens_of(of_pairs) == tokens_of(together)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text model, and the prompts of shards for it."""
    folder, shards = text_shards(tmp_path_factory.mktemp("text"), queries=6)
    return load_policy(str(folder)), prompts_of(shards), plain(folder)


def plain(folder):
    """The model as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def ids_of(prompt):
    """int64 [1, T]."""
    return prompt.batch.input_ids[None].long()


def tokens_of(answers):
    return [[answer.tokens.tolist() for answer in samples] for samples in answers]


@torch.no_grad()
def test_greedy_answers_of_a_text_model(text):
    policy, mine, model = text
    answers = sample_answers(policy, mine, GREEDY, ())
    assert len({len(prompt.batch.input_ids) for prompt in mine}) > 1
    for prompt, (answer,) in zip(mine, answers, strict=True):
        ids = ids_of(prompt)
        tokens, _ = generated(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert answer.tokens.tolist() == tokens
        whole = torch.cat([ids, torch.tensor([tokens])], 1)
        logits = model(whole).logits[0, ids.shape[1] - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
        assert answer.logp == pytest.approx(float(logp), abs=1e-4)


@torch.no_grad()
def test_answers_reach_past_a_sliding_window(text, tmp_path):
    layers = ["sliding_attention", "full_attention"]
    settings = TEXT | {"head_dim": 8, "vocab_size": 300, "layer_types": layers}
    torch.manual_seed(0)
    config = Gemma3TextConfig(**settings, sliding_window=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy, model = load_policy(str(tmp_path)), plain(tmp_path)
    (_, some, _) = text
    for prompt in some:
        ids = ids_of(prompt) % 300
        assert ids.shape[1] > 8
        cut = Prompts(dataclasses.replace(prompt.batch, input_ids=ids[0].int()), prompt.keys)
        ((answer,),) = sample_answers(policy, [cut], GREEDY, ())
        tokens, _ = generated(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert answer.tokens.tolist() == tokens


@torch.no_grad()
def test_an_answer_depends_on_seed_query_and_sample_alone(text):
    model, mine, _ = text
    together = tokens_of(sample_answers(model, mine, DRAWN, ()))
    for prompt, expected in zip(mine, together, strict=True):
        assert tokens_of(sample_answers(model, [prompt], DRAWN, ())) == [expected]
    more = DRAWN.model_copy(update={"samples": 5, "max_new_tokens": 11})
    longer = tokens_of(sample_answers(model, mine[::-1], more, ()))[::-1]
    assert [[tokens[:8] for tokens in samples[:3]] for samples in longer] == together
    assert len({tuple(tokens) for samples in together for tokens in samples}) == 18
    other = tokens_of(sample_answers(model, mine, DRAWN.model_copy(update={"seed": 6}), ()))
    assert all(a != b for a, b in zip(other, together, strict=True))


@torch.no_grad()
def test_answers_end_each_at_its_own_stop_token(text):
    model, mine, _ = text
    free = sample_answers(model, mine, DRAWN, ())
    stop = set(range(0, 500, 9))
    finishes = set()
    for samples, found in zip(free, sample_answers(model, mine, DRAWN, stop), strict=True):
        for whole, answer in zip(samples, found, strict=True):
            tokens = whole.tokens.tolist()
            places = [place + 1 for place, token in enumerate(tokens) if token in stop]
            assert answer.tokens.tolist() == tokens[: places[0] if places else len(tokens)]
            assert answer.finish == ("stop" if places else "length")
            finishes.add((answer.finish, len(answer.tokens)))
    assert len(finishes) > 4


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 2.5}, {"top_k": 7}, {"temperature": 0.7, "top_p": 0.8}]
)
def test_tokens_are_drawn_from_the_distribution(text, settings):
    policy, mine, plain_model = text
    logits = plain_model(ids_of(mine[0])).logits[0, -1].double()
    ordered, ids = (logits / settings.get("temperature", 1)).softmax(-1).sort(descending=True)
    kept = ordered.cumsum(-1) - ordered < settings.get("top_p", 1)
    kept[settings.get("top_k") or len(kept) :] = False
    expected = torch.zeros_like(ordered)
    expected[ids[kept]] = ordered[kept] / ordered[kept].sum()
    draws = 20_000
    one_token = SamplingSettings(samples=draws, max_new_tokens=1, **settings)
    (answers,) = sample_answers(policy, mine[:1], one_token, ())
    tokens = torch.tensor([int(answer.tokens[0]) for answer in answers])
    found = tokens.bincount(minlength=len(expected)) / draws
    assert not found[expected == 0].any()
    error = (found - expected) / (expected * (1 - expected) / draws).sqrt().clamp(min=1e-4)
    assert error.abs().max() < 5
    logp = torch.tensor([answer.logp for answer in answers], dtype=torch.float64)
    assert torch.allclose(logp, logits.log_softmax(-1)[tokens], atol=1e-5)


def test_equal_samples_are_refused():
    with pytest.raises(ConfigError, match="temperature 0 gives 8 equal samples"):
        load_config(SamplingSettings, overrides=["temperature=0"])
