"""accelerate leaves a dataset as it is; a loader that it would deal out to the ranks is refused.

How to use it, and Trainer, is in docs/loading.md, whose examples run in test_loading_page.py.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from load_data import write
from mmrlhf_engine import PreferenceDataset
from mmrlhf_engine.errors import InputError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("preferences") / "set", queries=60, text_only=True)


def dataset(path):
    return PreferenceDataset(path, 140, unit="pair", packs_per_step=6)


def rows(batches):
    return [[batch.step, batch.pack, batch.pair_row.tolist()] for batch in batches]


@pytest.mark.parametrize("workers", [0, 1])
def test_accelerate_leaves_a_dataset_alone_and_a_prepared_loader_is_refused(path, workers):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    one = dataset(path)
    first = rows(itertools.islice(one, 3))
    one.set_epoch(0)
    assert accelerator.prepare(one) is one
    prepared = accelerator.prepare(DataLoader(one, batch_size=None, num_workers=workers))
    with pytest.raises(InputError, match="accelerate would deal out to all ranks") as raised:
        next(iter(prepared))
    assert "dataset.data_loader" in raised.value.hint
    accelerator.free_memory()
    one.set_epoch(0)
    own = one.data_loader(num_workers=workers)
    assert accelerator.prepare(own) is own
    assert rows(itertools.islice(own, 3)) == first
    accelerator.free_memory()
    one.set_epoch(0)
    loader = DataLoader(one, batch_size=None, num_workers=workers)
    assert rows(itertools.islice(loader, 3)) == first


RANKS_PROGRAM = """
import json, sys
import torch
from torch.utils.data import DataLoader
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from mmrlhf_engine import PreferenceDataset
from mmrlhf_engine.errors import InputError

path, out = sys.argv[1:]
refused = []
for dispatch in (None, False):
    configuration = DataLoaderConfiguration(dispatch_batches=dispatch)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    for size in (None, 1):
        dataset = PreferenceDataset(path, 140, unit="pair", packs_per_step=6)
        loader = accelerator.prepare(DataLoader(dataset, batch_size=size, collate_fn=list))
        try:
            next(iter(loader))
        except InputError as error:
            refused.append(str(error))
    accelerator.free_memory()
dataset = PreferenceDataset(path, 140, unit="pair", packs_per_step=6)
loader = accelerator.prepare(dataset.data_loader(num_workers=1))
rows = [[b.step, b.pack, b.pair_row.tolist()] for b in loader]
with open(f"{out}/{accelerator.process_index}.json", "w") as file:
    json.dump({"refused": refused, "rows": rows, "ranks": accelerator.num_processes}, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_under_accelerate(path, tmp_path):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    port = str(29_500 + os.getpid() % 1000)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS_PROGRAM, str(path), str(tmp_path)],
            env={**environment, "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    found = [json.loads(Path(tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [one["ranks"] for one in found] == [2, 2]
    assert [len(one["refused"]) for one in found] == [4, 4]
    taken = sorted(row for one in found for row in one["rows"] if row[2])
    assert taken == sorted(row for row in rows(dataset(path)) if row[2])
