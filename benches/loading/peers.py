"""The peers: each writes the pairs as its documentation shows, and reads them shuffled.

A reader yields batches of decoded records (a list of dictionaries with int32 arrays, and the
picture as uint8 [height, width, 3] when it is decoded). No peer pads, packs or expands image
tokens here: they are asked for less than our loader gives.
"""

import io
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from loading.content import pair_records, queries

Record = dict[str, Any]
BATCH = 16
TOKENS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Content:
    """Which content to write; workers of a peer make it again instead of getting it by pipe."""

    queries: int
    megapixels: float | None

    def records(self) -> Iterator[Record]:
        """The pairs as flat records."""
        return pair_records(queries(self.queries, self.megapixels))


class Peer(Protocol):
    """What a peer can do."""

    modules: tuple[str, ...]
    """What it imports, which no measurement counts."""

    def write(self, folder: Path, content: Content) -> None:
        """Write the pairs into ``folder``."""

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """One epoch, shuffled, in batches of 16."""


def decoded(record: Record) -> Record:
    """The record with its picture as pixels."""
    if "image" not in record:
        return record
    with Image.open(io.BytesIO(bytes(record["image"]))) as image:
        return {**record, "image": np.asarray(image.convert("RGB"))}


def _same(batch: list[Record]) -> list[Record]:
    return batch


def _decode(batch: list[Record]) -> list[Record]:
    return [decoded(record) for record in batch]


def _itself(record: Record) -> Record:
    return record


class LitData:
    """Lightning LitData: optimize, StreamingDataset, StreamingDataLoader."""

    modules = ("litdata",)

    def write(self, folder: Path, content: Content) -> None:
        """One process, chunks of 64 MB, its default serialisers."""
        from litdata import optimize

        records = list(content.records())
        optimize(
            fn=_itself,
            inputs=records,
            output_dir=str(folder),
            chunk_bytes="64MB",
            num_workers=1,
            verbose=False,
        )

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Through its own loader."""
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=True, transform=decoded)
        loader = StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=workers, collate_fn=_same
        )
        yield from loader


class MosaicStreaming:
    """MosaicML Streaming: MDSWriter, StreamingDataset in a torch DataLoader."""

    modules = ("streaming", "torch.utils.data")

    def write(self, folder: Path, content: Content) -> None:
        """Uncompressed shards of its default 64 MB, without hashes, as by default."""
        from streaming import MDSWriter

        columns = dict.fromkeys(TOKENS, "ndarray:int32")
        if content.megapixels is not None:
            columns["image"] = "bytes"
        with MDSWriter(out=str(folder), columns=columns) as writer:
            for record in content.records():
                writer.write(record)

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Its default shuffle."""
        import streaming
        from torch.utils.data import DataLoader

        # A killed run leaves named shared memory behind, which would stop the next one.
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        yield from DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_decode)


class WebDataset:
    """WebDataset: tar shards, shuffle buffer of 1,000."""

    modules = ("webdataset", "torch.utils.data")

    def write(self, folder: Path, content: Content) -> None:
        """Arrays as .npy members, pictures as .jpg."""
        import webdataset

        with webdataset.ShardWriter(f"{folder}/pairs-%05d.tar", maxsize=64e6, verbose=0) as sink:
            for number, record in enumerate(content.records()):
                arrays = {f"{name}.npy": record[name] for name in TOKENS}
                picture = {"image.jpg": record["image"]} if "image" in record else {}
                sink.write({"__key__": f"{number:09d}", **arrays, **picture})

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Shards split over workers."""
        import webdataset
        from torch.utils.data import DataLoader

        shards = sorted(str(path) for path in folder.glob("*.tar"))
        dataset = (
            webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
            .shuffle(1000)
            .map(_from_tar)
        )
        yield from DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=_same)


def _from_tar(sample: dict[str, bytes]) -> Record:
    record: Record = {n: np.load(io.BytesIO(sample[f"{n}.npy"])) for n in TOKENS}
    return decoded(record | ({"image": sample["image.jpg"]} if "image.jpg" in sample else {}))


class Grain:
    """Grain over ArrayRecord with one record a group, for random access."""

    modules = ("grain.python",)

    def write(self, folder: Path, content: Content) -> None:
        """Pickled records, uncompressed: JPEG and random tokens do not compress."""
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "pairs.array_record"), "group_size:1,uncompressed")
        for record in content.records():
            writer.write(pickle.dumps(record, protocol=5))
        writer.close()

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Global shuffle, worker processes for the mapping."""
        import grain.python as grain

        source = grain.ArrayRecordDataSource(str(folder / "pairs.array_record"))
        dataset = grain.MapDataset.source(source).shuffle(seed=0).map(pickle.loads).map(decoded)
        iterable = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)
        )
        iterable = iterable.batch(BATCH, batch_fn=list)
        if workers > 1:
            iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        yield from iterable


class HuggingFaceDatasets:
    """Hugging Face datasets: Arrow on disk, mapped, in a torch DataLoader."""

    modules = ("datasets", "torch.utils.data")

    def write(self, folder: Path, content: Content) -> None:
        """From a generator, saved to disk."""
        from datasets import Dataset, Features, List, Value

        features = {name: List(Value("int32")) for name in TOKENS}
        if content.megapixels is not None:
            features["image"] = Value("binary")
        cache = folder.with_name(folder.name + "-cache")
        dataset = Dataset.from_generator(
            content.records, features=Features(features), cache_dir=str(cache)
        )
        dataset.save_to_disk(str(folder))
        shutil.rmtree(cache)

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Random access by a shuffling sampler, rows fetched a batch at a time."""
        from datasets import load_from_disk
        from torch.utils.data import DataLoader

        dataset = load_from_disk(str(folder)).with_transform(_rows)
        yield from DataLoader(
            dataset, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=_same
        )


def _rows(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    out = {n: [np.asarray(v, np.int32) for v in columns[n]] for n in TOKENS}
    if "image" in columns:
        out["image"] = [decoded({"image": v})["image"] for v in columns["image"]]
    return out


class Lance:
    """Lance: random rows by take, a batch at a time, in a torch DataLoader."""

    modules = ("lance", "torch.utils.data")

    def write(self, folder: Path, content: Content) -> None:
        """Record batches of 1,024 rows, the newest file version by default."""
        import lance
        import pyarrow as pa

        lists = [(name, pa.list_(pa.int32())) for name in TOKENS]
        images = [] if content.megapixels is None else [("image", pa.large_binary())]
        schema = pa.schema(lists + images)

        def batches() -> Iterator[pa.RecordBatch]:
            rows: list[Record] = []
            for record in content.records():
                rows.append(record)
                if len(rows) == 1024:
                    yield pa.RecordBatch.from_pylist(rows, schema=schema)
                    rows = []
            if rows:
                yield pa.RecordBatch.from_pylist(rows, schema=schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        lance.write_dataset(reader, str(folder))

    def read(self, folder: Path, workers: int) -> Iterator[list[Record]]:
        """Worker processes are spawned: Lance is not safe to fork."""
        import lance
        from torch.utils.data import DataLoader

        rows = lance.dataset(str(folder)).count_rows()
        order = np.random.default_rng(0).permutation(rows)
        batches = [order[at : at + BATCH].tolist() for at in range(0, rows, BATCH)]
        context = "spawn" if workers else None
        yield from DataLoader(
            _LanceBatches(str(folder)),
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
        )


class _LanceBatches:
    """A batch of rows for a list of row numbers."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.dataset: Any = None

    def __getitem__(self, rows: list[int]) -> list[Record]:
        import lance

        self.dataset = self.dataset or lance.dataset(self.folder)
        table = self.dataset.take(rows)
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        tokens = {n: [columns[n][at].values.to_numpy() for at in range(len(rows))] for n in TOKENS}
        images = columns.get("image")
        return [
            decoded(
                {n: tokens[n][at] for n in TOKENS}
                | ({} if images is None else {"image": images[at].as_buffer()})
            )
            for at in range(len(rows))
        ]


PEERS: dict[str, Peer] = {
    "litdata": LitData(),
    "mosaicml-streaming": MosaicStreaming(),
    "webdataset": WebDataset(),
    "grain + array_record": Grain(),
    "datasets": HuggingFaceDatasets(),
    "lance": Lance(),
}
