"""A model reads a pack as it reads each sequence alone: the first DPO loss is ln 2."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from load_data import PICTURES, plan, write
from mmrlhf_engine import _core
from mmrlhf_engine.models.layout import answer_rows, attention_mask
from mmrlhf_engine.shards.columns import ColumnRequest, provenance
from mmrlhf_engine.shards.dataset import add_column
from mmrlhf_engine.shards.loader import PreferenceLoader, normalise
from mmrlhf_kernels import (
    dynamic_beta,
    fused_linear_logp,
    mm_dpo_loss,
    sequence_of_row,
    sequence_sums,
)
from naive_loader import NaiveLoader

FAMILY = "qwen2_vl"
VOCABULARY = 1000


@pytest.fixture(scope="module")
def model():
    """A Qwen2-VL of a few thousand random weights, in float64."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "depth": 1,
        "embed_dim": 16,
        "num_heads": 2,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "patch_size": 4,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=990)
    model = Qwen2VLForConditionalGeneration(config).double().eval()
    with torch.no_grad():  # Sharp enough that a token seen or not seen matters.
        for weight in model.parameters():
            weight.mul_(3.0)
    return model


def hidden_states(model, batch, mask):
    """[T, H] of a pack: each image as often as it is shown, attention by a mask."""
    order = batch.placeholder_image[np.argsort(batch.placeholder_start, kind="stable")]
    shown = [np.arange(*batch.image_blocks[image : image + 2]) for image in order.tolist()]
    blocks = np.concatenate([np.arange(0), *shown])
    pictures = {}
    if len(blocks):
        pixels = torch.from_numpy(batch.pixel_values[blocks])
        pictures["pixel_values"] = normalise(pixels, PICTURES[FAMILY]).double()
        pictures["image_grid_thw"] = torch.from_numpy(batch.image_grid_thw[order]).long()
    added = torch.zeros(1, 1, *mask.shape, dtype=torch.float64)
    added.masked_fill_(~torch.from_numpy(mask), torch.finfo(torch.float64).min)
    return model.base_model(
        input_ids=torch.from_numpy(batch.input_ids).long()[None],
        position_ids=torch.from_numpy(batch.position_ids).long()[:, None],
        attention_mask=added,
        use_cache=False,
        **pictures,
    ).last_hidden_state[0]


class Seen:
    """The arrays of the reference implementation's batch under the names of a batch."""

    def __init__(self, arrays):
        self.__dict__ = arrays


@pytest.fixture(scope="module")
def dataset(model, tmp_path_factory):
    """A dataset with the log-probability of each response, computed alone, in plain PyTorch."""
    path = write(tmp_path_factory.mktemp("preferences") / "set", queries=14)
    reference = NaiveLoader(path, plan(FAMILY, unit="response"), pictures=PICTURES[FAMILY])
    values = []
    for response in range(_core.Dataset(path).rows("responses")):
        arrays = reference.batch([response])
        if arrays["pixel_values"] is None:
            arrays["pixel_values"] = np.zeros((0, 96), np.uint8)
        alone = Seen(arrays)
        count = len(alone.input_ids)
        with torch.no_grad():
            states = hidden_states(model, alone, np.tri(count, dtype=bool))
            logp = model.lm_head(states).log_softmax(1)
        first = int(alone.prompt_lengths[0])
        answer = torch.from_numpy(alone.input_ids[first:]).long()
        values.append(float(logp[first - 1 : count - 1].gather(1, answer[:, None]).sum()))
    stated = provenance(
        _core.Dataset(path),
        plan(FAMILY),
        pictures=PICTURES[FAMILY].model_dump(mode="json"),
        model="tiny",
    )
    frame = pl.DataFrame({"logp": pl.Series(values, dtype=pl.Float32)})
    add_column(path, frame, table="responses", column_set="reflogp/tiny", provenance=stated)
    return path


# Few responses meet the other side of their pairs in small packs.
PACKINGS = [
    *[(unit, budget) for unit in ("pair", "query") for budget in (60, 400, 2000)],
    *[("response", budget) for budget in (400, 2000)],
]


@pytest.mark.parametrize(("unit", "budget"), PACKINGS)
def test_the_first_loss_is_ln_2(dataset, model, unit, budget):
    loader = PreferenceLoader(
        dataset,
        plan(FAMILY, unit=unit, budget={"tokens": budget}, packs_per_step=2),
        pictures=PICTURES[FAMILY],
        columns={"reference": ColumnRequest("reflogp/tiny", "logp", expect={"model": "tiny"})},
    )
    batches = [batch for batch in loader if len(batch.pair_row)]
    losses = [loss(model, batch) for batch in batches]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-5)
    pairs = sum(len(batch.pair_row) for batch in batches)
    assert pairs >= 5
    assert unit == "response" or pairs == _core.Dataset(dataset).rows("pairs")
    assert budget < 2000 or max(len(batch.prefix_sequence) for batch in batches) > 8


def loss(model, batch):
    """MM-DPO over the pairs of a pack, the reference from its column."""
    rows = answer_rows(batch)
    bounds = torch.from_numpy(rows.cu_seqlens)
    with torch.no_grad():
        states = hidden_states(model, batch, attention_mask(batch))[rows.row]
        logp = fused_linear_logp(states, model.lm_head.weight, torch.from_numpy(rows.target))
        sums = sequence_sums(logp, sequence_of_row(bounds, len(logp)), len(batch.prefix_sequence))
    reference = torch.from_numpy(batch.column("reference"))
    chosen, rejected = batch.pair_chosen, batch.pair_rejected
    beta = dynamic_beta(torch.from_numpy(batch.pair_margin).nan_to_num(0.0), beta=0.1)
    out = mm_dpo_loss(sums[chosen], sums[rejected], reference[chosen], reference[rejected], beta)
    return float(out.loss)


def test_a_mask_that_shows_too_much_is_not_ln_2(dataset, model):
    """The test above can fail: a plain causal mask over the pack moves the log-probabilities."""
    loader = PreferenceLoader(dataset, plan(FAMILY), pictures=PICTURES[FAMILY])
    batch = next(batch for batch in loader if len(batch.pair_row) > 1)
    with torch.no_grad():
        right = hidden_states(model, batch, attention_mask(batch))
        wrong = hidden_states(model, batch, np.tri(len(batch.input_ids), dtype=bool))
    assert float((right - wrong).abs().max()) > 0.1


def test_rows_and_mask_of_a_shared_prompt():
    """Prompt 5 6, which answers 7 8 and 9 continue; then prompt 5 with answer 4."""
    batch = Seen(
        {
            "input_ids": np.array([5, 6, 7, 8, 9, 5, 4], np.int32),
            "cu_seqlens": np.array([0, 2, 4, 5, 7], np.int32),
            "prompt_lengths": np.array([2, 0, 0, 1], np.int32),
            "prefix_sequence": np.array([-1, 0, 0, -1], np.int32),
        }
    )
    rows = answer_rows(batch)
    assert rows.row.tolist() == [1, 2, 1, 5]
    assert rows.target.tolist() == [7, 8, 9, 4]
    assert rows.cu_seqlens.tolist() == [0, 0, 2, 3, 4]
    seen = [np.flatnonzero(row).tolist() for row in attention_mask(batch)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6]]
