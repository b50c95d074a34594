"""Fixtures that many tests use: a started stage, the corpus of the demo, a tiny real encoder."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import stages
from mmrlhf_engine.run.folder import Run

# No test has a time limit: a busy machine is not a defect. Properties are tested on the same cases
# each time, so that a failure is of the change at hand; `make test-all` draws new ones.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same_cases", derandomize=True, **UNTIMED)
settings.register_profile("new_cases", **UNTIMED)
settings.load_profile("same_cases")


@pytest.fixture
def stage(tmp_path) -> stages.RunForTests:
    """``stage("dedup", config)`` begins a stage in ``tmp_path/run``; it ends by its ``finish``."""
    return stages.RunForTests(Run(tmp_path / "run"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """The demo's corpus: four formats, with planted duplicates and bad rows."""
    from mmrlhf_engine.demo.corpus import build

    return build(tmp_path_factory.mktemp("corpus")).folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    """A CLIP of a few thousand random weights, saved as a Hugging Face folder."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "projection_dim": 24}
    ends = {"max_position_embeddings": 8, "bos_token_id": 97, "eos_token_id": 98}
    config = CLIPConfig(
        vision_config={**small, **heads, "image_size": 32, "patch_size": 16},
        text_config={**small, **heads, "vocab_size": 99, **ends},
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("tiny_clip")
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.fixture
def own_corpus(corpus, tmp_path) -> Path:
    """A copy of the corpus that a test may change."""
    return Path(shutil.copytree(corpus, tmp_path / "corpus"))
