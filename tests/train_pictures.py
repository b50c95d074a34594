"""A tiny Qwen2-VL, and shards with pictures that are packed for it."""

from pathlib import Path

from model_families import processor_folder, prompts
from test_families import packed
from tiny_models import tiny_model


def picture_model(folder: Path) -> Path:
    """A random Qwen2-VL with its processor, saved as a Hugging Face folder."""
    folder.mkdir(parents=True)
    tiny_model("qwen2_vl", processor_folder("qwen2_vl", folder)).save_pretrained(folder)
    return folder


def picture_rows(folder: Path, queries: int = 8, *, seed: int = 3) -> list[dict]:
    """Prompts of up to four images, each with one pair and its margin."""
    made = prompts(queries, folder / "frames", seed=seed, videos=False)
    return [{**prompt.row, "margin": 0.5 * number} for number, prompt in enumerate(made)]


def picture_shards(folder: Path, queries: int = 8) -> tuple[Path, Path]:
    """A model that sees, and shards that are packed for it."""
    model = picture_model(folder / "model")
    packed(model, picture_rows(folder, queries), folder / "shards")
    return model, folder / "shards"
