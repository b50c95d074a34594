"""The formats of preference data: what each row means, told apart by content."""

import base64
from contextlib import suppress
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.errors import InputError
from mmrlhf_engine.sources.preferences import FORMATS, detect
from mmrlhf_engine.sources.preferences.judgements import ranks_of_text
from mmrlhf_engine.sources.preferences.record import (
    BadRecordError,
    Media,
    Message,
    Pair,
    pairs_of_ranks,
)
from pack_data import picture
from public_sets import SETS

CAT = Media("image", ("cat.png",))
DOG = Media("image", ("dog.png",))


def turn(role, *parts):
    return Message(role, parts)


ASKED = turn("user", CAT, "What is this?")
YES, NO = turn("assistant", "A cat."), turn("assistant", "A dog.")

# One preference in the spelling of every format.
SPELLINGS = [
    (
        "mm_rlhf_pairs",
        {"image": "cat.png", "prompt": "<image>\nWhat is this?", "chosen": "A cat.",
         "rejected": "A dog."},
    ),
    (
        "trl",
        {"images": ["cat.png"], "prompt": [{"role": "user", "content": "What is this?"}],
         "chosen": [{"role": "assistant", "content": "A cat."}],
         "rejected": [{"role": "assistant", "content": "A dog."}]},
    ),
    (
        "trl",
        {"images": [{"bytes": None, "path": "cat.png"}],
         "prompt": [{"role": "user", "content": [{"type": "image", "text": None},
                                                 {"type": "text", "text": "What is this?"}]}],
         "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
         "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A "},
                                                        {"type": "text", "text": "dog."}]}]},
    ),
    (
        "trl",
        {"image": "cat.png",
         "chosen": [{"role": "user", "content": "What is this?"},
                    {"role": "assistant", "content": "A cat."}],
         "rejected": [{"role": "user", "content": "What is this?"},
                      {"role": "assistant", "content": "A dog."}]},
    ),
    (
        "ms_swift",
        {"messages": [{"role": "user", "content": "<image>What is this?"},
                      {"role": "assistant", "content": "A cat."}],
         "rejected_response": "A dog.", "images": ["cat.png"]},
    ),
    (
        "ms_swift",
        {"query": "What is this?", "response": "A cat.", "rejected_response": "A dog.",
         "images": ["cat.png"], "rejected_images": ["cat.png"]},
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "<image>What is this?"}],
         "chosen": {"from": "gpt", "value": "A cat."},
         "rejected": {"from": "gpt", "value": "A dog."}, "images": ["cat.png"]},
    ),
    (
        "sharegpt",
        {"messages": [{"role": "user", "content": "What is this?"}],
         "chosen": {"role": "assistant", "content": "A cat."},
         "rejected": {"role": "assistant", "content": "A dog."}, "images": "cat.png"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record"), SPELLINGS)
def test_every_spelling_means_the_same(name, record):
    format = detect([record], "here")
    assert format.name == name
    preference, unread = format.read(record)
    assert unread == []
    assert preference.prompt == (ASKED,)
    assert [response.messages for response in preference.responses] == [(YES,), (NO,)]
    assert preference.pairs == (Pair(0, 1),)


def test_the_first_rows_decide_by_majority():
    odd = {"messages": [], "rejected_response": "x"}
    rows = [odd, *(record for name, record in SPELLINGS if name == "trl"), BadRecordError("a", "b")]
    assert detect(rows, "here").name == "trl"
    with pytest.raises(InputError, match=r"here: no format .* keys found: answer, question"):
        detect([{"question": 1, "answer": 2}], "here")


def test_mm_rlhf_keeps_what_annotators_said():
    record = {
        "id": "x", "video": "video/a", "prompt": "<video>\nWhat happens?", "chosen": "A goal.",
        "rejected": "Rain.", "chosen_reason": "Right.", "rejected_reason": " ", "is_tie": True,
        "margin": 0.5, "weight": 2,
    }  # fmt: skip
    preference = FORMATS["mm_rlhf_pairs"].parse(record)
    assert preference.prompt == (turn("user", Media("video", ("video/a",)), "What happens?"),)
    assert [response.critique for response in preference.responses] == ["Right.", None]
    assert preference.pairs == (Pair(0, 1, tie=True, margin=0.5, weight=2.0),)


MARKED = [
    ({"image": "cat.png"}, "Is <image> a cat now?", ("Is ", CAT, " a cat now?")),
    ({"image": ["cat.png", "dog.png"]}, "Compare <image> with <image> now",
     ("Compare ", CAT, " with ", DOG, " now")),
    ({"image": ["cat.png", "dog.png"]}, "<image>a<image>b", (CAT, "a", DOG, "b")),
    ({"image": "cat.png", "video": "v.mp4"}, "See <video> or <image>",
     ("See ", Media("video", ("v.mp4",)), " or ", CAT)),
    ({"image": "cat.png"}, "What is  this?", (CAT, "What is  this?")),
]  # fmt: skip


@pytest.mark.parametrize("name", ["mm_rlhf_pairs", "trl"])
@pytest.mark.parametrize(("media", "prompt", "parts"), MARKED)
def test_marks_in_running_text_are_places_of_pictures(name, media, prompt, parts):
    record = {**media, "prompt": prompt, "chosen": "A cat.", "rejected": "A dog."}
    preference = FORMATS[name].parse(record)
    assert preference.prompt[0].parts == parts


@pytest.mark.parametrize(
    ("media", "prompt", "parts"),
    [
        ({"image": "cat.png"}, "<image>\nWhat is this?", ASKED.parts),
        ({"image": "cat.png"}, "What is\nthis?\n<image>", (CAT, "What is\nthis?")),
        ({"image": ["cat.png", "dog.png"]}, "<image>\n<image>\nSame?", (CAT, DOG, "Same?")),
        ({"image": ["cat.png", "dog.png"]}, "<image>\nSame as\n<image>",
         (CAT, "Same as\n", DOG)),
        ({"video": "v.mp4"}, "<image>\nWho wins?", (Media("video", ("v.mp4",)), "Who wins?")),
    ],
)  # fmt: skip
def test_mm_rlhf_has_line_breaks_between_marks_and_text(media, prompt, parts):
    record = {**media, "prompt": prompt, "chosen": "A cat.", "rejected": "A dog."}
    assert FORMATS["mm_rlhf_pairs"].parse(record).prompt[0].parts == parts


def test_the_same_answer_is_rejected_with_other_pictures():
    for kind, field in (("image", "images"), ("video", "videos")):
        _, record = spelling("ms_swift", rejected_response=..., images=...)
        record["messages"] = [
            {"role": "user", "content": f"<{kind}>What?"},
            *record["messages"][1:],
        ]
        record |= {field: ["a"], f"rejected_{field}": ["b"]}
        format = detect([record], "here")
        assert format.name == "ms_swift"
        preference, unread = format.read(record)
        assert unread == []
        assert [response.messages for response in preference.responses] == [(YES,), (YES,)]
        instead = [response.instead for response in preference.responses]
        assert instead == [(), (Media(kind, ("b",)),)]
        assert preference.pairs == (Pair(0, 1),)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mm_rlhf_pairs", {"chosen": None}, "'chosen' is null, expected a value"),
        ("trl", {"chosen": [{"role": "assistant", "content": None}]}, "is null, expected text"),
        ("mm_rlhf_queries", {"question": "x", "models_output": ["a", {"text": "b"}]},
         r"'models_output\[1\]' is dict, expected text"),
    ],
)  # fmt: skip
def test_messages_say_what_was_found(name, changes, message):
    record = changes if name == "mm_rlhf_queries" else spelling(name, **changes)[1]
    with pytest.raises(BadRecordError, match=message):
        FORMATS[name].parse(record)


def test_a_query_row_stands_for_every_pair_of_differing_ranks():
    record = {
        "image": "cat.png", "question": "What is this?", "models_output": ["a", "b", "c", "d"],
        "rank": [2, 1, 2, 3], "helpfulness": [4, 5, 4, 1], "faithfulness": [4, 5, 3, 1],
        "ethical": [4, 5, 5, None], "reason": ["ok", "good", "", "bad"],
    }  # fmt: skip
    format = detect([record], "here")
    preference = format.parse(record)
    assert format.name == "mm_rlhf_queries"
    pairs = {(pair.chosen, pair.rejected, pair.tie) for pair in preference.pairs}
    assert pairs == {
        (1, 0, False), (1, 2, False), (1, 3, False), (0, 3, False), (2, 3, False), (0, 2, True),
    }  # fmt: skip
    assert [response.score for response in preference.responses] == [4.0, 5.0, 4.0, None]
    assert [response.critique for response in preference.responses] == ["ok", "good", None, "bad"]


@given(st.lists(st.none() | st.integers(-5, 5), max_size=9))
def test_ranks_give_each_pair_exactly_once(ranks):
    pairs = pairs_of_ranks(ranks)
    ranked = [number for number, rank in enumerate(ranks) if rank is not None]
    together = [frozenset((pair.chosen, pair.rejected)) for pair in pairs]
    assert sorted(map(sorted, together)) == [list(two) for two in combinations(ranked, 2)]
    for pair in pairs:
        assert pair.tie == (ranks[pair.chosen] == ranks[pair.rejected])
        assert pair.tie or ranks[pair.chosen] < ranks[pair.rejected]


def test_a_ranking_may_be_one_text():
    assert ranks_of_text("[1>2=3>4]") == [1, 2, 2, 3]
    assert ranks_of_text("3>1>2") == [2, 3, 1]
    for text in ("1>3", "1>1", "", "1>x", "1>2=2"):
        with pytest.raises(BadRecordError, match="expected a form"):
            ranks_of_text(text)


def test_bare_texts_may_share_their_prompt():
    record = {"chosen": "Say a word: yes", "rejected": "Say a word: yours"}
    preference = FORMATS["trl"].parse(record)
    assert preference.prompt == (turn("string", "Say a word: "),)
    assert [response.messages[0].text for response in preference.responses] == ["yes", "yours"]


def test_several_images_go_to_their_tags():
    record = {
        "messages": [
            {"role": "user", "content": "First <image> then <image>?"},
            {"role": "assistant", "content": "Like <image>."},
        ],
        "rejected_response": "Like <image>.",
        "images": ["cat.png", "dog.png", "cat.png"],
        "rejected_images": ["cat.png", "dog.png", "dog.png"],
    }
    preference = FORMATS["ms_swift"].parse(record)
    assert preference.prompt == (turn("user", "First ", CAT, " then ", DOG, "?"),)
    shown = [response.messages[0].media for response in preference.responses]
    assert shown == [(CAT,), (DOG,)]


def test_the_rejected_side_may_see_another_image():
    _, record = spelling("ms_swift", rejected_images=["dog.png"])
    preference = FORMATS["ms_swift"].parse(record)
    assert preference.prompt == (ASKED,)
    assert [response.instead for response in preference.responses] == [(), (DOG,)]


def test_media_come_as_bytes_and_as_data_addresses():
    content = picture()
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    for image in (content, address, {"bytes": content, "path": "x"}, {"url": address}):
        record = {"images": [image], "prompt": "What?", "chosen": "a", "rejected": "b"}
        preference = FORMATS["trl"].parse(record)
        assert preference.prompt[0].media == (Media("image", content=content),)
    record = {
        "messages": [
            {"role": "user", "content": "<video>Go?"},
            {"role": "assistant", "content": "a"},
        ],
        "rejected_response": "b",
        "videos": [["f1.png", "f2.png"]],
    }
    preference = FORMATS["ms_swift"].parse(record)
    assert preference.prompt[0].media == (Media("video", ("f1.png", "f2.png")),)


NAMES = (
    *("role", "content", "from", "value", "type", "text", "image", "bytes"),
    *("tool_calls", "name", "reasoning_content", "annotations", "Rating", "response"),
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=3,
        )
    ),
    max_leaves=9,
)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_no_record_is_a_traceback(name, data):
    format = FORMATS[name]
    whole = [record for known, record in SPELLINGS if known == name]
    whole += [row[2] for row in SETS if row[1] == name]
    whole += [{"question": "x", "models_output": ["a", "b"], "rank": [1, 2]}]
    record = dict(data.draw(st.sampled_from(whole)))
    keys = st.sampled_from(sorted({*format.fields, *record, "options", "image_2", "note"}))
    for key in data.draw(st.sets(keys, max_size=3)):
        record[key] = data.draw(ANYTHING)
    assert format.matches(record) in (True, False)
    with suppress(BadRecordError):
        preference, _ = format.read(record)
        assert preference.prompt
        assert all(response.messages for response in preference.responses)


def spelling(name, **changes):
    record = next(record for known, record in SPELLINGS if known == name)
    changed = {**record, **changes}
    return name, {key: value for key, value in changed.items() if value is not ...}


BAD = [
    (*spelling("mm_rlhf_pairs", chosen=...), "missing_key"),
    (*spelling("mm_rlhf_pairs", chosen=" "), "empty_chosen"),
    (*spelling("mm_rlhf_pairs", rejected=3), "wrong_type"),
    (*spelling("mm_rlhf_pairs", prompt=""), "empty_prompt"),
    (*spelling("mm_rlhf_pairs", margin="high"), "wrong_type"),
    (*spelling("mm_rlhf_pairs", weight=-1), "wrong_type"),
    (*spelling("mm_rlhf_pairs", image=7), "wrong_type"),
    (*spelling("mm_rlhf_pairs", prompt="<image> or <image>?"), "media_count"),
    (*spelling("mm_rlhf_pairs", image=...), "media_count"),
    (*spelling("mm_rlhf_pairs", image=["cat.png", "dog.png"]), "media_count"),
    (*spelling("trl", prompt=[{"role": "owner", "content": "x"}]), "unknown_role"),
    (*spelling("trl", prompt=[]), "empty_prompt"),
    (*spelling("trl", chosen=[{"role": "assistant", "content": ""}]), "empty_chosen"),
    (*spelling("trl", chosen=[{"role": "assistant"}]), "wrong_type"),
    (
        "trl",
        {
            "prompt": True,
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        },
        "wrong_type",
    ),
    (*spelling("trl", prompt=[{"role": "user", "content": [{"type": "audio"}]}]), "wrong_type"),
    (*spelling("trl", prompt=..., rejected=[{"role": "assistant", "content": "A cat."}]),
     "chosen_is_rejected"),
    (*spelling("trl", images=["data:image/png;base64,@@"]), "unreadable_media"),
    (*spelling("ms_swift", images=["cat.png", "dog.png"]), "media_count"),
    (*spelling("ms_swift", images=[]), "media_count"),
    (*spelling("ms_swift", rejected_images=["cat.png", "dog.png"]), "media_count"),
    (*spelling("ms_swift", rejected_response=..., rejected_messages=[
        {"role": "user", "content": "<image>Who is this?"}, {"role": "assistant", "content": "x"},
    ]), "prompts_differ"),
    (*spelling("ms_swift", rejected_response=""), "empty_rejected"),
    (*spelling("ms_swift", rejected_response=..., rejected_images=[]), "missing_key"),
    (*spelling("ms_swift", messages=[{"role": "user", "content": "x"}]), "empty_chosen"),
    (*spelling("sharegpt", chosen={"from": "human", "value": "x"}), "unknown_role"),
    (*spelling("sharegpt", rejected={"from": "gpt", "value": ""}), "empty_rejected"),
    (*spelling("sharegpt", conversations=[{"from": "owner", "value": "x"}]), "unknown_role"),
    ("mm_rlhf_queries", {"question": "x", "models_output": ["a", "b"]}, "missing_key"),
    ("mm_rlhf_queries", {"question": "x", "models_output": ["a", ""], "rank": [1, 2]},
     "empty_response"),
    ("mm_rlhf_queries", {"question": "x", "models_output": ["a", "b"], "rank": [1]}, "bad_rank"),
    ("mm_rlhf_queries", {"question": "x", "models_output": ["a", "b"], "rank": [1, 1.5]},
     "bad_rank"),
    ("mm_rlhf_queries",
     {"question": "x", "models_output": ["a", "b"], "rank": [1, 2], "reason": ["r"]},
     "wrong_length"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record", "reason"), BAD)
def test_what_cannot_be_used_is_named(name, record, reason):
    with pytest.raises(BadRecordError) as caught:
        FORMATS[name].parse(record)
    assert caught.value.reason == reason
    assert caught.value.detail
