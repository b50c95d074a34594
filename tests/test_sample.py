"""The command ``sample``: its table, its subset of queries, its ends of answers, interruptions."""

import json
import shutil

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from command import engine
from mmrlhf_engine import open_dataset, run_reference
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.run.command import run_command
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.train import finished_parts, sample
from model_families import processor_folder, prompts
from test_families import packed
from tiny_models import tiny_model
from train_data import pack_rows, text_model, text_shards
from train_pictures import picture_shards

SMALL = {"samples": 3, "max_new_tokens": 12, "batch": 2, "threads": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A text model, shards for it of 40 queries, and all answers."""
    folder = tmp_path_factory.mktemp("sample")
    model, shards = text_shards(folder, queries=40)
    report, table = sampled(shards, model, folder / "run")
    return model, shards, report, table


def sampled(shards, model, out, **settings):
    """The report and the table of a run."""
    given = {**SMALL, **settings, "shards": str(shards), "model": str(model)}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    config = load_config(sample.SampleConfig, overrides=overrides)
    report = run_command(sample.STAGE, config, out)
    return report, pl.read_parquet(out / "extra" / "sample" / "responses" / "*.parquet")


def test_every_query_has_its_answers(prepared):
    folder, shards, report, table = prepared
    queries = open_dataset(shards).queries.collect()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert dict(table.schema) == sample.RESPONSES
    assert table["query"].to_list() == [row for row in range(40) for _ in range(3)]
    assert table["sample"].to_list() == [0, 1, 2] * 40
    assert table["key"].n_unique() == 40
    for row in table.iter_rows(named=True):
        query, tokens = queries.row(row["query"], named=True), row["tokens"]
        assert (row["prompt"], row["source"]) == (query["prompt_text"], query["source"])
        assert row["key"] == query["qid"].hex()
        assert row["n_tok"] == len(tokens)
        assert (row["finish"] == "stop") == (tokens[-1] == end)
        assert row["finish"] == "stop" or len(tokens) == 12
        assert end not in tokens[:-1]
        bare = tokens[:-1] if row["finish"] == "stop" else tokens
        assert row["text"] == tokenizer.decode(bare)
        with torch.no_grad():
            ids = torch.tensor([query["prompt"] + tokens])
            logp = model(ids).logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
        logp = logp.gather(1, torch.tensor(tokens)[:, None]).sum()
        assert row["logp"] == pytest.approx(float(logp), abs=1e-3)
    assert report["finish"] == dict(sorted(table["finish"].value_counts().iter_rows()))
    assert len(report["finish"]) == 2
    assert (report["rows_in"], report["rows_out"], report["responses"]) == (40, 40, 120)
    assert (report["stop_tokens"], report["closing"]) == ([end], "<|im_end|>\n")
    assert (report["samples"], report["temperature"], report["top_p"]) == (3, 1.0, 1.0)


def test_batch_and_threads_change_nothing(prepared, tmp_path):
    model, shards, _, table = prepared
    _, alone = sampled(shards, model, tmp_path, batch=1, threads=3)
    close = pl.col("logp").round(3)
    assert alone.with_columns(close).equals(table.with_columns(close))


def test_a_subset_is_random_and_answered_the_same(prepared, tmp_path):
    model, shards, _, table = prepared
    report, few = sampled(shards, model, tmp_path / "a", queries=7, samples=2)
    chosen = few["query"].unique(maintain_order=True).to_list()
    assert len(chosen) == 7
    assert chosen != list(range(7))
    known = table.filter(pl.col("query").is_in(chosen), pl.col("sample") < 2)
    assert few.drop("logp").equals(known.drop("logp"))
    assert report["dropped"]["not_chosen"] == 33
    _, other = sampled(shards, model, tmp_path / "b", queries=7, samples=2, seed=1)
    assert other["query"].to_list() != few["query"].to_list()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("name", ["sample_answers", "write_atomically", "_with_queries"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(name, prepared, tmp_path, monkeypatch):
    model, shards, _, table = prepared
    module = finished_parts if name == "write_atomically" else sample
    untouched, calls, kills = getattr(module, name), 0, 0

    def killed(*arguments):
        nonlocal calls
        calls += 1
        if calls % 9 == 0 or name != "sample_answers":
            raise Killed
        return untouched(*arguments)

    for fails in (True, True, False):
        monkeypatch.setattr(module, name, killed if fails else untouched)
        answered = _counted(sample, "sample_answers", monkeypatch) if not fails else [0]
        try:
            sampled(shards, model, tmp_path)
        except Killed:
            kills += 1
    assert kills == 2
    # A part has 8 groups of two queries, and there are 20 groups.
    assert answered[0] == {"sample_answers": 4, "write_atomically": 20, "_with_queries": 0}[name]
    files = sorted((tmp_path / "extra" / "sample").rglob("*.parquet"))
    assert [file.parent.name for file in files] == ["responses"]
    assert pl.read_parquet(files[0]).equals(table)


def _counted(module, name, monkeypatch):
    """A list whose item counts the calls of a function from here on."""
    untouched, calls = getattr(module, name), [0]

    def counted(*arguments):
        calls[0] += 1
        return untouched(*arguments)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_query_above_the_budget(prepared, tmp_path):
    model, shards, _, table = prepared
    dataset = open_dataset(shards)
    answers = dataset.responses.group_by("q").agg(pl.col("n_tok").sum()).sort("q").collect()
    prompts = dataset.queries.select(pl.col("prompt").list.len()).collect()
    sizes = (answers["n_tok"] + prompts["prompt"]).to_list()
    limit = sorted(sizes)[20]
    fits = [row for row, size in enumerate(sizes) if size <= limit]
    with pytest.raises(InputError, match="tokens"):
        sampled(shards, model, tmp_path / "error", tokens=limit)
    report, dropped = sampled(shards, model, tmp_path / "drop", tokens=limit, too_large="drop")
    assert dropped["query"].unique(maintain_order=True).to_list() == fits
    assert report["rows_out"] == 40 - report["dropped"]["too_large"] == len(fits) < 40
    _, alone = sampled(shards, model, tmp_path / "alone", tokens=limit, too_large="alone")
    assert alone.drop("logp").equals(table.drop("logp"))


def test_shards_of_another_model_are_refused(prepared, tmp_path):
    _, shards, _, _ = prepared
    other = text_model(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="packed for another model than"):
        sampled(shards, other, tmp_path / "run")
    with pytest.raises(ConfigError, match="model: not given"):
        sampled(shards, "", tmp_path / "run")


def test_another_template_is_taken_where_it_is_allowed(prepared, tmp_path):
    model, shards, _, table = prepared
    other = shutil.copytree(model, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="chat_template"):
        sampled(shards, other, tmp_path / "run", queries=3)
    _, few = sampled(shards, other, tmp_path / "run", queries=3, other_template=True)
    assert set(few["text"]) <= set(table["text"])


def test_precision_is_that_of_the_model(prepared, tmp_path):
    model, shards, _, table = prepared
    report, few = sampled(shards, model, tmp_path, queries=5, precision="bfloat16")
    assert report["precision"] == "bfloat16"
    both = few.join(table, on=["query", "sample", "tokens"])
    assert both.height > 0
    assert (both["logp"] - both["logp_right"]).abs().is_between(1e-6, 1).all()


# peft asks a model of transformers for what that has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_answers_as_its_merged_model(prepared, tmp_path):
    base, shards, _, table = prepared
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(merged)
    for folder in (adapter, merged):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(base / file, folder)
    _, mine = sampled(shards, adapter, tmp_path / "a", queries=5)
    _, expected = sampled(shards, merged, tmp_path / "m", queries=5)
    assert mine["tokens"].to_list() == expected["tokens"].to_list()
    theirs = table.filter(pl.col("query").is_in(mine["query"].unique().to_list()))
    assert mine["tokens"].to_list() != theirs["tokens"].to_list()


def test_a_query_with_a_picture_that_cannot_be_read_has_no_answers(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    processor = processor_folder("qwen2_vl", folder)
    tiny_model("qwen2_vl", processor).save_pretrained(folder)
    rows = prompts(6, tmp_path / "frames", seed=3, videos=False)
    shown = [number for number, row in enumerate(rows) if row.images]
    broken = bytearray(rows[shown[1]].row["images"][0]["bytes"])
    broken[broken.index(b"IDAT") + 8] ^= 0xFF
    rows[shown[1]].row["images"][0]["bytes"] = bytes(broken)
    packed(folder, [row.row for row in rows], tmp_path / "ds")
    report, table = sampled(tmp_path / "ds", folder, tmp_path / "run")
    assert report["dropped"]["unreadable"] == 1
    assert report["rows_out"] == 5
    answered = [number for number in range(6) if number != shown[1]]
    assert table["query"].unique(maintain_order=True).to_list() == answered


def test_answers_can_be_ranked_and_packed_again(prepared, tmp_path):
    model, shards, report, table = prepared
    rows = [
        {
            "prompt": samples["prompt"][0],
            "chosen": samples["text"][0] + report["closing"],
            "rejected": samples["text"][1] + report["closing"],
        }
        for _, samples in table.sort("query", "logp").group_by("query", maintain_order=True)
    ]
    again = pack_rows(model, rows, tmp_path / "again", strings="plain")
    before, after = (open_dataset(place).queries.collect() for place in (shards, again))
    assert after["prompt"].to_list() == before["prompt"].to_list()


@pytest.mark.parametrize(
    ("responses", "closing"),
    [
        ([[7, 8, 2, 9], [5, 2, 9], [2, 2, 9]], [2, 9]),
        ([[7, 8, 2, 9], [5, 3, 7, 2, 9], [5, 3, 7], [1]], []),
        ([[7, 8, 2, 9], [5, 3, 7, 2, 9], [5, 3, 7]], [2, 9]),
        ([[7, 3], [8, 3], [9]], [3]),
        ([[7, 8], [9, 8]], []),
        ([], []),
    ],
)
def test_the_closing_is_how_most_responses_end(responses, closing):
    assert sample.closing_of(responses, {2, 3}) == closing


def test_the_command(prepared, tmp_path):
    model, shards, _, _ = prepared
    out = tmp_path / "run"
    given = ("--samples", 1, "--queries", 4, "--max-new-tokens", 5, "--temperature", 0.5)
    given += ("--top-p", 0.9, "--top-k", 50, "--seed", 3, "--batch", 3, "--progress", "silent")
    result = engine("sample", shards, "--model", model, "--out", out, *given)
    assert (result.returncode, result.stderr) == (0, "")
    assert "4 answers to 4 queries" in result.stdout
    report = json.loads((out / "extra" / "sample" / "report.json").read_text())
    found = [report[name] for name in ("samples", "top_p", "top_k", "seed", "temperature")]
    assert found == [1, 0.9, 50, 3, 0.5]
    dry = engine("sample", shards, "--model", model, "--out", tmp_path / "dry", *given, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "tokens written, at most           20 (1 x 5 a query)" in dry.stdout
    assert not (tmp_path / "dry").exists()
    result = engine("sample", shards, "--model", model, "--out", out, "--temperature", 0)
    assert result.returncode == 2
    assert "temperature 0 gives 8 equal samples" in result.stderr


def test_outputs_of_the_tower_are_kept_for_every_command(tmp_path, monkeypatch):
    model, shards = picture_shards(tmp_path)
    _, plain = sampled(shards, model, tmp_path / "a", tokens=4000)
    kept = {"cache_features": str(tmp_path / "kept")}
    run_reference(shards, model, tmp_path / "run", {"tokens": 4000, "threads": 1, **kept})
    files = {file for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    assert files
    calls = []
    untouched = Qwen2VisionTransformerPretrainedModel.forward

    def forward(self, *arguments, **named):
        calls.append(1)
        return untouched(self, *arguments, **named)

    monkeypatch.setattr(Qwen2VisionTransformerPretrainedModel, "forward", forward)
    _, again = sampled(shards, model, tmp_path / "b", tokens=4000, **kept)
    assert again.drop("logp").equals(plain.drop("logp"))
    assert calls == []
