"""What the rows of public preference sets are read as."""

import pytest

from mmrlhf_engine.sources.preferences import detect
from mmrlhf_engine.sources.preferences.record import BadRecordError
from public_sets import SETS, rated


@pytest.mark.parametrize("row", SETS, ids=[row[0] for row in SETS])
def test_a_public_set_is_read_by_its_own_columns(row):
    _, format, record, question, media, better, worse, unread = row
    known = detect([record], "here")
    assert known.name == format
    preference, not_read = known.read(record)
    assert [message.role for message in preference.prompt] == ["user"]
    assert preference.prompt[0].text == question
    assert preference.prompt[0].media == media
    (pair,) = preference.pairs
    answers = [preference.responses[end].messages for end in (pair.chosen, pair.rejected)]
    assert [[message.role for message in answer] for answer in answers] == [["assistant"]] * 2
    assert [answer[0].text for answer in answers] == [better, worse]
    assert sorted(not_read) == sorted(unread)


def test_scores_and_ranks_are_kept():
    records = {row[0]: row[2] for row in SETS}
    binarized = detect([records["UltraFeedback, binarized"]], "here")
    preference, _ = binarized.read(records["UltraFeedback, binarized"])
    assert [response.score for response in preference.responses] == [8.5, 7.0]
    ranked = detect([records["UltraFeedback"]], "here")
    preference, _ = ranked.read(records["UltraFeedback"])
    assert [response.score for response in preference.responses] == [2.5, 4.5]
    assert [response.rank for response in preference.responses] == [2, 1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("HelpSteer3", {"overall_preference": 0}),
        ("HelpSteer2", {"preference_strength": 0}),
        ("Arena, a column for each outcome", {"winner_model_b": 0, "winner_tie": 1}),
        ("Chatbot Arena", {"winner": "tie (bothbad)"}),
        ("distilabel", {"ratings": [3, 3]}),
    ],
)
def test_a_verdict_for_neither_is_a_tie(name, changes):
    record = {**next(row[2] for row in SETS if row[0] == name), **changes}
    preference, _ = detect([record], "here").read(record)
    assert [pair.tie for pair in preference.pairs] == [True]


ARENA = next(row[2] for row in SETS if row[0] == "Arena, a column for each outcome")


def test_turns_of_the_arena_are_a_conversation():
    turns = {
        "prompt": '["Why?", "And this?"]',
        "response_a": '["So.", "No."]',
        "response_b": ["So.", "Yes."],
    }
    preference, _ = detect([ARENA], "here").read({**ARENA, **turns})
    assert [message.text for message in preference.prompt] == ["Why?", "So.", "And this?"]
    assert [response.messages[0].text for response in preference.responses] == ["Yes.", "No."]
    plain = {"prompt": "Why?", "response_a": "a", "response_b": "b"}
    preference, _ = detect([ARENA], "here").read({**ARENA, **plain})
    assert [response.messages[0].text for response in preference.responses] == ["b", "a"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"winner_model_a": 1}, "bad_rank"),
        ({"winner_model_b": 0}, "bad_rank"),
        ({"winner_tie": None}, "missing_key"),
        ({"response_a": '["a", "b"]'}, "wrong_type"),
        ({"response_a": "[null]"}, "wrong_type"),
    ],
)
def test_rows_of_the_arena_that_name_no_winner_or_lack_turns(changes, reason):
    with pytest.raises(BadRecordError) as caught:
        detect([ARENA], "here").read({**ARENA, **changes})
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["Chatbot Arena", "Arena, a column for each outcome"])
def test_a_system_text_beside_whole_conversations_is_not_passed_over(name):
    record = next(row[2] for row in SETS if row[0] == name)
    with pytest.raises(BadRecordError) as caught:
        detect([record], "here").read({**record, "system": "Be short."})
    assert caught.value.reason == "unread_field"


def test_a_question_that_looks_like_a_list_is_text():
    record = next(row[2] for row in SETS if row[0] == "PKU-SafeRLHF")
    preference, _ = detect([record], "here").read({**record, "prompt": '["a"]'})
    assert preference.prompt[0].text == '["a"]'


def test_an_answer_without_a_rating_takes_part_in_no_pair():
    record = {
        "instruction": "Why?",
        "completions": [
            {"response": "a", "annotations": rated(honesty="5")},
            {"response": "b", "annotations": rated(honesty="N/A")},
            {"response": "c", "annotations": rated(honesty="2")},
        ],
    }
    preference, _ = detect([record], "here").read(record)
    assert [(pair.chosen, pair.rejected) for pair in preference.pairs] == [(0, 2)]


def test_a_dialog_has_turns():
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: "
    record = {"chosen": f"{start}So.", "rejected": f"{start}Not so."}
    preference, _ = detect([record], "here").read(record)
    assert [(message.role, message.text) for message in preference.prompt] == [
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Why?"),
    ]
    assert [response.messages[0].text for response in preference.responses] == ["So.", "Not so."]


def test_a_history_comes_before_the_question():
    record = {
        "instruction": "And this?",
        "history": [["What is it?", "A cat."]],
        "system": "Be short.",
        "chosen": "A dog.",
        "rejected": "A cow.",
    }
    preference, unread = detect([record], "here").read(record)
    assert [message.role for message in preference.prompt] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert unread == []
