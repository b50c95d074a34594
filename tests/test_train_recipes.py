"""The dry run of the recipes in ``configs``, with published sizes and data in the paper's shape."""

from pathlib import Path

import pytest

from mmrlhf_engine import PreferenceLoader, open_dataset, plan_json
from mmrlhf_engine.run.config import load_config
from mmrlhf_engine.train.dry_run.describe import Device, describe_training
from mmrlhf_engine.train.dry_run.epoch_counts import count_epoch
from mmrlhf_engine.train.dry_run.memory import memory_of_step, total
from mmrlhf_engine.train.dry_run.model_sizes import build_on_meta, read_sizes
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.plan import plan_of
from paper_data import model_folder, paper_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Both model folders and 1,000 pairs in the paper's shape."""
    root = tmp_path_factory.mktemp("paper")
    folders = {}
    for size in ("7b", "0.5b"):
        folders[size] = root / size
        folders[size].mkdir()
        model_folder(folders[size], size)
    return folders, paper_shards(folders["7b"], root / "shards", 250)


def recipe(paper, size, *overrides):
    folders, shards = paper
    file = CONFIGS / f"mm_rlhf_{size}.yaml"
    own = [f"shards={shards}", f"model={folders[size]}", *overrides]
    return load_config(MMDPOConfig, file, own)


def test_the_recipe_for_7b(paper):
    settings = recipe(paper, "7b")
    told = describe_training(settings, device=Device("a GPU", 80 * 2**30))
    assert "1,000 of 1,000, 0 ties left out" in told
    sizes = read_sizes(build_on_meta(settings.model), settings)
    counts = count_epoch(settings)
    # Counts of LLaVA-OneVision 7B: 28 layers of Qwen2, SigLIP with 26 layers, two projections.
    layer = 3584 * (3584 + 2 * 512 + 3584 + 3 * 18_944) + 3584 + 2 * 512 + 2 * 3584
    assert sizes.parameters["text"] == 28 * layer + 3584
    assert sizes.parameters["head"] == sizes.parameters["embeddings"] == 152_064 * 3584
    assert f"{sizes.count(trained=True):,} of 8,030,348,832" in told
    assert f"{counts.total('tokens'):,}" in told
    assert counts.total("image_tokens") == sum(
        pair for pair in image_tokens_by_rule(settings.shards)
    )
    assert 0.9 < counts.total("tokens") / (len(counts.packs) * 16_384) <= 1
    parts = {part.name: part.bytes for part in memory_of_step(sizes, counts, settings, 2)}
    assert parts["gradients"] == 4 * sizes.count(trained=True)
    assert parts["optimizer state (adamw)"] == 8 * sizes.count(trained=True)
    assert parts["frozen weights"] == 4 * sizes.count(trained=False)
    for line in (
        "too large, or tight, for one device; instead",
        "lora of rank 64",
        "DeepSpeed ZeRO-3",
    ):
        assert line in told
    assert "instead" not in describe_training(settings, device=Device("a GPU", 200 * 2**30))


def image_tokens_by_rule(shards):
    """Of each query, by the core's rule."""
    from mmrlhf_engine.shards.image_rule import ImageRule

    dataset = open_dataset(shards)
    rule = ImageRule(dataset.processor["image_rule"])
    sizes = {blob: (w, h) for blob, w, h in dataset.blobs.select("id", "w", "h").collect().rows()}
    for media in dataset.queries.collect()["media"].to_list():
        yield sum(rule.count([sizes[blob] for blob in media]))


def test_the_recipe_for_half_a_billion_fits_one_gpu(paper):
    settings = recipe(paper, "0.5b")
    told = describe_training(settings, device=Device("a GPU", 80 * 2**30))
    assert "is the embeddings" in told
    assert "instead" not in told
    sizes = read_sizes(build_on_meta(settings.model), settings)
    assert sizes.tied
    assert sizes.head_trains
    assert sizes.parameters["head"] == 0


def test_settings_change_what_they_promise(paper):
    def memory(*overrides):
        settings = recipe(paper, "7b", *overrides)
        sizes = read_sizes(build_on_meta(settings.model), settings)
        parts = memory_of_step(sizes, count_epoch(settings), settings, 2)
        return {part.name: part.bytes for part in parts}, sizes, parts

    plain, sizes, parts = memory()
    kept, _, _ = memory("gradient_checkpointing=false")
    assert kept["activations of the text"] > 5 * plain["activations of the text"]
    adapted, small, _ = memory("lora={rank: 64}", "frozen_weights=bfloat16")
    assert small.count(trained=True) < 0.03 * sizes.count(trained=True)
    assert sum(adapted.values()) < 0.3 * sum(plain.values())
    factored, _, _ = memory("optimizer.name=adafactor")
    assert factored["optimizer state (adafactor)"] < 0.01 * plain["optimizer state (adamw)"]
    halved, _, _ = memory("data.tokens=8192")
    assert halved["activations of the text"] < 0.6 * plain["activations of the text"]
    on_one, on_eight = (total(parts, sizes, devices, 2) for devices in (1, 8))
    assert on_one == sum(plain.values())
    assert on_eight < 0.3 * on_one


def test_queries_that_are_held_out_are_in_no_pack(paper):
    settings = recipe(paper, "7b", "evaluation.share=0.2")
    whole, part = count_epoch(recipe(paper, "7b")), count_epoch(settings)
    rest = plan_of(settings).hold_out.model_copy(update={"part": "held_out"})
    dataset = open_dataset(settings.shards)
    plan = plan_json(
        plan_of(settings).model_copy(update={"hold_out": rest}), dataset.processor["image_rule"]
    )
    held_out = [
        set(batch.sequence_query)
        for batch in PreferenceLoader(settings.shards, plan, threads=1, pixels=False)
    ]
    assert part.held_out == sum(map(len, held_out)) > 0
    assert part.total("pairs") < whole.total("pairs") == 1000
    assert f"250, of which {part.held_out} are held out" in describe_training(settings)
