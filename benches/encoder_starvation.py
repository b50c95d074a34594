"""Whether ``embed`` keeps an encoder busy: from files to rows, against the encoder on ready pixels.

Images per second on the same 640x480 JPEG files and threads: ``bare`` is the encoder alone on
pixels in memory, ``decode`` the decoding alone, ``embed`` the stage, ``peer`` a torch DataLoader
(its workers already running) that decodes and resizes with Pillow in front of the same encoder.

``busy`` is the share of the time in which the encoder had a batch to work on. Decoding on the cores
that also encode takes its part of them: ``possible`` is what is left of ``bare`` if nothing is lost
between the two, 1 / (1/bare + 1/decode). On a GPU the two do not compete.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from given_stage import begin, finish_with
from mmrlhf_engine.curate import embed
from mmrlhf_engine.curate.embed import EmbedConfig, _decoded
from mmrlhf_engine.curate.tables import KEPT, MEDIA, SAMPLES
from mmrlhf_engine.models.encoder import Encoder, load_encoder
from mmrlhf_engine.models.threaded_encoder import ThreadedEncoder
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import StageContext
from record import write_record

ROUNDS = 9
THREADS = 2
BATCH = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fast = tiny_clip(Path(folder) / "tiny")
        rows = [
            measure("lite0", "lite0", Path(folder), images=64),
            measure("tiny CLIP, 224 px", fast, Path(folder), images=384),
        ]
    path = write_record(
        "encoder_starvation",
        {
            **{"rounds": ROUNDS, "threads": THREADS, "batch": BATCH},
            "figure": "median images per second",
            "load_average_at_end": round(os.getloadavg()[0], 1),
        },
        rows,
        ["a GPU: there was none", "cold files: everything was in the page cache"],
    )
    for row in rows:
        print(
            f"{row['encoder']:18} bare {row['bare']:7.1f}/s  embed {row['embed']:7.1f}/s "
            f"({row['embed_of_bare']:.2f})  peer {row['peer']:7.1f}/s ({row['peer_of_bare']:.2f})  "
            f"embed/peer {row['embed_of_peer']:.2f}  busy {row['busy']:.3f}  "
            f"decode {row['decode']:7.1f}/s  possible {row['possible']:7.1f}/s"
        )
    print(path)


def measure(label: str, name: str, folder: Path, images: int) -> dict[str, object]:
    """Bare, stage and peer in turn, so that a noisy moment hits all of them."""
    files = photographs(folder / f"pictures-{images}", images)
    encoder = load_encoder(name)
    loader = peer_loader(encoder, files)
    speeds: dict[str, list[float]] = {"bare": [], "embed": [], "peer": [], "decode": []}
    busy = []
    for number in range(ROUNDS + 1):
        stage = prepare(folder / f"{images}-{number}", name, files)
        ready: list[np.ndarray] = []
        seconds = {
            "decode": clock(lambda stage=stage, ready=ready: ready.extend(decode(stage, encoder))),
            "bare": clock(lambda ready=ready: consume(encoder, ready)),
            "embed": clock(lambda stage=stage: embed.run(stage.config, stage)),
            "peer": clock(lambda: peer(encoder, loader)),
        }
        report = stage.run.report("embed")
        assert report is not None
        # The stage also loads the encoder and writes its tables; its own figure leaves that out.
        seconds["embed"] = images / report["images_per_second"]
        if number:  # the first round warms everything up
            for figure, value in seconds.items():
                speeds[figure].append(images / value)
            busy.append(report["encoder_busy"])
    return summarise(label, images, speeds, busy)


def summarise(
    label: str, images: int, speeds: dict[str, list[float]], busy: list[float]
) -> dict[str, object]:
    median = {figure: round(statistics.median(values), 1) for figure, values in speeds.items()}

    def ratio(above: str, below: str) -> float:
        pairs = zip(speeds[above], speeds[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "encoder": label,
        "images": images,
        **median,
        "embed_of_bare": ratio("embed", "bare"),
        "peer_of_bare": ratio("peer", "bare"),
        "embed_of_peer": ratio("embed", "peer"),
        "busy": round(statistics.median(busy), 3),
        "possible": round(1 / (1 / median["bare"] + 1 / median["decode"]), 1),
    }


def decode(stage: StageContext, encoder: Encoder) -> list[np.ndarray]:
    """The pixels of all pictures, as the stage would hand them to the encoder."""
    media = stage.scan("media").collect()
    chunks = list(range(-(-media.height // embed.CHUNK)))
    config = stage.config
    assert isinstance(config, EmbedConfig)
    return [pixels for _, pixels in _decoded(config, stage, encoder, media, chunks) if len(pixels)]


def consume(encoder: Encoder, ready: list[np.ndarray]) -> None:
    for _ in ThreadedEncoder(encoder, THREADS).run(enumerate(ready)):
        pass


class Photographs(torch.utils.data.Dataset[np.ndarray]):
    """What one writes for a DataLoader: open, resize the shorter side, cut out the middle."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        picture = Image.open(self.files[index]).convert("RGB")
        scale = self.size / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return np.array(picture.crop((left, top, left + self.size, top + self.size)))


def peer_loader(encoder: Encoder, files: list[Path]) -> torch.utils.data.DataLoader[np.ndarray]:
    """As many workers as we have threads, kept running from round to round."""
    return torch.utils.data.DataLoader(
        Photographs(files, encoder.size),
        batch_size=BATCH,
        num_workers=THREADS,
        persistent_workers=True,
        # A fork of a process with threads may hang; a server starts the workers cleanly.
        multiprocessing_context="forkserver",
    )


def peer(encoder: Encoder, loader: torch.utils.data.DataLoader[np.ndarray]) -> None:
    """The encoder behind the loader, with as many threads within an operation as it has workers."""
    torch.set_num_threads(THREADS)
    for batch in loader:
        encoder.encode(batch.numpy())


def prepare(folder: Path, name: str, files: list[Path]) -> StageContext:
    """A run whose stages before ``embed`` are finished, and ``embed`` begun."""
    ids = [file.stem for file in files]
    media = pl.DataFrame({"hash": ids, "kind": "image", "path": [str(file) for file in files]})
    samples = pl.DataFrame({"id": ids, "media": [[hash_] for hash_ in ids]})
    run = Run(folder)
    finish_with(run, "ingest", {"samples": (SAMPLES, samples), "media": (MEDIA, media)})
    finish_with(run, "dedup", {"kept": (KEPT, samples)})
    return begin(run, "embed", EmbedConfig(encoder=name, batch=BATCH), THREADS)


def photographs(folder: Path, count: int) -> list[Path]:
    """``count`` different JPEG files of 640x480 from the photographs of scikit-learn."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder.mkdir()
    originals = [
        Image.open(file) for file in sorted(Path(spec.origin).parent.glob("**/images/*.jpg"))
    ]
    files = []
    for number in range(count):
        picture = originals[number % len(originals)]
        shift = number // len(originals)
        window = (shift % 16, shift // 16, picture.width - 32, picture.height - 32)
        files.append(folder / f"{number:05d}.jpg")
        picture.crop(window).resize((640, 480)).save(files[-1], "JPEG", quality=90)
    return files


def tiny_clip(folder: Path) -> str:
    """A CLIP that takes 224 px and does next to nothing with them: decoding is all there is."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 32}
    config = CLIPConfig(
        vision_config={**small, **heads, "image_size": 224, "patch_size": 32},
        text_config={**small, **heads, "vocab_size": 99, "max_position_embeddings": 8},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return f"transformers:{folder}"


def clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
