"""Fifty steps of MM-DPO on a tiny language model, by each implementation and inside TRL's trainer.

Single calls agree to float32; what is asked here is that a training run stays where it should.
"""

import pytest

from heads.training import LN2, bare_loop
from kernels_support import loop_in_wide_tiles
from triton_worker import interpreted

pytest.importorskip("transformers", reason="the tiny model is a Qwen2 of transformers")

STEPS = 50
TOLERANCE = 1e-4
"""Of losses between 0.1 and 1.2: float32 rounds differently, AdamW turns that into small steps."""


@pytest.fixture(scope="module")
def specification():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMRLHF_KERNELS", "reference")
        return bare_loop(STEPS)


def assert_same_curve(found, wanted):
    assert len(found) == len(wanted)
    assert max(abs(a.loss - b.loss) for a, b in zip(found, wanted, strict=True)) < TOLERANCE


def test_the_first_loss_is_that_of_equal_policies_and_the_last_is_learned(specification):
    # The first step has no preference yet: softplus(0) = ln 2 whatever the betas.
    assert specification[0].preference_loss == pytest.approx(LN2, abs=1e-6)
    assert specification[-1].preference_loss < LN2 / 2


def test_chunked_training_follows_the_specification(specification, monkeypatch):
    monkeypatch.setenv("MMRLHF_KERNELS", "chunked")
    assert_same_curve(bare_loop(STEPS), specification)


@pytest.mark.slow
def test_interpreted_triton_training_follows_the_specification(specification):
    assert_same_curve(interpreted(loop_in_wide_tiles, STEPS), specification)


# What TRL, datasets and transformers warn of is theirs.
@pytest.mark.filterwarnings("ignore")
def test_training_in_the_trainer_of_trl_follows_the_bare_loop(tmp_path, monkeypatch, specification):
    pytest.importorskip("trl", reason="TRL is not among the requirements of this project")
    from heads.trl_trainer import train_in_trl

    monkeypatch.setenv("MMRLHF_KERNELS", "chunked")
    found = train_in_trl(STEPS, tmp_path)
    assert found[0].preference_loss == pytest.approx(LN2, abs=1e-6)
    assert_same_curve(found, specification)
