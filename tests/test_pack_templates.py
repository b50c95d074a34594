"""Templates of released kinds: prompt and answer are the conversation as transformers has it."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

import chat_templates
from command import engine
from mmrlhf_engine.errors import ConfigError
from mmrlhf_engine.models.families.placeholders import IMAGE as IMAGE_MARK
from mmrlhf_engine.models.families.placeholders import PLACEHOLDER_IDS
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pack.chat_template import Conversation
from mmrlhf_engine.pack.tokenize import load_tokenizer
from mmrlhf_engine.sources.preferences.record import BadRecordError, Media, Message
from pack_data import stored, tokenizer_folder, write_lines

SENTINEL = PLACEHOLDER_IDS[IMAGE_MARK]
IMAGE = Media("image", ("a.png",))
# Each with the image mark that it writes, and with the arguments without which it is refused.
TEMPLATES = [
    ("LLAVA_ONEVISION", "<image>", {}),
    ("LLAVA", "<image>", {}),
    ("QWEN2_VL", "<|image_pad|>", {}),
    ("GEMMA3", "<start_of_image>", {}),
    ("INTERNVL", "<IMG_CONTEXT>", {}),
    ("QWEN3", None, {"enable_thinking": False}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def folder_of(name):
        return tokenizer_folder(
            tmp_path_factory.mktemp(name), getattr(chat_templates, name), ["<start_of_image>"]
        )

    return folder_of


def load(folder, mark=None, arguments=None, *, strings="chat"):
    return load_tokenizer(
        str(folder),
        chat_template=None,
        image_mark=mark,
        strings=strings,
        template_args=arguments or {},
    )


def turn(role, *parts, **extras):
    return Message(role, parts, json.dumps(extras) if extras else "")


def as_turns(messages, *, parts):
    """The messages as transformers takes them."""
    turns = []
    for message in messages:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in message.parts
        ]
        turns.append({"role": message.role, "content": content if parts else message.text})
    return turns


@pytest.mark.parametrize(("name", "mark", "arguments"), TEMPLATES)
def test_prompt_and_answer_are_the_conversation_of_transformers(folder, name, mark, arguments):
    place = folder(name)
    tokenizer, reference = load(place, mark, arguments), AutoTokenizer.from_pretrained(place)
    shown = (IMAGE, IMAGE) if mark else ()
    prompt = (
        turn("user", *shown, "What is this?"),
        turn("assistant", "A red apple."),
        turn("user", "And beside it?"),
    )
    answers = ((turn("assistant", "A window."),), (turn("assistant", "Two dogs and one cat."),))
    (done,) = tokenizer.tokenize([Conversation(prompt, answers)])
    for answer, (ids, _) in zip(answers, done.responses, strict=True):
        turns = as_turns((*prompt, *answer), parts=bool(mark))
        whole = reference.apply_chat_template(turns, return_dict=False, **arguments)
        both = np.concatenate([done.prompt, ids])
        image = reference.convert_tokens_to_ids(mark) if mark else -1
        assert np.where(both == SENTINEL, image, both).tolist() == whole
        assert reference.decode(ids).strip().startswith(answer[0].text)
    assert int((done.prompt == SENTINEL).sum()) == len(shown)
    assert tokenizer.opens_as_conversation == (name == "LLAVA_ONEVISION")
    assert tokenizer.tokenised_apart == 0


@pytest.mark.parametrize(("name", "mark", "arguments"), TEMPLATES)
def test_a_prompt_that_ends_in_an_answer_is_continued(folder, name, mark, arguments):
    place = folder(name)
    tokenizer, reference = load(place, mark, arguments), AutoTokenizer.from_pretrained(place)
    prompt = (turn("user", "What is this?"), turn("assistant", "There are two dogs and"))
    (done,) = tokenizer.tokenize([Conversation(prompt, ((turn("assistant", " one cat."),),))])
    joined = (prompt[0], turn("assistant", "There are two dogs and one cat."))
    turns = as_turns(joined, parts=bool(mark))
    whole = reference.apply_chat_template(turns, return_dict=False, **arguments)
    assert [*done.prompt, *done.responses[0][0]] == whole
    assert reference.decode(done.prompt).endswith("There are two dogs and")
    call = turn("assistant", tool_calls=[{"function": {"name": "f", "arguments": {}}}])
    (refused,) = tokenizer.tokenize([Conversation((prompt[0], call), ((prompt[1],),))])
    assert refused.reason == "prompt_ends_in_answer"


def test_a_template_that_needs_an_argument_says_so(folder):
    place = folder("QWEN3")
    with pytest.raises(ConfigError, match="--template-arg enable_thinking=false"):
        load(place)
    tokenizer = load(place, arguments={"enable_thinking": False})
    assert tokenizer.identity["template_args"] == {"enable_thinking": False}
    for unknown in ("enable_thinkin", "tools"):
        with pytest.raises(ConfigError, match=f"--template-arg {unknown}: .* no such argument"):
            load(place, arguments={"enable_thinking": False, unknown: True})


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
ASKED = turn("user", "2 + 2?")


def test_calls_and_reasoning_reach_the_template(folder):
    place = folder("QWEN3")
    tokenizer = load(place, arguments={"enable_thinking": False})
    reference = AutoTokenizer.from_pretrained(place)
    prompt = (ASKED, turn("assistant", tool_calls=[CALL]), turn("tool", "4"))
    answers = (
        (turn("assistant", "It is 4."),),
        (turn("assistant", tool_calls=[CALL]),),
    )
    tools = json.dumps([{"type": "function", "function": {"name": "add"}}])
    (done,) = tokenizer.tokenize([Conversation(prompt, answers, tools=tools)])
    text = reference.decode(done.prompt)
    assert '"name": "add", "arguments": {"a": 2}' in text
    assert '{"type": "function", "function": {"name": "add"}}' in text
    assert "<tool_response>\n4\n" in text
    assert "<tool_call>" in reference.decode(done.responses[1][0])
    reasoned = (turn("assistant", "4", reasoning_content="Two and two."),)
    (done,) = tokenizer.tokenize([Conversation((ASKED,), (reasoned, answers[0]))])
    # The opening says that there is no reasoning, so that an answer with some is another prompt.
    assert done.responses[0].reason == "template_breaks_prompt"
    assert done.responses[1][0].size > 2


@pytest.mark.parametrize(
    ("prompt", "answer", "tools", "field"),
    [
        ((ASKED,), turn("assistant", "4", tool_calls=[CALL]), "", "tool_calls"),
        ((ASKED,), turn("assistant", "4", reasoning_content="So."), "", "reasoning_content"),
        ((turn("user", "2 + 2?", name="Ann"),), turn("assistant", "4"), "", "name"),
        ((ASKED,), turn("assistant", "4"), "[{}]", "tools"),
    ],
)
def test_what_the_template_makes_no_use_of_is_refused(folder, prompt, answer, tools, field):
    tokenizer = load(folder("QWEN2_VL"))
    (done,) = tokenizer.tokenize([Conversation(prompt, ((answer,),), tools=tools)])
    refused = done if isinstance(done, BadRecordError) else done.responses[0]
    assert refused.reason == "template_drops_field"
    assert f"no use of '{field}'" in refused.detail


def test_marks_of_a_template_in_a_text_are_refused(folder):
    place = folder("QWEN2_VL")
    rendered = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    bare = Conversation((turn("string", rendered),), ((turn("string", "So.<|im_end|>"),),))
    (refused,) = load(place).tokenize([bare])
    assert refused.reason == "template_mark_in_text"
    assert "--strings plain" in refused.detail
    # The template of another model, whose marks this tokenizer does not have.
    other = Conversation((turn("string", "[INST] Why? [/INST]"),), ((turn("string", "So."),),))
    assert load(place).tokenize([other])[0].reason == "template_mark_in_text"
    spoken = Conversation((turn("user", "What does [INST] mean?"),), ((turn("assistant", "x"),),))
    assert not isinstance(load(place).tokenize([spoken])[0], BadRecordError)
    marked = Conversation((turn("user", "Why?"),), ((turn("assistant", "So.<|im_end|>"),),))
    assert load(place).tokenize([marked])[0].responses[0].reason == "template_mark_in_text"
    (plain,) = load(place, strings="plain").tokenize([bare])
    decoded = AutoTokenizer.from_pretrained(place).decode(plain.prompt)
    assert decoded == rendered


def test_the_arguments_come_from_the_command_line_and_are_recorded(folder, tmp_path):
    place = folder("QWEN3")
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    arguments = ("pack", source, "--out", tmp_path / "ds", "--tokenizer", place)
    done = engine(*arguments)
    assert (done.returncode, "enable_thinking=false" in done.stderr) == (2, True)
    done = engine(*arguments, "--template-arg", "enable_thinking")
    assert (done.returncode, "expected NAME=VALUE" in done.stderr) == (2, True)
    done = engine(*arguments, "--template-arg", "enable_thinking=false")
    assert done.returncode == 0, done.stderr
    (pair,) = stored(tmp_path / "ds")
    assert pair["query"]["prompt_text"].endswith("<think>\n\n</think>\n\n")
    config = pack.PackConfig(
        sources=[str(source)],
        tokenizer=str(place),
        template_args={"enable_thinking": False},
    )
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["tokenizer"]["template_args"] == {"enable_thinking": False}


def test_the_report_says_how_answers_are_opened(folder, tmp_path):
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    config = pack.PackConfig(sources=[str(source)], tokenizer=str(folder("LLAVA_ONEVISION")))
    report = pack.pack_dataset(config, tmp_path / "ds")
    assert report["opens_as_conversation"] is True
    assert "opened as in a conversation" in pack.describe(report, tmp_path / "ds")
    (pair,) = stored(tmp_path / "ds")
    assert pair["query"]["prompt_text"].endswith("<|im_start|>assistant \n")
