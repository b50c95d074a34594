"""Patterns and addresses: what they mean, how far they are read, and how they are refused."""

import importlib

import fsspec
import pytest

from intake import PICTURES, lines, take_in
from mmrlhf_engine.cli import cli
from mmrlhf_engine.errors import InputError, MissingExtraError
from mmrlhf_engine.sources.samples.resolve import SourceConfig, resolve


@pytest.fixture(name="memory")
def _memory(tmp_path, monkeypatch):
    """A store in memory, and a cache of its own for what is fetched."""
    monkeypatch.setenv("MMRLHF_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_a_pattern_is_each_of_its_files(tmp_path, stage):
    for name in ("b", "a", "c"):
        lines(tmp_path / f"{name}.jsonl", {"prompt": f"{name}?"})
    out = take_in(stage, SourceConfig(path=str(tmp_path / "[ab].jsonl")))
    assert out.prompts == {"a:1": "a?", "b:1": "b?"}
    out = take_in(stage, SourceConfig(path=str(tmp_path / "*.jsonl"), name="all"))
    assert out.prompts == {"all:a:1": "a?", "all:b:1": "b?", "all:c:1": "c?"}
    with pytest.raises(InputError, match="no file is named so"):
        resolve([SourceConfig(path=str(tmp_path / "*.parquet"))])
    lines(tmp_path / "[x].jsonl", {"prompt": "brackets?"})
    assert take_in(stage, tmp_path / "[x].jsonl").prompts == {"[x]:1": "brackets?"}


def test_an_address_is_fetched_once(memory, stage, tmp_path):
    memory.pipe("/set/a/train.jsonl", b'{"prompt": "a?"}\n')
    memory.pipe("/set/b/train.jsonl", b'{"prompt": "b?"}\n')
    memory.pipe("/set/.hidden/train.jsonl", b'{"prompt": "hidden?"}\n')
    out = take_in(stage, SourceConfig(path="memory://set/*/train.jsonl"))
    assert out.prompts == {"a/train:1": "a?", "b/train:1": "b?"}
    copies = sorted((tmp_path / "cache").rglob("train.jsonl"))
    take_in(stage, SourceConfig(path="memory://set/*/train.jsonl"))
    assert sorted((tmp_path / "cache").rglob("train.jsonl")) == copies
    memory.pipe("/set/a/train.jsonl", b'{"prompt": "changed?"}\n')
    out = take_in(stage, SourceConfig(path="memory://set/a/train.jsonl"))
    assert out.prompts == {"train:1": "changed?"}


def test_a_folder_at_an_address_is_read_as_a_folder(memory, stage, tmp_path):
    for split in ("train", "test"):
        memory.pipe(f"/set/data/{split}.jsonl", b'{"prompt": "Where?", "image": "a.png"}\n')
    memory.pipe("/set/a.png", PICTURES[0].read_bytes())
    memory.pipe("/set/.gitattributes", b"hidden")
    out = take_in(stage, SourceConfig(path="memory://set"))
    assert out.prompts == {"set:1": "Where?"}
    assert out.samples["modality"].to_list() == ["image"]
    assert out.report["splits"]["set"] == {"taken": "train", "not_read": ["test"]}
    assert not list((tmp_path / "cache").rglob(".*"))


def test_a_file_address_is_read(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("MMRLHF_CACHE", str(tmp_path / "cache"))
    file = lines(tmp_path / "x.jsonl", {"prompt": "What?"})
    assert take_in(stage, SourceConfig(path=f"file://{file}")).prompts == {"x:1": "What?"}


def test_an_address_without_its_package_names_it(monkeypatch):
    def absent(name, *arguments, **options):
        if name in ("s3fs", "fsspec"):
            raise ImportError(name=name)
        return real(name, *arguments, **options)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        MissingExtraError, match=r"s3://bucket/x\.parquet needs the package s3fs"
    ) as e:
        resolve([SourceConfig(path="s3://bucket/x.parquet")])
    assert "mmrlhf-engine[remote]" in str(e.value)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("memory://nowhere/x.jsonl", "memory://nowhere/x.jsonl: cannot be found"),
        ("memory://nowhere/*.jsonl", "no file there"),
        ("nonsense://x.jsonl", "nonsense://x.jsonl: "),
    ],
)
def test_an_address_that_leads_nowhere_is_shown_as_typed(memory, tmp_path, address, what):
    with pytest.raises(InputError, match=what.replace("*", r"\*")):
        resolve([SourceConfig(path=address)])
    with pytest.raises(InputError) as raised:
        cli(["curate", address, "--out", str(tmp_path / "run")], standalone_mode=False)
    assert address in str(raised.value)
