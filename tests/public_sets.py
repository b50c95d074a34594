"""Rows as public preference sets have them, by their dataset cards."""

import json

from mmrlhf_engine.sources.preferences.record import Media
from pack_data import picture

CONTENT = picture()
PICTURE = {"bytes": CONTENT, "path": "0.jpg"}
SHOWN = (Media("image", content=CONTENT),)
NAMED = (Media("image", ("a.jpg",)),)


def said(role, text):
    return {"role": role, "content": text}


def rated(**ratings):
    return {name: {"Rating": rating, "Rationale": "So."} for name, rating in ratings.items()}


# name, format, row, what the user says, media, better answer, worse answer, fields not read
SETS = [
    ("RLAIF-V", "columns",
     {"ds_name": "RLAIF-V", "image": PICTURE, "question": "What colour is the cat?",
      "chosen": "The cat is black.", "rejected": "The cat is white.",
      "origin_dataset": "lcs558k", "origin_split": '{"model": "llava"}', "idx": "1",
      "image_path": "lcs/0.jpg"},
     "What colour is the cat?", SHOWN, "The cat is black.", "The cat is white.",
     ["ds_name", "origin_dataset", "origin_split", "idx"]),
    ("RLHF-V", "columns",
     {"ds_name": "RLHF-V", "image": PICTURE, "idx": 0, "image_path": "0.jpg",
      "text": json.dumps({"question": "Who?", "chosen": "Two men.", "rejected": "Ten men."}),
      "origin_dataset": "VQAv2", "origin_split": "train"},
     "Who?", SHOWN, "Two men.", "Ten men.", ["ds_name", "idx", "origin_dataset", "origin_split"]),
    ("MMPR", "columns",
     {"image": "a.jpg", "question": "<image>\nHow many?", "chosen": "3", "rejected": "4"},
     "\nHow many?", NAMED, "3", "4", []),
    ("Alpaca", "columns",
     {"instruction": "Translate.", "input": "hallo", "chosen": "hello", "rejected": "bye"},
     "Translate.\nhallo", (), "hello", "bye", []),
    ("Alpaca, both answers in output", "columns",
     {"instruction": "Translate: hallo", "input": "", "output": ["hello", "bye"]},
     "Translate: hallo", (), "hello", "bye", []),
    ("Alpaca, chosen and rejected beside output", "columns",
     {"instruction": "Translate: hallo", "output": "hi", "chosen": "hello", "rejected": "bye"},
     "Translate: hallo", (), "hello", "bye", ["output"]),
    ("Orca pairs", "columns",
     {"system": "", "question": "Why?", "chosen": "So.", "rejected": "Not so."},
     "Why?", (), "So.", "Not so.", []),
    ("StackExchange", "columns",
     {"qid": 3, "question": "Why?", "date": "2012", "metadata": ["x"], "response_j": "So.",
      "response_k": "Not so."},
     "Why?", (), "So.", "Not so.", ["qid", "date", "metadata"]),
    ("query and response_chosen", "columns",
     {"query": "Why?", "response_chosen": "So.", "response_rejected": "Not so."},
     "Why?", (), "So.", "Not so.", []),
    ("UltraFeedback, binarized", "trl",
     {"prompt": "Why is it so?", "prompt_id": "9f",
      "chosen": [said("user", "Why is it so?"), said("assistant", "So.")],
      "rejected": [said("user", "Why is it so?"), said("assistant", "Not so.")],
      "messages": [said("user", "Why is it so?"), said("assistant", "So.")],
      "score_chosen": 8.5, "score_rejected": 7.0},
     "Why is it so?", (), "So.", "Not so.", ["prompt_id"]),
    ("UltraFeedback", "ranked",
     {"source": "evol_instruct", "instruction": "Why?", "models": ["a", "b"],
      "completions": [
          {"response": "Not so.", "annotations": rated(honesty="1", helpfulness="4"),
           "overall_score": 9.0, "custom_system_prompt": "Be honest.", "model": "a"},
          {"response": "So.", "annotations": rated(honesty="5", helpfulness="4"),
           "overall_score": 7.0}],
      "correct_answers": ["None"], "incorrect_answers": ["None"]},
     "Why?", (), "So.", "Not so.",
     ["source", "models", "correct_answers", "incorrect_answers",
      "completions[].custom_system_prompt", "completions[].model"]),
    ("VLFeedback", "ranked",
     {"id": "svit-1", "prompt": "Why?", "models": ["a", "b"], "image": PICTURE,
      "completions": [
          {"annotations": rated(Helpfulness="4", Ethics="5"), "model": "a", "response": "So."},
          {"annotations": rated(Helpfulness="3", Ethics="5"), "model": "b", "response": "No."}]},
     "Why?", SHOWN, "So.", "No.", ["models", "completions[].model"]),
    ("VLFeedback, as datasets stores it", "ranked",
     {"id": "svit-1", "prompt": "Why?", "models": ["a", "b"], "image": PICTURE,
      "completions": {
          "annotations": [rated(Helpfulness="3", Ethics="5"), rated(Helpfulness="4", Ethics="5")],
          "model": ["a", "b"], "response": ["No.", "So."]}},
     "Why?", SHOWN, "So.", "No.", ["models", "completions[].model"]),
    ("Nectar", "ranked",
     {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "turns": 1, "num_responses": 2,
      "answers": [{"answer": "Not so.", "model": "a", "rank": 2.0},
                  {"answer": "So.", "model": "b", "rank": 1.0}],
      "source": ["lmsys"], "good_natured": True},
     "Why?", (), "So.", "Not so.",
      ["turns", "num_responses", "source", "good_natured", "answers[].model"]),
    ("distilabel", "ranked",
     {"instruction": "Why?", "generations": ["Not so.", "So."], "ratings": [2.0, 4.0]},
     "Why?", (), "So.", "Not so.", []),
    ("PKU-SafeRLHF", "compared",
     {"prompt": "Why?", "response_0": "Not so.", "response_1": "So.", "prompt_source": "x",
      "is_response_0_safe": True, "better_response_id": 1, "safer_response_id": 0},
     "Why?", (), "So.", "Not so.", ["prompt_source", "is_response_0_safe", "safer_response_id"]),
    ("HelpSteer3", "compared",
     {"domain": "general", "language": "english", "context": [said("user", "Why?")],
      "response1": "So.", "response2": "Not so.", "overall_preference": -2,
      "individual_preference": [{"score": -2, "reasoning": "The first.", "feedback": "Good."}]},
     "Why?", (), "So.", "Not so.", ["domain", "language", "individual_preference"]),
    ("SHP", "compared",
     {"post_id": "x", "domain": "askculinary", "history": "Why do we fry?", "labels": 0,
      "human_ref_A": "Not so.", "human_ref_B": "So.", "seconds_difference": 3.0},
     "Why do we fry?", (), "So.", "Not so.", ["post_id", "domain", "seconds_difference"]),
    ("Chatbot Arena", "compared",
     {"question_id": "x", "model_a": "a", "model_b": "b", "winner": "model_b",
      "conversation_a": [said("user", "Why?"), said("assistant", "Not so.")],
      "conversation_b": [said("user", "Why?"), said("assistant", "So.")], "turn": 1},
     "Why?", (), "So.", "Not so.", ["question_id", "model_a", "model_b", "turn"]),
    ("HH-RLHF", "hh_rlhf",
     {"chosen": "\n\nHuman: Why?\n\nAssistant: So.",
      "rejected": "\n\nHuman: Why?\n\nAssistant: Not so."},
     "Why?", (), "So.", "Not so.", []),
    ("Skywork", "trl",
     {"chosen": [said("user", "Why?"), said("assistant", "So.")],
      "rejected": [said("user", "Why?"), said("assistant", "Not so.")], "source": "magpie"},
     "Why?", (), "So.", "Not so.", ["source"]),
    ("orpo-dpo-mix", "trl",
     {"source": "x", "prompt": "Why is it so?", "question": "Why is it so?",
      "chosen": [said("user", "Why is it so?"), said("assistant", "So.")],
      "rejected": [said("user", "Why is it so?"), said("assistant", "Not so.")]},
     "Why is it so?", (), "So.", "Not so.", ["source"]),
    ("POVID", "ms_swift",
     {"id": "1", "image": "a.jpg",
      "conversations": [{"from": "human", "value": "<image>Why?"}, {"from": "gpt", "value": "So."}],
      "rejected_conversations": [{"from": "human", "value": "<image>Why?"},
                                 {"from": "gpt", "value": "Not so."}]},
     "Why?", NAMED, "So.", "Not so.", []),
]  # fmt: skip
