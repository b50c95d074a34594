"""What the tests of ingest share: small raw corpora in every format, and one call to read them."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import easy_vqa
import polars as pl

from mmrlhf_engine.curate import ingest
from mmrlhf_engine.curate.ingest import IngestConfig, SourceConfig

# JSON that no parser of bounded depth reads.
DEEP = '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"
PICTURES = [Path(path) for path in easy_vqa.get_train_image_paths().values()][:8]


@dataclass
class Intake:
    """What came out of one run of ingest."""

    samples: pl.DataFrame
    media: pl.DataFrame
    rejected: pl.DataFrame
    report: dict[str, Any]
    folder: Path

    @property
    def reasons(self):
        """Position -> reason."""
        return dict(self.rejected.select("position", "reason").iter_rows())

    @property
    def prompts(self):
        """Id -> prompt."""
        return dict(self.samples.select("id", "prompt").iter_rows())


def take_in(stage, *sources, threads=2, **options):
    """Run ingest on sources (paths or settings); every row that went in must have come out."""
    given = [s if isinstance(s, SourceConfig) else SourceConfig(path=str(s)) for s in sources]
    config = IngestConfig(sources=given, **options)
    begun = stage("ingest", config, threads=threads)
    ingest.run(config, begun)
    samples, media, rejected = (
        pl.read_parquet(begun.folder / name / "*.parquet")
        for name in ("samples", "media", "rejected")
    )
    report = begun.run.report("ingest")
    assert report["rows_in"] == samples.height + rejected.height
    assert samples["id"].is_unique().all()
    assert media["hash"].is_unique().all()
    assert set(samples["media"].explode().drop_nulls()) == set(media["hash"])
    return Intake(samples, media, rejected, report, begun.folder)


def picture(folder, name, number=0):
    """Copy a real picture to ``folder/name`` and return the name."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(PICTURES[number].read_bytes())
    return name


def lines(path, *records):
    """A JSONL file of records and raw texts or bytes."""
    encoded = (
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode()
        for r in records
    )
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def conversation(*turns):
    """A LLaVA conversation of (question, answer) turns."""
    return [
        {"from": who, "value": text}
        for turn in turns
        for who, text in zip(("human", "gpt"), turn, strict=False)
    ]


def write_tar(path, members):
    """A tar of name -> content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def digest(folder):
    """Relative name -> SHA-256 of every Parquet part below a folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.parquet"))
    }


def bomb(width=30_000, height=30_000):
    """A valid PNG of many pixels with next to nothing in it."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
