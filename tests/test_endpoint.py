"""Answers of a server: what it is asked, what becomes of its answers, and of its failures."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest
from PIL import Image

from command import engine
from mmrlhf_engine import open_dataset, run_sample
from mmrlhf_engine.errors import ConfigError, InputError, StageError
from mmrlhf_engine.models import endpoint
from model_families import processor_folder
from pack_data import picture, put, write_lines
from tiny_models import tiny_model
from train_data import pack_rows, text_shards


@contextmanager
def server(fails=()):
    """A server that answers by the question, after failing with these codes; and what it got."""
    got, codes = [], list(fails)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, dict(self.headers), body))
            code = codes.pop(0) if codes else 200
            choices = [self.choice(body, number) for number in range(body["n"])]
            found = {"choices": choices} if code == 200 else {"error": f"no, {code}"}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def choice(self, body, number):
            text = f"answer {number} to {len(body.get('prompt', body.get('messages')))}"
            finish = "length" if number else "stop"
            if "messages" in body:
                logs = {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}
                return {
                    "message": {"content": text},
                    "finish_reason": finish,
                    "logprobs": logs,
                }
            logs = {"token_logprobs": [-1.0, -0.5]} if number else None
            return {"text": text, "finish_reason": finish, "logprobs": logs}

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", got
    finally:
        running.shutdown()
        running.server_close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return text_shards(tmp_path_factory.mktemp("endpoint"), queries=5)


def settings_of(url, **more):
    given = {"samples": 2, "max_new_tokens": 9, "threads": 1, "batch": 3, **more}
    return {"endpoint.url": url, "endpoint.model": "served", **given}


def answers_in(out):
    return pl.read_parquet(out / "extra" / "sample" / "responses" / "*.parquet")


def test_prompts_of_text_are_sent_as_their_ids(prepared, tmp_path, monkeypatch):
    model, shards = prepared
    monkeypatch.setenv("A_KEY", "secret")
    with server() as (url, got):
        report = run_sample(shards, model, tmp_path, settings_of(url, **{"endpoint.key": "A_KEY"}))
    prompts = open_dataset(shards).queries.collect()["prompt"].to_list()
    assert sorted(body["prompt"] for _, _, body in got) == sorted(prompts)
    path, headers, body = got[0]
    assert (path, headers["Authorization"]) == ("/v1/completions", "Bearer secret")
    assert (body["model"], body["n"], body["max_tokens"]) == ("served", 2, 9)
    assert len({body["seed"] for _, _, body in got}) == 5
    table = answers_in(tmp_path)
    assert report["finish"] == {"length": 5, "stop": 5}
    for row in table.iter_rows(named=True):
        assert row["text"] == f"answer {row['sample']} to {len(prompts[row['query']])}"
        assert row["logp"] == (-1.5 if row["sample"] else None)
        assert row["n_tok"] == len(row["tokens"]) > 0


def test_prompts_with_pictures_are_messages(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_model("qwen2_vl", processor_folder("qwen2_vl", folder)).save_pretrained(folder)
    put(tmp_path / "1.png", picture(seed=1))
    rows = [{"image": "1.png", "prompt": "<image>What is this?", "chosen": "a", "rejected": "b"}]
    shards = pack_rows(folder, rows, tmp_path / "shards")
    with server() as (url, got):
        run_sample(shards, folder, tmp_path / "run", settings_of(url))
    ((path, _, body),) = got
    assert path == "/v1/chat/completions"
    (message,) = body["messages"]
    shown, asked = message["content"]
    assert asked == {"type": "text", "text": "What is this?"}
    kind, _, data = shown["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 48)
    assert answers_in(tmp_path / "run")["logp"].to_list() == [-0.75, -0.75]


def test_what_fails_for_the_moment_is_asked_again(prepared, tmp_path, monkeypatch):
    model, shards = prepared
    waited = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    with server(fails=[503, 429]) as (url, got):
        run_sample(shards, model, tmp_path, settings_of(url, **{"endpoint.concurrency": 1}))
    assert waited == [1, 2]
    assert len(got) == 7
    assert answers_in(tmp_path).height == 10


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (401, ConfigError, "OPENAI_API_KEY"),
        (404, ConfigError, "the name of a model there"),
        (400, InputError, "does not take this request"),
        (500, StageError, "after 1 attempts"),
    ],
)
def test_what_the_server_refuses_is_said(prepared, tmp_path, code, error, words):
    model, shards = prepared
    with server(fails=[code] * 9) as (url, _), pytest.raises(error) as found:
        run_sample(shards, model, tmp_path, settings_of(url, **{"endpoint.retries": 0}))
    assert words in f"{found.value} {found.value.hint}"


def test_a_run_goes_on_after_a_server_that_was_away(prepared, tmp_path):
    model, shards = prepared
    gone = "http://127.0.0.1:9/v1"
    words = [shards, "--model", model, "--out", tmp_path, "--endpoint", gone, "--samples", "1"]
    settings = ["--endpoint-model", "served", "--set", "endpoint.retries=0"]
    done = engine("sample", *words, *settings, "--progress", "silent")
    assert (done.returncode, "is the server running?" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_several_turns_with_pictures_are_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_model("qwen2_vl", processor_folder("qwen2_vl", folder)).save_pretrained(folder)
    put(tmp_path / "1.png", picture(seed=1))
    turns = [
        {"role": "user", "content": "<image>Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What?"},
    ]
    row = {
        "messages": [*turns, {"role": "assistant", "content": "a"}],
        "rejected_response": "b",
        "images": ["1.png"],
    }
    write_lines(tmp_path / "x.jsonl", [row])
    shards = pack_rows(folder, [row], tmp_path / "shards")
    with server() as (url, _), pytest.raises(InputError, match="several turns"):
        run_sample(shards, folder, tmp_path / "run", settings_of(url))
