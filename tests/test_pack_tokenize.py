"""Tokenising: prompt and response add up to the conversation; TRL's own ids for text; images."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.placeholders import IMAGE as IMAGE_MARK
from mmrlhf_engine.models.families.placeholders import PLACEHOLDER_IDS
from mmrlhf_engine.pack.chat_template import Conversation, Texts
from mmrlhf_engine.pack.tokenize import load_tokenizer
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Message
from pack_data import CHATML, TEXTS, tokenizer_folder, words

SENTINEL = PLACEHOLDER_IDS[IMAGE_MARK]
QWEN = "<|image_pad|>"
IMAGE = Media("image", ("a.png",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


def load(folder, mark=QWEN, *, chat_template=None, strings="chat"):
    return load_tokenizer(
        str(folder), chat_template=chat_template, image_mark=mark, strings=strings
    )


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load(folder)


def chat(prompt, *answers):
    responses = tuple((Message("assistant", (answer,)),) for answer in answers)
    return Conversation((Message("user", (prompt,)),), responses)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(min_size=1).filter(lambda text: "<" not in text),
    answer=st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text),
)
def test_prompt_and_response_are_the_whole_conversation(tokenizer, reference, prompt, answer):
    apart = tokenizer.tokenised_apart
    (done,) = tokenizer.tokenize([chat(prompt, answer)])
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    whole = reference.apply_chat_template(turns, return_dict=False)
    opening = reference.apply_chat_template(
        turns[:1], add_generation_prompt=True, return_dict=False
    )
    assert done.prompt.tolist() == opening
    both = [*done.prompt.tolist(), *done.responses[0][0].tolist()]
    # A token may span the seam where an answer begins with white space; then the ids differ, but
    # the text does not.
    if tokenizer.tokenised_apart == apart:
        assert both == whole
    else:
        assert answer[0].isspace()
        assert reference.decode(both) == reference.decode(whole)


KINDS = {
    "byte level": (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "prefix space": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace always": (None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace first": (None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "prepended": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
    ),
    "composed": (normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
}


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request, tmp_path_factory):
    """A tokenizer of a kind, whose opening of an answer takes white space around it."""
    normalizer, pre_tokenizer = KINDS[request.param]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<|im_start|>", "<|im_end|>", QWEN],
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, "assistant\nuser\n"], trainer)
    strips = AddedToken("<|answer|>", lstrip=True, rstrip=True, special=True, normalized=False)
    backend.add_special_tokens([strips])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    fast.chat_template = CHATML
    folder = tmp_path_factory.mktemp("kind")
    fast.save_pretrained(folder)
    return load(folder, None)


@settings(max_examples=40)
@given(
    prompt=st.text(min_size=1),
    answers=st.lists(st.text("ab .\n\té́▁<|>", min_size=1), min_size=1, max_size=3),
    between=st.sampled_from(["", " <|answer|> ", "<|im_end|>", "<|answer|>"]),
)
def test_a_prompt_that_is_tokenised_once_changes_no_id(of_kind, prompt, answers, between):
    opened = prompt + between
    whole = [opened + answer for answer in answers]
    text = Texts(opened, [], [(one, []) for one in whole], plain=False)
    of_kind._template = SimpleNamespace(render=lambda _: text)
    apart = of_kind.tokenised_apart
    (done,) = of_kind.tokenize([None])
    assert len(done.responses) == len(answers)
    first = of_kind.encode([opened])[0]
    expected = []
    for one, answer in zip(whole, answers, strict=True):
        both = of_kind.encode([one])[0]
        adds_up = both[: len(first)] == first
        apart += not adds_up
        expected.append(both[len(first) :] if adds_up else of_kind.encode([answer])[0])
    assert [tokens.tolist() for tokens, _ in done.responses] == expected
    assert of_kind.tokenised_apart == apart


def test_an_image_is_one_sentinel_where_the_template_has_it(tokenizer, reference):
    prompt = (
        Message("system", ("Be short.",)),
        Message("user", (IMAGE, "and", IMAGE, "What?")),
    )
    answer = (Message("assistant", ("Two.",)),)
    (done,) = tokenizer.tokenize([Conversation(prompt, (answer,))])
    image = reference.convert_tokens_to_ids("<|image_pad|>")
    turns = [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "and"},
                {"type": "image"},
                {"type": "text", "text": "What?"},
            ],
        },
    ]
    expected = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert done.prompt.dtype == np.uint32
    assert int((done.prompt == SENTINEL).sum()) == 2
    assert np.where(done.prompt == SENTINEL, image, done.prompt).tolist() == expected


@pytest.mark.parametrize("mark", [None, "<IMG_CONTEXT>"])
def test_a_template_without_images_gets_them_as_text(tmp_path, mark):
    text_only = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = load(tokenizer_folder(tmp_path, text_only), mark)
    conversation = Conversation(
        (Message("user", (IMAGE, "What?")),), ((Message("assistant", ("A cat",)),),)
    )
    (done,) = tokenizer.tokenize([conversation])
    at = int(np.flatnonzero(done.prompt == SENTINEL)[0])
    before, after = tokenizer.encode(["user: ", "\nWhat?\nassistant: "])
    assert done.prompt[:at].tolist() == before
    assert done.prompt[at + 1 :].tolist() == after


def test_a_response_may_be_several_turns(tokenizer, reference):
    turns_given = [("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")]
    answer = tuple(Message(role, (text,)) for role, text in turns_given)
    (done,) = tokenizer.tokenize([Conversation((Message("user", ("What?",)),), (answer,))])
    turns = [{"role": role, "content": text} for role, text in [("user", "What?"), *turns_given]]
    whole = reference.apply_chat_template(turns, return_dict=False)
    assert [*done.prompt, *done.responses[0][0]] == whole


def test_a_mark_in_the_text_is_refused(tokenizer):
    for text in ("Look: <|image_pad|>", "<|mmrlhf:image|>"):
        (bad,) = tokenizer.tokenize([chat(text, "x")])
        assert isinstance(bad, BadRecordError)
        assert bad.reason == "image_mark_in_text"
    (done,) = tokenizer.tokenize([chat("What?", "a <|image_pad|>", "b")])
    assert isinstance(done.responses[0], BadRecordError)
    assert done.responses[1][0].size > 1


def test_trl_gives_the_same_ids_for_text(folder, tokenizer, reference):
    Dataset = pytest.importorskip("datasets", reason="datasets is not installed").Dataset
    pytest.importorskip("trl", reason="trl is not installed")
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": words(3 * n)}],
            "chosen": [{"role": "assistant", "content": words(3 * n + 1)}],
            "rejected": [{"role": "assistant", "content": words(3 * n + 2)}],
        }
        for n in range(20)
    ]

    class Settings:
        dataset_num_proc = None
        max_length = None

    class Trainer(DPOTrainer):
        def __init__(self):
            self._tokenizer = reference

    dataset = Trainer()._prepare_dataset(Dataset.from_list(rows), reference, Settings(), "test")
    conversations = [
        chat(*(row[key][0]["content"] for key in ("prompt", "chosen", "rejected"))) for row in rows
    ]
    for theirs, ours in zip(dataset, tokenizer.tokenize(conversations), strict=True):
        assert theirs["prompt_ids"] == ours.prompt.tolist()
        assert theirs["chosen_ids"] == ours.responses[0][0].tolist()
        assert theirs["rejected_ids"] == ours.responses[1][0].tolist()


def test_plain_text_is_a_turn_or_kept_as_it_is(folder, tokenizer, reference):
    conversation = Conversation(
        (Message("string", ("Q: sky? A:",)),), ((Message("string", (" blue",)),),)
    )
    (as_turns,) = tokenizer.tokenize([conversation])
    (same,) = tokenizer.tokenize([chat("Q: sky? A:", " blue")])
    assert np.array_equal(as_turns.prompt, same.prompt)
    plain = load(folder, None, strings="plain")
    (done,) = plain.tokenize([conversation])
    assert [*done.prompt, *done.responses[0][0]] == reference(
        "Q: sky? A: blue<|endoftext|>"
    ).input_ids


def test_identity_names_tokenizer_and_template(folder, tokenizer, tmp_path):
    identity = tokenizer.identity
    assert identity["name"] == folder.name
    assert identity["vocabulary"] == len(AutoTokenizer.from_pretrained(folder))
    assert len(identity["sha256"]) == len(identity["chat_template_sha256"]) == 64
    other = tmp_path / "other.jinja"
    other.write_text(CHATML + "{# another #}")
    changed = load(folder, chat_template=str(other)).identity
    assert changed["sha256"] == identity["sha256"]
    assert changed["chat_template_sha256"] != identity["chat_template_sha256"]


# The generation prompt differs from how this conversation continues.
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
REFUSING = "{{ raise_exception('never') }}"


@pytest.mark.parametrize(
    ("template", "mark", "message"),
    [
        (THINKING, QWEN, r"the prompt ends .*<think>.*, the conversation has"),
        (REFUSING, QWEN, "renders neither text nor content parts"),
        (None, QWEN, "it has no chat template"),
        (CHATML, "<|none|>", "no token of it"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_clear_error(tmp_path, template, mark, message):
    with pytest.raises(ConfigError, match=message):
        load(tokenizer_folder(tmp_path, template), mark)


def test_the_tokenizer_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)
