"""Tiny models with datasets for the tests of the dry run."""

from mmrlhf_engine import PreferenceLoader, open_dataset, plan_json
from mmrlhf_engine.train.mm_dpo import MMDPOConfig
from mmrlhf_engine.train.plan import plan_of
from model_families import WITH_VIDEOS, processor_folder, prompts
from test_families import packed
from tiny_models import SIDES, tiny_model

FAMILIES = ["llava_onevision", "qwen2_5_vl", "internvl"]


def settings_of(folder, shards, **changes):
    own = changes.pop("data", {})
    data = {"tokens": 500, "too_large": "alone", "packs_per_step": 3, **own}
    return MMDPOConfig(shards=str(shards), model=str(folder), data=data, threads=1, **changes)


def both_pairs(prompt, number):
    """Rows of two pairs that share the chosen answer."""
    third = [{"role": "assistant", "content": f"Perhaps a dog, or {number} of them."}]
    return [prompt.row, {**prompt.row, "rejected": third}]


def tiny_family(name, root):
    """A tiny model of a family, its folder, and a dataset with pictures, videos and two pairs."""
    folder = root / "model"
    folder.mkdir()
    processor = processor_folder(name, folder)
    model = tiny_model(name, processor)
    model.config.save_pretrained(folder)
    clips = {"videos": name in WITH_VIDEOS, "frames": 3, "side": SIDES.get(name, 28)}
    made = prompts(12, root / "frames", seed=5, **clips)
    rows = [row for n, prompt in enumerate(made) for row in both_pairs(prompt, n)]
    packed(folder, rows, root / "shards")
    return name, folder, root / "shards", model


def batches_of(settings, **changes):
    """Real batches with pixels, of the plan of these settings."""
    dataset = open_dataset(settings.shards)
    plan = plan_of(settings).model_copy(update=changes)
    plan = plan_json(plan, dataset.processor and dataset.processor["image_rule"])
    return list(PreferenceLoader(settings.shards, plan, threads=1))
