"""Every setting of ``curate`` and ``pack`` has an effect that can be seen.

A small corpus is run once with the defaults. For each setting the stage it belongs to is run again
with another value; its tables then differ, or the run is refused for the reason given. A setting
that is in a config and not in the lists below fails a test of its own.
"""

import io
import json
import shutil
from collections import Counter

import pytest
from PIL import Image

from mmrlhf_engine.curate import embed, picture_hashes
from mmrlhf_engine.curate.ingest import SourceConfig
from mmrlhf_engine.errors import ConfigError, InputError
from mmrlhf_engine.pack import pack
from mmrlhf_engine.pipeline import CURATE, STAGES, CurateConfig, curate
from mmrlhf_engine.run.config import Section, load_config
from mmrlhf_engine.run.folder import Run
from mmrlhf_engine.run.stage import Resources, StageContext
from pack_data import CHATML, picture, put, tokenizer_folder, write_lines
from run_pipeline import tables

DIFFERENT = "the tables of the stage differ"
FEWER_COMPARED = "the stage compares fewer pairs"


def leaves(kind: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of all settings; a section within a section gives its own."""
    found = set()
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= leaves(inner, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


# ---- curate ----------------------------------------------------------------------------------

WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "house",
    "tree",
    "river",
    "stone",
    "cloud",
    "lamp",
    "table",
    "chair",
    "window",
]


def sentence(number: int, length: int = 9) -> str:
    """Words that depend on ``number``; those of near numbers are mostly the same."""
    return " ".join(
        WORDS[(number // 2 * 7 + 3 * k + (number % 2) * (k == 4)) % 15] for k in range(length)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows on 24 pictures, near ones among them, two videos, texts alone, and one broken row."""
    folder = tmp_path_factory.mktemp("options")
    rows = []
    for number in range(24):
        side = 64 if number % 3 else 40
        put(folder / "pictures" / f"{number}.png", picture(side, side, seed=number % 20))
        for question in range(6):
            answer = sentence(question + number, 30) if question % 2 else "yes"
            row = {"image": f"pictures/{number}.png", "answer": answer}
            rows.append({**row, "prompt": sentence(question + 12 * (number % 4)) + " ?"})
    for clip in range(2):
        for frame in range(4):
            put(
                folder / f"clip{clip}" / f"{frame}.png", picture(64, 48, seed=50 + 9 * clip + frame)
            )
        rows.append(
            {"video": f"clip{clip}", "prompt": f"What happens in clip {clip}?", "answer": "a"}
        )
    rows += [{"prompt": sentence(n, 14), "answer": "a text"} for n in range(40)]
    large = Image.open(io.BytesIO(picture(256, 256, seed=90)))
    for side in (256, 64):
        saved = io.BytesIO()
        large.resize((side, side), Image.Resampling.LANCZOS).save(saved, "PNG")
        put(folder / "pictures" / f"thumbnail{side}.png", saved.getvalue())
        row = {"image": f"pictures/thumbnail{side}.png", "prompt": "How large?", "answer": "yes"}
        rows.append(row)
    rows.append({"image": "pictures/absent.png", "prompt": "Is it there?"})
    write_lines(folder / "rows.jsonl", rows)
    write_lines(folder / "other.jsonl", [{"id": 1, "q": "Named otherwise?", "prompt": "As usual?"}])
    (folder / "splits").mkdir()
    for split in ("train", "test"):
        write_lines(folder / "splits" / f"{split}.jsonl", [{"prompt": f"Of {split}?"}])
    (folder / "linked").mkdir()
    (folder / "linked" / "pictures").symlink_to(folder / "pictures")
    linked = [{"image": "pictures/1.png", "prompt": "Where?"}, {"prompt": "A text alone?"}]
    write_lines(folder / "linked" / "rows.jsonl", linked)
    for name in ("a.png", "b.png"):
        put(folder / "captioned" / name, picture(40, 40, seed=ord(name[0])))
    (folder / "captioned" / "a.txt").write_text("Which?")
    (folder / "apart").mkdir()
    write_lines(folder / "apart" / "rows.jsonl", [{"image": "pictures/1.png", "prompt": "Where?"}])
    return folder


BASE = ("dedup.max_per_image=8", "select.count=40", "cluster.clusters=6", "threads=1")


def configured(folder, encoder, *overrides, file="rows.jsonl", **source) -> CurateConfig:
    entry = {"path": str(folder / file), **source}
    given = [f"ingest.sources={json.dumps([entry])}", f"embed.encoder={encoder}"]
    return load_config(CurateConfig, overrides=[*BASE, *given, *overrides])


@pytest.fixture(scope="module")
def base(tmp_path_factory, folder, tiny_encoder):
    """The run with the settings of ``BASE``."""
    return curate(configured(folder, tiny_encoder), tmp_path_factory.mktemp("base") / "run").folder


CHANGED = {
    "ingest.max_bad": ("0%", "1 of 189 rows are bad"),
    "ingest.max_pixels": (3000, DIFFERENT),
    "dedup.policy": ("text", DIFFERENT),
    "dedup.text_rule": ("documents", DIFFERENT),
    "dedup.judge": (False, DIFFERENT),
    "dedup.common_from": (1, FEWER_COMPARED),
    "dedup.image_radius": (16, DIFFERENT),
    "dedup.colour_tolerance": (0, DIFFERENT),
    "dedup.max_per_image": (2, DIFFERENT),
    "dedup.shingle_words": (1, DIFFERENT),
    "dedup.bands": (1, FEWER_COMPARED),
    "dedup.rows_per_band": (30, FEWER_COMPARED),
    "embed.encoder": ("transformers:./absent", "cannot be loaded"),
    "embed.frames": (4, DIFFERENT),
    "cluster.clusters": (3, DIFFERENT),
    "cluster.method": ("hierarchical", DIFFERENT),
    "cluster.points_per_centroid": (1, DIFFERENT),
    "cluster.iterations": (1, DIFFERENT),
    "select.count": (20, DIFFERENT),
    "select.question_types": ("{long: 1}", DIFFERENT),
    "select.modality": ("{text: {cap: 2}}", DIFFERENT),
    "select.source": ("{rows: {cap: 9}}", DIFFERENT),
    "select.order": ("farthest", DIFFERENT),
    "select.semantic_threshold": (0.2, DIFFERENT),
    "seed": (7, DIFFERENT),
}
# Those that have an effect together with another.
BESIDE = {
    "dedup.text_threshold": (0.5, "dedup.text_rule=documents"),
    "dedup.document_tokens": (1, "dedup.text_rule=auto"),
    "dedup.thumbnails": (True, "dedup.image_radius=8"),
    "select.semantic_keep": ("easy", "select.semantic_threshold=0.2"),
}
# Each has a test of its own: below, in test_contaminants, or in a file on hashes.
APART = {
    *("ingest.sources", "embed.batch", "memory", "threads"),
    *("dedup.hash", "dedup.cache", "dedup.unverified_images"),
    *("dedup.against", "dedup.against_by"),
}


def test_no_setting_of_curate_is_without_a_test():
    assert leaves(CurateConfig) == {*CHANGED, *BESIDE} | APART


@pytest.mark.parametrize("setting", CHANGED)
def test_a_setting_of_curate_has_an_effect(setting, base, folder, tiny_encoder, tmp_path):
    value, effect = CHANGED[setting]
    stage = setting.split(".")[0] if "." in setting else "cluster"
    shutil.copytree(base, tmp_path / "run")
    config = configured(folder, tiny_encoder, f"{setting}={value}")
    if effect is FEWER_COMPARED:
        run = curate(config, tmp_path / "run", first=stage, last=stage)
        before = Run(base).report(stage)["pairs_compared"]
        assert run.report(stage)["pairs_compared"] < before
        return
    if effect is not DIFFERENT:
        with pytest.raises((ConfigError, InputError), match=effect):
            curate(config, tmp_path / "run", first=stage, last=stage)
        return
    run = curate(config, tmp_path / "run", first=stage, last=stage)
    assert tables(run.stage_folder(stage)) != tables(Run(base).stage_folder(stage))


@pytest.mark.parametrize("setting", BESIDE)
def test_a_setting_has_an_effect_beside_another(setting, base, folder, tiny_encoder, tmp_path):
    value, other = BESIDE[setting]
    made = []
    stage = setting.split(".")[0]
    for number, given in enumerate(([other], [other, f"{setting}={value}"])):
        shutil.copytree(base, tmp_path / f"run{number}")
        config = configured(folder, tiny_encoder, *given)
        run = curate(config, tmp_path / f"run{number}", first=stage, last=stage)
        made.append(tables(run.stage_folder(stage)))
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ({"name": "renamed"}, "rows.jsonl"),
        ({"tags": ["safety"]}, "rows.jsonl"),
        ({"columns": {"prompt": "q"}}, "other.jsonl"),
        ({"split": "test"}, "splits"),
        ({"follow_links": True}, "linked/rows.jsonl"),
        ({"prompt_for_pictures": "What is it?"}, "captioned"),
    ],
    ids=["name", "tags", "columns", "split", "follow_links", "prompt_for_pictures"],
)
def test_a_setting_of_a_source_has_an_effect(source, file, folder, tiny_encoder, tmp_path):
    made = []
    for number, given in enumerate(({}, source)):
        config = configured(folder, tiny_encoder, file=file, **given)
        run = curate(config, tmp_path / f"run{number}", last="ingest")
        made.append(tables(run.stage_folder("ingest")))
    assert made[0] != made[1]


def test_every_setting_of_a_source_has_a_test():
    tested = {"name", "tags", "columns", "split", "follow_links", "prompt_for_pictures"}
    assert leaves(SourceConfig) == tested | {"path", "root", "format"}


def test_the_root_of_a_source_is_where_its_media_lie(folder, tiny_encoder, tmp_path):
    for number, (given, missing) in enumerate((({}, 1), ({"root": str(folder)}, 0))):
        config = configured(folder, tiny_encoder, file="apart/rows.jsonl", **given)
        if missing:
            with pytest.raises(InputError):
                curate(config, tmp_path / f"run{number}", last="ingest")
        else:
            run = curate(config, tmp_path / f"run{number}", last="ingest")
            assert run.report("ingest")["rows_out"] == 1


def test_the_format_of_a_source_is_believed(folder, tiny_encoder, tmp_path):
    config = configured(folder, tiny_encoder, format="parquet")
    with pytest.raises(InputError, match="Parquet"):
        curate(config, tmp_path / "run", last="ingest")


def test_the_batch_of_an_encoder_is_kept_to(base, folder, tiny_encoder, tmp_path, monkeypatch):
    sizes = Counter()
    decode = embed.decode_images

    def counting(paths, *arguments, **settings):
        sizes[len(paths)] += 1
        return decode(paths, *arguments, **settings)

    monkeypatch.setattr(embed, "decode_images", counting)
    shutil.copytree(base, tmp_path / "run")
    config = configured(folder, tiny_encoder, "embed.batch=3")
    curate(config, tmp_path / "run", first="embed", last="embed")
    assert max(sizes) == 3


def test_too_little_memory_is_refused(folder, tiny_encoder, tmp_path):
    config = configured(folder, tiny_encoder, "memory=1M")
    with pytest.raises(ConfigError, match=r"ingest needs up to .* and may use 1\.0 MiB"):
        curate(config, tmp_path / "run", last="ingest")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_reach_the_core(base, folder, tiny_encoder, tmp_path, monkeypatch, threads):
    asked = set()
    hash_images = picture_hashes.hash_images

    def counting(*arguments, **settings):
        asked.add(settings["threads"])
        return hash_images(*arguments, **settings)

    monkeypatch.setattr(picture_hashes, "hash_images", counting)
    config = configured(folder, tiny_encoder, f"threads={threads}")
    shutil.copytree(base, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "02_dedup")
    curate(config, tmp_path / "run", first="dedup", last="dedup")
    assert asked == {threads}


@pytest.mark.parametrize("stage", CURATE)
def test_a_stage_stays_within_the_memory_it_says(stage, base):
    """The bound that ``--memory`` is compared with holds for what the stage has really used."""
    run = Run(base)
    config = getattr(load_config(CurateConfig, overrides=BASE), stage)
    context = StageContext(STAGES[stage], config, run.stage_folder(stage), run, Resources())
    report = run.report(stage)
    bound = STAGES[stage].memory(config, context, 1)
    assert report["peak_rss_bytes"] - report["start_rss_bytes"] <= bound


# ---- pack ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two rows of pictures and a video, one tie, one plain text, one broken row; a tokenizer."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer_folder(folder / "tokenizer", "{{ 'LOUD' if shouting else '' }}" + CHATML)
    (folder / "other.jinja").write_text(CHATML.replace("<|im_end|>", "<|im_end|><|endoftext|>"))
    put(folder / "a.png", picture(96, 96, seed=1))
    put(folder / "b.png", picture(32, 32, seed=2))
    for frame in range(12):
        put(folder / "clip" / f"{frame:02}.png", picture(32, 32, seed=20 + frame))
    asked = {"chosen": "a red apple", "rejected": "two dogs and one cat in the garden"}
    write_lines(
        folder / "rows.jsonl",
        [
            {"image": "a.png", "prompt": "<image>\nWhat is this?", **asked},
            {"image": "b.png", "prompt": "<image>\nAnd this, in one word?", **asked},
            {"video": "clip", "prompt": "What happens?", **asked},
            {"prompt": "Equal?", **asked, "image": None, "is_tie": True},
            "{broken",
        ],
    )
    write_lines(folder / "plain.jsonl", [{"prompt": "Which?", **asked}])
    put(folder / "large.png", picture(448, 448, seed=3))
    large = {"image": "large.png", "prompt": "<image>\nWhat is this?", **asked}
    wordy = {"prompt": "Tell me.", **asked, "chosen": "a red apple on a wooden table " * 60}
    write_lines(folder / "long.jsonl", [large, {**wordy, "image": None}])
    return folder


def packed(folder, out, *, sources=("rows.jsonl",), **settings):
    """The report, the fingerprint of the data and the number of shards."""
    chosen = {
        "tokenizer": str(folder / "tokenizer"),
        "image_rule": "qwen2_vl",
        "videos": "frames",
        **settings,
    }
    paths = [str(folder / name) for name in sources]
    report = pack.pack_dataset(pack.PackConfig(sources=paths, **chosen), out)
    manifest = sorted((out / "_mmrlhf").glob("manifest-*.json"))[-1]
    content = json.loads(manifest.read_text())
    return report, content["dataset"], len(content["shards"])


PACK_CHANGED = {
    "sources": (["plain.jsonl"], DIFFERENT),
    "split": ("train", "no source has splits, and 'train' was asked for"),
    "ignore_fields": (["image"], DIFFERENT),
    "template_args": ({"shouting": True}, DIFFERENT),
    "format": ("sharegpt", "none of 5 rows can be used"),
    "root": ("/", DIFFERENT),
    "tokenizer": ("", "no model given"),
    "chat_template": ("other.jinja", DIFFERENT),
    "max_length": (12, "max_length|over_long|tokens"),
    "model": ("other", "give one of them"),
    "frames": (3, DIFFERENT),
    "frames_per_second": (5.0, DIFFERENT),
    "max_pixels": (2000, DIFFERENT),
    "max_bad": ("1%", "rows are bad"),
    "memory": ("1M", r"pack needs up to .* and may use 1\.0 MiB"),
    "ties": ("drop", DIFFERENT),
}
PACK_APART = {"image_rule", "videos", "strings", "over_long", "shard_pairs", "append", "threads"}


def test_no_setting_of_pack_is_without_a_test():
    assert leaves(pack.PackConfig) == set(PACK_CHANGED) | PACK_APART


@pytest.mark.parametrize("setting", PACK_CHANGED)
def test_a_setting_of_pack_has_an_effect(setting, pairs, tmp_path):
    value, effect = PACK_CHANGED[setting]
    if setting == "chat_template":
        value = str(pairs / value)
    if effect is DIFFERENT:
        first = packed(pairs, tmp_path / "a")
        assert packed(pairs, tmp_path / "b", **{setting: value})[1] != first[1]
    else:
        with pytest.raises((ConfigError, InputError), match=effect):
            packed(pairs, tmp_path / "b", **{setting: value})


@pytest.mark.parametrize(
    ("policy", "dropped", "changed"),
    [
        ("drop", {"over_long": 2}, {}),
        ("shrink_image", {"over_long": 1}, {"shrunk_image": 1}),
        ("trim_text", {"over_long": 1}, {"trimmed_text": 1}),
    ],
)
def test_what_is_over_long_is_treated_as_asked(policy, dropped, changed, pairs, tmp_path):
    sources = ("plain.jsonl", "long.jsonl")
    settings = {"sources": sources, "max_length": 150, "over_long": policy}
    report, _, _ = packed(pairs, tmp_path / "ds", **settings)
    assert (report["dropped"], report["changed"]) == (dropped, changed)


def test_the_image_rule_counts_the_tokens_of_images(pairs, tmp_path):
    counted, _, _ = packed(pairs, tmp_path / "a")
    assert counted["image_tokens"] > 0
    assert packed(pairs, tmp_path / "b", image_rule="none")[0]["image_tokens"] == 0


def test_videos_are_left_to_the_processor_or_are_frames(pairs, tmp_path):
    assert packed(pairs, tmp_path / "a")[0]["dropped"] == {"broken_record": 1}
    left = packed(pairs, tmp_path / "b", videos="native")[0]
    assert left["dropped"] == {"broken_record": 1, "video_needs_model": 1}


def test_bare_strings_are_turns_of_a_chat_or_plain_text(pairs, tmp_path):
    chat = packed(pairs, tmp_path / "a", sources=("plain.jsonl",))
    assert packed(pairs, tmp_path / "b", sources=("plain.jsonl",), strings="plain")[1] != chat[1]


def test_shards_are_cut_after_so_many_pairs(pairs, tmp_path):
    assert packed(pairs, tmp_path / "a")[2] == 1
    assert packed(pairs, tmp_path / "b", shard_pairs=1)[2] == 4


def test_append_adds(pairs, tmp_path):
    packed(pairs, tmp_path / "ds")
    report, _, _ = packed(pairs, tmp_path / "ds", sources=("plain.jsonl",), append=True)
    assert report["version"] == 2


def test_threads_of_pack_reach_the_core(pairs, tmp_path, monkeypatch):
    asked = []
    writer = pack.DatasetWriter

    def counting(*arguments, **settings):
        asked.append(settings["threads"])
        return writer(*arguments, **settings)

    monkeypatch.setattr(pack, "DatasetWriter", counting)
    packed(pairs, tmp_path / "ds", threads=3)
    assert asked == [3]
