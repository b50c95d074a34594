"""The record of a training run: its file, its trackers, and the line of progress."""

import io
import json
import subprocess
import sys

import pytest

from mmrlhf_engine.errors import ConfigError, CorruptDataError, MissingExtraError
from mmrlhf_engine.run.progress import Progress
from mmrlhf_engine.train.metrics import MetricsWriter, read_metrics, require_trackers
from mmrlhf_engine.train.progress import StepLine, format_duration

SETTINGS = {"beta": 0.1, "data": {"tokens": 64}}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def writer(folder, *, progress=None, **arguments):
    names = {"run_name": "a run", "config": SETTINGS, "command": "mm-dpo"}
    return MetricsWriter(folder, progress=progress or Progress("silent"), **names, **arguments)


def log_steps(folder, first, last, *, loss, **arguments):
    metrics = writer(folder, **arguments)
    for step in range(first, last + 1):
        metrics.log(step, 10, {"loss": loss + step, "seconds": 2.0})
    metrics.close()


def test_a_line_a_step_with_sorted_names_and_no_number_that_json_lacks(tmp_path):
    metrics = writer(tmp_path / "run")
    metrics.log(0, 10, {"eval_loss": 0.7})
    metrics.log(1, 10, {"rewards/margins": float("nan"), "loss": 0.1, "grad_norm": float("inf")})
    # Before it is closed: a run that is killed has what it logged.
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    metrics.close()
    assert text == (
        '{"eval_loss": 0.7, "step": 0}\n'
        '{"grad_norm": null, "loss": 0.1, "rewards/margins": null, "step": 1}\n'
    )
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0] == {"eval_loss": 0.7, "step": 0}


def test_floats_are_read_as_they_were(tmp_path):
    values = {"loss": 0.1 + 0.2, "learning_rate": 1e-6 / 3, "num_pairs": 7}
    metrics = writer(tmp_path)
    metrics.log(1, 1, values)
    metrics.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, **values}]


def test_a_resumed_run_removes_what_was_logged_after_its_checkpoint(tmp_path):
    log_steps(tmp_path, 1, 5, loss=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    log_steps(tmp_path, 4, 6, loss=100, after_step=3)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 1), (2, 2), (3, 3), (4, 104), (5, 105), (6, 106),
    ]  # fmt: skip


def test_a_half_line_is_removed_where_every_step_stays(tmp_path):
    log_steps(tmp_path, 1, 2, loss=0)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"loss": 1.0, "step": 3')
    writer(tmp_path, after_step=2).close()
    assert file.read_text() == whole


def test_a_last_line_that_lacks_only_its_end_of_line_stays(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}')
    log_steps(tmp_path, 3, 3, loss=0, after_step=2)
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]


def test_a_run_that_begins_at_step_0_keeps_nothing(tmp_path):
    metrics = writer(tmp_path)
    metrics.log(0, 10, {"eval_loss": 0.7})
    metrics.close()
    log_steps(tmp_path, 1, 2, loss=0)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_reading_leaves_out_a_half_line_and_needs_no_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_metrics(file) == []
    file.write_bytes(b'{"step": 1}\n{"step": 2, "caf\xc3')
    assert read_metrics(file) == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", '{"loss": 1}', "[]", "3", '{"step": null}', ""])
def test_a_damaged_line_inside_is_an_error_that_names_it(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(CorruptDataError, match="line 2"):
        read_metrics(file)
    with pytest.raises(CorruptDataError, match="line 2"):
        writer(tmp_path, after_step=1)
    assert file.read_text().count("\n") == 3


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    track = ("tensorboard",)
    log_steps(tmp_path, 1, 5, loss=0, track=track)
    log_steps(tmp_path, 4, 6, loss=100, track=track, after_step=3)
    assert scalars(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 104), (5, 105), (6, 106)]
    log_steps(tmp_path, 1, 1, loss=200, track=track)
    assert scalars(tmp_path, "loss") == [(1, 201)]


def test_tensorboard_says_nothing_on_the_terminal(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    program = (
        "import pathlib, sys\n"
        "from mmrlhf_engine.run.progress import Progress\n"
        "from mmrlhf_engine.train.metrics import MetricsWriter\n"
        "metrics = MetricsWriter(pathlib.Path(sys.argv[1]), track=('tensorboard',), run_name='r',\n"
        "    config={}, progress=Progress('silent'), command='sft')\n"
        "metrics.log(1, 1, {'loss': float('nan')})\n"
        "metrics.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = io.StringIO()
    progress = Progress("human", said)
    log_steps(tmp_path, 1, 5, loss=0, track=("wandb",), progress=progress)
    identifier = (tmp_path / "wandb_run_id").read_text().strip()
    log_steps(tmp_path, 4, 6, loss=100, track=("wandb",), progress=progress, after_step=3)
    assert (tmp_path / "wandb_run_id").read_text().strip() == identifier
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    assert len(files) == 2
    assert all(b"loss" in file.read_bytes() for file in files)
    assert str(tmp_path / "wandb") in said.getvalue()
    log_steps(tmp_path, 1, 1, loss=0, track=("wandb",))
    assert (tmp_path / "wandb_run_id").read_text().strip() != identifier


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_known_before_any_file_is_touched(tmp_path, monkeypatch, name, module):
    log_steps(tmp_path / "run", 1, 5, loss=0)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"package {name}[\s\S]*mmrlhf-engine\[track\]"):
        writer(tmp_path / "run", track=(name,), after_step=2)
    with pytest.raises(MissingExtraError):
        writer(tmp_path / "other", track=(name,))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="'mlflow' is unknown"):
        require_trackers(["mlflow"])


STEP = {
    "loss": 0.61234,
    "rewards/margins": 0.3,
    "rewards/accuracies": 0.6875,
    "beta/mean": 0.1125,
    "tokens_per_second": 51234.4,
    "pictures_per_second": 88.04,
    "memory_bytes": 3 * 2**30,
    "seconds": 10.0,
}


def test_the_line_of_a_step_and_of_an_evaluation():
    line = StepLine("mm-dpo")
    assert line.text(1, 61, STEP) == (
        "mm-dpo: step 1 of 61, loss 0.6123, margin 0.3, accuracy 68.8%, beta 0.1125, "
        "51,234 tokens/s, 88.0 pictures/s, 3.0 GiB, 10 min 00 s left"
    )
    assert line.text(1, 61, {"eval_loss": 0.5, "eval_rewards/accuracies": 0.75}) == (
        "mm-dpo: evaluation at step 1, loss 0.5, accuracy 75.0%"
    )


def test_the_line_needs_no_name_at_all():
    assert StepLine("sft").text(3, 5, {"entropy": 2.0}) == "sft: step 3 of 5"


def test_the_time_left_of_a_resumed_run_is_at_the_pace_of_its_own_steps():
    # 100 of 160 steps are done, in no time that this process knows of.
    text = StepLine("mm-dpo").text(101, 161, {"seconds": 60.0})
    assert text == "mm-dpo: step 101 of 161, 1 h 00 min left"


def test_no_time_is_left_after_the_last_step():
    assert StepLine("mm-dpo").text(5, 5, {"seconds": 60.0}) == "mm-dpo: step 5 of 5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (4000, "1 h 06 min"), (90_000, "1 d 01 h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_progress_for_machines_is_an_event_with_all_values(tmp_path):
    said = io.StringIO()
    metrics = writer(tmp_path, progress=Progress("jsonl", said))
    metrics.log(0, 9, {"eval_loss": 0.7})
    metrics.log(9, 9, {"loss": float("nan"), "num_pairs": 3})
    metrics.close()
    events = [json.loads(line) for line in said.getvalue().splitlines()]
    place = {"event": "metrics", "stage": "mm-dpo", "total_steps": 9}
    assert [{key: event[key] for key in event if key != "time"} for event in events] == [
        {**place, "step": 0, "values": {"eval_loss": 0.7}},
        {**place, "step": 9, "values": {"loss": None, "num_pairs": 3}},
    ]


def test_on_a_terminal_the_line_moves_and_the_last_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    said = Terminal()
    metrics = writer(tmp_path, progress=Progress("human", said))
    metrics.log(1, 2, STEP)
    metrics.log(2, 2, {"loss": 0.5})
    metrics.close()
    moving, last = said.getvalue().rsplit("\r\x1b[2K", 1)
    assert moving == "\r\x1b[2K" + "mm-dpo: step 1 of 2, loss 0.6"
    assert last == "mm-dpo: step 2 of 2, loss 0.5\n"


def test_where_there_is_no_terminal_lines_are_some_seconds_apart(tmp_path):
    said = io.StringIO()
    metrics = writer(tmp_path, progress=Progress("human", said))
    for step in range(1, 500):
        metrics.log(step, 500, {"loss": 0.5})
    metrics.log(499, 500, {"eval_loss": 0.25})
    metrics.close()
    lines = said.getvalue().splitlines()
    assert lines[0] == "mm-dpo: step 1 of 500, loss 0.5"
    assert "mm-dpo: evaluation at step 499, loss 0.25" in lines
    assert lines[-1].startswith("mm-dpo: step 499 of 500, loss 0.5")
    assert len(lines) < 100


def test_progress_that_is_silent_says_nothing(tmp_path):
    said = io.StringIO()
    log_steps(tmp_path, 1, 3, loss=0, progress=Progress("silent", said))
    assert said.getvalue() == ""
