"""An encoder that cannot be had is noticed without loading it."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmrlhf_engine.curate.embed import EmbedConfig
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.models import open_clip_names
from mmrlhf_engine.models.encoder_check import check_encoder, is_on_the_hub, missing_weights
from mmrlhf_engine.run.config import load_config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "expected open_clip:MODEL/WEIGHTS, transformers:NAME, lite0 or precomputed"),
        ("openclip:ViT-B-32/openai", "did you mean open_clip?"),
        ("lite1", "did you mean lite0?"),
        ("transformers:", "expected open_clip:MODEL/WEIGHTS"),
    ],
)
def test_a_name_of_no_known_form_is_refused_with_the_settings(name, message):
    with pytest.raises(ConfigError, match=r"^encoder: found") as raised:
        load_config(EmbedConfig, overrides=[f"encoder={name!r}"])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("open_clip:ViTB32/openai", ConfigError, "did you mean ViT-B-32"),
        ("open_clip:ViT-B-32/opnai", ConfigError, "did you mean openai?"),
        ("open_clip:ViT-B-32", ConfigError, "the weights are missing"),
        ("open_clip:ViT-B-32/absent/w.pt", InputError, "absent/w.pt: no such file"),
        ("transformers:./absent", InputError, "found no such folder"),
        ("transformers:EMPTY", InputError, "has no config.json"),
    ],
)
def test_a_model_or_file_that_is_not_there_is_refused(name, kind, message, tmp_path):
    with pytest.raises(kind) as raised:
        check_encoder(name.replace("EMPTY", str(tmp_path)))
    assert message in str(raised.value)


def test_what_is_there_passes_and_weights_of_the_hub_are_named(tiny_encoder, tmp_path, monkeypatch):
    weights = tmp_path / "w.pt"
    weights.touch()
    for name in ("lite0", tiny_encoder, f"open_clip:ViT-B-32/{weights}"):
        check_encoder(name)
        assert missing_weights(name) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = "timm/vit_base_patch32_clip_224.openai"
    assert missing_weights("open_clip:ViT-B-32/openai") == place
    assert missing_weights("open_clip:hf-hub:org/name") == "org/name"
    assert missing_weights("transformers:org/name") == "org/name"
    (tmp_path / f"models--{place.replace('/', '--')}" / "snapshots" / "abc").mkdir(parents=True)
    assert missing_weights("open_clip:ViT-B-32/openai") is None


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that has one model, by its address in the environment."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            there = self.path.startswith("/api/models/org/there")
            body = b'{"id": "org/there"}' if there else b"{}"
            self.send_response(200 if there else 404)
            if not there:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_that_the_hub_does_not_have_is_refused(hub, monkeypatch):
    assert is_on_the_hub("transformers:org/there", "org/there")
    with pytest.raises(ConfigError, match="the hub has no model org/thre"):
        is_on_the_hub("transformers:org/thre", "org/thre")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert not is_on_the_hub("transformers:org/there", "org/there")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_on_the_hub("transformers:org/thre", "org/thre")


def test_the_names_read_from_the_files_of_open_clip_are_those_it_has():
    open_clip = pytest.importorskip("open_clip")
    models = open_clip.list_models()
    assert set(open_clip_names.model_names()) == set(models)
    for model in models:
        tags = open_clip.list_pretrained_tags_by_model(model)
        hub = {tag: open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "" for tag in tags}
        expected = {tag: place.strip("/") for tag, place in hub.items()}
        found = open_clip_names.weights_of(model) or {}
        if model.endswith("-quickgelu"):  # all weights of the model; open_clip takes some of them
            found = {tag: place for tag, place in found.items() if tag in expected}
        assert found == expected, model


def test_torch_is_not_imported_for_it():
    program = (
        "import sys\n"
        "from mmrlhf_engine.models.encoder_check import check_encoder, missing_weights\n"
        "for name in ('lite0', 'open_clip:ViT-B-32/openai', 'transformers:a/b'):\n"
        "    check_encoder(name), missing_weights(name)\n"
        "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
