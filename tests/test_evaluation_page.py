"""Every example of docs/evaluation.md runs as it stands, but for those that need a model."""

import json
import re
import shlex
from pathlib import Path

from command import engine
from mmrlhf_engine.cli.measure import evaluate

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python|json|text)\n(.*?)^```", PAGE, re.S | re.M)
FILES = (
    *("bench.jsonl", "scores.jsonl", "verdicts.jsonl"),
    *("answers.jsonl", "predictions.jsonl", "before.jsonl"),
)


def commands():
    """The words of each command of the page, after the program's name."""
    for language, block in BLOCKS:
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                yield shlex.split(line)[1:]


def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = [block for language, block in BLOCKS if language == "json"]
    for name, content in zip(FILES, contents, strict=True):
        assert f"`{name}`" in PAGE
        Path(name).write_text(content)
    for words in commands():
        if words[1] == "preferences" or (words[1] == "lmms-eval" and "--dry-run" not in words):
            continue
        done = engine(*words)
        assert done.returncode == 0, done.stderr
    card = json.loads(Path("RUN/scorecard.json").read_text())
    assert set(card) == {"reward_bench", "win_rate", "safety", "vqa"}
    assert card["win_rate"]["both_orders"]["consistency"] == 1
    names = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/evaluation.md", "exec"), names)
    assert names["section"] == card["reward_bench"]


def test_commands_and_options_exist():
    seen = set()
    for words in commands():
        command = evaluate.commands[words[1]]
        known = {text for option in command.params for text in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, words
        seen.add(words[1])
    assert seen == set(evaluate.commands)


def test_fields_that_are_named_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = [block for language, block in BLOCKS if language == "json"]
    for name, content in zip(FILES, contents, strict=True):
        Path(name).write_text(content)
    engine("evaluate", "reward-bench", "bench.jsonl", "--scores", "scores.jsonl", "--out", "RUN")
    card = json.loads(Path("RUN/scorecard.json").read_text())["reward_bench"]
    (listed,) = (block for language, block in BLOCKS if language == "text")
    first, *others = [word.strip(",") for word in re.findall(r"\.[a-z_]+(?:\.[a-z_]+)*", listed)]
    assert first == ".overall.acc"
    assert (
        {name.strip(".") for name in others[:6]}
        == {
            *("acc_interval", "acc_plus", "acc_plus_interval"),
            *("pairs", "queries", "equal_rewards"),
        }
        <= set(card["overall"])
    )
    assert {"longer_answer", "random", "constant"} == set(card["baselines"])
    assert "acc_over_longer_answer_interval" in card["overall"]
